"""For a mistyped name the nearest known name is suggested, if one is near."""

from pathlib import Path

import pytest

from service.contract.nearest import did_you_mean, nearest_path


def test_the_nearest_known_name_is_offered_whatever_its_case():
    assert did_you_mean("FASION", ["digits", "Fashion"]) == "; did you mean 'Fashion'?"
    assert did_you_mean("weather", ["digits", "fashion"]) == ""


def test_a_path_is_mended_at_its_first_missing_part(tmp_path):
    (tmp_path / "models" / "fashion").mkdir(parents=True)
    offered = nearest_path(tmp_path / "model" / "fashion")
    assert offered == f"; did you mean '{tmp_path / 'models' / 'fashion'}'?"
    assert nearest_path(tmp_path / "weather" / "fashion") == ""


def test_a_hidden_name_is_offered_for_a_hidden_one_only(tmp_path):
    (tmp_path / ".git").mkdir()
    assert nearest_path(tmp_path / "digits") == ""
    assert nearest_path(tmp_path / ".gitt") == f"; did you mean '{tmp_path / '.git'}'?"


def test_nothing_is_offered_where_no_part_of_a_path_exists_or_its_folder_cannot_be_read(
    tmp_path, monkeypatch
):
    assert nearest_path(Path("nothing/of/it/exists")) == ""
    monkeypatch.setattr(Path, "is_dir", lambda _self: False)
    assert nearest_path(tmp_path / "a") == ""
    monkeypatch.setattr(Path, "is_dir", lambda _self: True)

    def refused(_self):
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refused)
    assert nearest_path(tmp_path / "b") == ""


def test_a_link_that_leads_nowhere_is_not_offered_in_its_own_place(tmp_path):
    (tmp_path / "keys").symlink_to("keys")
    assert nearest_path(tmp_path / "keys") == ""


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("~/models", "; only a shell replaces ~ and $NAME, so write the whole path"),
        ("$HOME/models", "; only a shell replaces ~ and $NAME, so write the whole path"),
        ("s3:/bucket/models", "; did you mean 's3://bucket/models'?"),
        ("https:/host/models", "; did you mean 'https://host/models'?"),
    ],
)
def test_a_path_that_was_meant_for_a_shell_or_as_a_url_is_told(path, told):
    assert nearest_path(Path(path)) == told


def test_a_namesake_may_have_a_quote_in_its_name(tmp_path):
    (tmp_path / "it's models").mkdir()
    told = nearest_path(tmp_path / "its models" / "fashion")
    assert told == f"; did you mean '{tmp_path}/it's models/fashion'?"
