"""Where priors are kept when no store is named."""

import os

import pytest

from service.priors.store import InvalidStoreUrl, open_store, store_url
from service.priors.store.engine import parse_store_url
from service.priors.store.place import AUTO
from tests.support.server import ROOT


@pytest.fixture
def data(monkeypatch, tmp_path):
    """The user's data folder, and a current folder that is empty."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def test_priors_are_kept_in_the_users_data_folder_which_is_made_on_first_use(data):
    assert store_url(AUTO) == f"sqlite:///{data}/priordial/priordial.db"
    store = open_store(AUTO)
    assert not data.exists()
    store.open()
    store.close()
    assert (data / "priordial/priordial.db").exists()


def test_a_store_in_the_current_folder_goes_on_being_used(data, tmp_path):
    (tmp_path / "here/priordial.db").touch()
    assert store_url(AUTO) == f"sqlite:///{tmp_path}/here/priordial.db"


def test_a_current_folder_that_was_deleted_is_none_to_keep_priors_in(data, tmp_path):
    (tmp_path / "here").rmdir()
    assert store_url(AUTO) == f"sqlite:///{data}/priordial/priordial.db"


def test_in_a_clone_of_the_project_priors_are_kept_beside_it(data, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert store_url(AUTO) == f"sqlite:///{ROOT}/priordial.db"


def test_a_store_that_is_named_is_taken_as_it_is(data):
    assert store_url("sqlite:///mine.db") == "sqlite:///mine.db"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/srv/p.db", "the store is '/srv/p.db'; expected sqlite:///FILE or postgresql://"),
        ("/srv/p.db", "for this file, sqlite:////srv/p.db"),
        ("sqlite://p.db", "the store is 'sqlite://p.db', which is not a file"),
        ("sqlite://", "with three slashes"),
        ("sqlite:///p.db\r", "ends with a blank, or with the line end"),
        (" sqlite:///p.db", "begins or ends with a blank"),
        ("postgresql://ops:secret@h/p ", "begins or ends with a blank"),
        ("mysql://h/n", "unknown kind of store 'mysql'; expected sqlite"),
        ("ops:secret@db/x", "the store is not a URL of a store; expected sqlite"),
        ("sqlite://ops:secret@", "the store is not a URL of a store, which is not a file"),
        ("postgresql://ops:se@secret@h/p", "has two '@'; write the one of the password as %40"),
    ],
)
def test_a_store_that_is_none_is_told_without_a_password(text, message):
    with pytest.raises(InvalidStoreUrl) as caught:
        parse_store_url(text)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", [b"kl\xc3\xa4sse", b"\xff", b"a b\nc", b"50%", b"a#b"])
def test_a_file_may_have_any_name_that_the_disk_takes(tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    store = open_store(f"sqlite:///{folder}/p.db")
    store.open()
    store.close()
    assert (folder / "p.db").exists()
