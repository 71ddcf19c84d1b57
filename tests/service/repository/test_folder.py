"""`service.repository.folder`: which models the folder holds, and what a client's name can do."""

import re
import shutil

import pytest

from service.contract.bundle import InvalidBundle, load_bundle
from service.repository.folder import ModelFolder
from service.repository.on_demand import UnknownModel
from tests.support.small_models import publish_model


@pytest.fixture
def folder(tmp_path):
    publish_model(tmp_path, "linear")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a model")
    return ModelFolder(tmp_path)


def test_only_folders_with_a_version_are_models(folder):
    assert folder.names() == ["linear"]
    assert folder.versions("linear") == [1]
    assert folder.versions("gone") == []


@pytest.mark.parametrize("name", ["empty", "notes.txt", "gone", "..", "linear/..", "", "a\0b"])
def test_a_name_without_a_version_is_refused_with_the_names_that_are_there(folder, name):
    assert not folder.holds(name)
    with pytest.raises(UnknownModel, match="in the repository; expected one of linear"):
        folder.check(name)


def test_a_model_whose_folder_cannot_be_listed_is_told_and_costs_no_other(folder):
    (folder.path / "loop").symlink_to("loop")
    (folder.path / "lost+found").symlink_to("lost+found")  # no name of a model
    assert folder.names() == ["linear"]
    assert folder.versions("loop") == []
    (name, reason), *others = folder.unreadable().items()
    assert (name, others) == ("loop", [])
    assert reason.endswith("expected a folder that this user can read")
    with pytest.raises(UnknownModel, match=re.escape(reason)):
        folder.check("loop")


@pytest.mark.parametrize("target", ["2", "nowhere", "../.."])
def test_a_version_that_is_a_link_is_loaded_or_says_what_is_wrong_with_it(folder, target):
    link = folder.version("linear", 2)
    link.symlink_to(target)
    assert folder.versions("linear") == [1, 2]
    with pytest.raises(InvalidBundle) as refused:
        load_bundle(link)
    if target != "../..":
        told = f"{link}: a link to '{target}', which leads to no folder; link it to"
        assert str(refused.value).startswith(told)
    assert folder.loaded_bytes("linear", [1, 2]) >= folder.loaded_bytes("linear", [1])


def test_a_model_that_is_a_link_to_nothing_is_told(folder):
    (folder.path / "mounted").symlink_to("/nowhere/mounted")
    reason = folder.unreadable()["mounted"]
    assert "mounted, a link to '/nowhere/mounted': No such file or directory" in reason
    assert folder.names() == ["linear"]


@pytest.mark.parametrize("name", ["01", "v1", "1.0"])
def test_a_version_of_another_name_is_told(folder, name):
    assert folder.misplaced() == []
    version = folder.version("linear", 1)
    version.rename(version.with_name(name))
    assert folder.names() == []
    told = f"'{version.with_name(name)}' is not named as a version is; expected 1, 2, 3 …"
    assert folder.misplaced() == [told]


def test_parts_of_a_model_that_are_no_version_are_told_once_beside_models_that_serve(
    folder, caplog
):
    folder.tell_misplaced()
    assert caplog.text == ""
    version = folder.version("linear", 1)
    shutil.copytree(version, version.with_name("v2"))
    shutil.copytree(version, folder.path / ".staging" / "9x")
    shutil.copytree(version, version.with_name(".2-staging"))
    shutil.copytree(version, folder.path / "direct")
    for _ in range(2):
        folder.tell_misplaced()
    told = [record.getMessage() for record in caplog.records]
    moved = "; it is not served: move it, then reload (SIGHUP)"
    direct = folder.path / "direct"
    assert told == [
        f"'{direct}/model.json' is in the folder of no version; expected '{direct}/1/model.json'"
        + moved,
        f"'{direct}/model.onnx' is in the folder of no version; expected '{direct}/1/model.onnx'"
        + moved,
        f"'{version.with_name('v2')}' is not named as a version is; expected 1, 2, 3 …" + moved,
    ]


def test_a_folder_with_any_entry_is_not_lost(folder):
    assert folder.why_lost() == ""


def test_an_empty_folder_and_one_that_is_gone_are_lost(tmp_path):
    assert "is empty" in ModelFolder(tmp_path).why_lost()
    assert "cannot be read: No such file" in ModelFolder(tmp_path / "gone").why_lost()


def test_versions_take_more_memory_than_their_files(folder):
    graph = folder.version("linear", 1) / "model.onnx"
    assert folder.loaded_bytes("linear", [1]) > graph.stat().st_size
    assert folder.loaded_bytes("linear", []) == 0
