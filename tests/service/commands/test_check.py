"""`check` finds what would stop a start or serve something unintended; it serves nothing."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.api.edge.keys import make_key
from service.commands import check, doctor
from service.contract.bundle import load_bundle
from service.contract.members.body import parse_prior
from service.settings import Settings
from tests.support.priors import following
from tests.support.small_models import publish_model

ROOT = Path(__file__).parents[3]


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def settings(models, tmp_path):
    """Makes valid settings, except for the given ones."""

    def make(**given):
        store = f"sqlite:///{tmp_path}/priors.db"
        return Settings(**{"models": models, "store": store, "provider": "cpu", **given})

    return make


def faults(settings):
    """Subject → text of each finding that is bad."""
    return {subject: text for good, subject, text in check.check(settings) if good is False}


def test_right_settings_pass_and_each_subject_has_a_line(settings, capsys):
    assert check.run(settings(default_model="linear")) == 0
    reported = capsys.readouterr().out
    for subject in (
        "settings",
        "files and folders",
        "prior store",
        "model linear/1",
        "default model",
        "priors",
    ):
        assert f"ok   {subject}" in reported


def test_a_missing_models_folder_and_a_folder_without_models_are_found(settings, tmp_path):
    missing = faults(settings(models=tmp_path / "modls"))
    assert f"did you mean '{tmp_path}/models'?" in missing["files and folders"]
    (tmp_path / "empty").mkdir()
    assert "has no model" in faults(settings(models=tmp_path / "empty"))["models"]
    assert faults(settings(models=tmp_path / "empty", allow_no_models=True)) == {}


def test_an_unknown_default_model_is_found_with_the_nearest_name(settings):
    found = faults(settings(default_model="liner"))
    assert "did you mean 'linear'?" in found["default model"]


def test_a_damaged_model_is_found(settings, models):
    (models / "linear" / "1" / "model.onnx").write_bytes(b"damaged")
    assert "sha256" in faults(settings())["model linear/1"]


def test_a_model_whose_folder_cannot_be_listed_is_found_and_the_others_pass(settings, models):
    (models / "loop").symlink_to("loop")
    found = faults(settings())
    assert list(found) == ["model loop"]
    assert "Too many levels" in found["model loop"]


@pytest.mark.parametrize("host", ["::1%lo", "10.99.99.99", "no-such-host.invalid"])
def test_an_address_that_serve_cannot_bind_is_found(settings, host):
    found = faults(settings(host=host, allow_anonymous=True))
    assert f"cannot listen on {host}" in found["address"]
    assert "--host" in found["address"]


def test_a_port_in_use_is_told_but_may_be_the_running_service(settings):
    with socket.create_server(("127.0.0.1", 0)) as running:
        port = running.getsockname()[1]
        given = settings(host="127.0.0.1", metrics_port=port)
        (told,) = (text for _, subject, text in check.check(given) if subject == "address")
        assert f"127.0.0.1:{port}" in told
        assert "--metrics-port" in told
        assert faults(given) == {}


def test_a_list_without_a_key_is_no_fault_since_serve_starts_with_it(settings, tmp_path):
    listed = tmp_path / "keys"
    listed.write_text("# none yet\n")
    listed.chmod(0o600)
    given = settings(host="0.0.0.0", keys=listed)
    assert faults(given) == {}
    (told,) = (text for good, subject, text in check.check(given) if subject == "keys")
    assert "no key yet" in told


def test_keys_are_read_and_an_open_address_without_them_is_found(settings, tmp_path):
    assert "without keys" in faults(settings(host="0.0.0.0"))["access"]
    assert faults(settings(host="0.0.0.0", allow_anonymous=True)) == {}
    listed = tmp_path / "keys"
    listed.write_text(make_key("ops", ["operate"])[1].line())
    assert faults(settings(host="0.0.0.0", keys=listed)) == {}
    listed.write_text("ops operate hunter2")
    found = faults(settings(keys=listed))
    assert "line 1" in found["keys"]
    assert "hunter2" not in found["keys"]


@pytest.mark.parametrize(
    ("store", "words"),
    [("mysql://somewhere", "mysql"), ("sqlite:///{}/priros/p.db", "there is no folder")],
)
def test_a_store_that_cannot_be_used_is_found(settings, tmp_path, store, words):
    assert words in faults(settings(store=store.format(tmp_path)))["prior store"]
    assert not (tmp_path / "priros").exists(), "nothing is made by the way"


def test_a_stored_prior_that_does_not_fit_its_model_is_found(settings, models):
    made = settings()

    async def put(bundle):
        async with following(made.store) as priors:
            body = parse_prior({"target": {"class-0": 1}, "others": 1})
            await priors.put(bundle, "shop", body, by="me")

    asyncio.run(put(load_bundle(models / "linear" / "1")))
    assert faults(made) == {}
    publish_model(models, class_names=[f"other-{i}" for i in range(5)])
    assert "another class list" in faults(made)["prior linear/shop@1"]


def test_the_verb_exits_1_for_a_fault_and_2_for_an_unknown_flag(models, tmp_path):
    def run(*flags):
        command = [sys.executable, "-m", "service", "check", "--models", str(models), *flags]
        store = f"sqlite:///{tmp_path}/p.db"
        return subprocess.run(
            [*command, "--store", store, "--provider", "cpu"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )

    assert run().returncode == 0
    assert run("--default-model", "nope").returncode == 1
    misspelt = run("--defualt-model", "linear")
    assert misspelt.returncode == 2
    assert "did you mean '--default-model'?" in misspelt.stderr


def test_packages_that_a_setting_needs_and_a_store_to_read_from_are_looked_for(
    settings, monkeypatch
):
    assert faults(settings(grpc_port=9, traces=True)) == {}
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert "--grpc-port is 9, but grpc is not installed" in faults(settings(grpc_port=9))["gRPC"]
    made = settings(store_reads="postgresql://standby/priors")
    assert "--store-reads is only for a PostgreSQL store" in faults(made)["prior store"]


def test_more_threads_than_the_machine_has_are_found_by_doctor_too(settings):
    found = {
        subject: text
        for good, subject, text in doctor.examine(settings(intra_op_threads=1024))
        if good is False
    }
    assert "--intra-op-threads is 1024" in found["files and folders"]
