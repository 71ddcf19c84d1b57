"""An operator's mistake is refused at the start, or turns readiness red; it is never served
silently.
"""

import errno
import re
import signal
import socket

import httpx
import pytest

from service.process.listener import bind, listen
from service.process.machine import PortTaken
from tests.support.eventually import eventually
from tests.support.server import running, starting
from tests.support.small_models import publish_model


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


def readiness(url):
    answer = httpx.get(f"{url}/health/ready")
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        ({"default_model": "liner"}, 1, "--default-model is 'liner'.*did you mean 'linear'"),
        ({"models": "{}/modles"}, 1, "no such folder; did you mean '{}/models'"),
        ({"keys": "{}/nowhere"}, 1, "there is no such file"),
        ({"store": "sqlite:///{}/deep/nowhere/p.db"}, 1, "there is no folder '{}/deep/nowhere'"),
        ({"host": ""}, 2, "--host is empty"),
        ({"provider": "gpu"}, 2, "expected auto, cpu"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_mistake_stops_the_start_naming_what_came(models, settings, status, words, workers):
    folder = str(models.parent)
    given = {name: value.replace("{}", folder) for name, value in settings.items()}
    with starting(given.pop("models", models), workers=workers, **given) as server:
        assert server.exit() == status
        server.wait_for(words.replace("{}", folder))
        assert "Traceback" not in server.log


def test_an_unknown_variable_stops_the_start(models):
    with starting(models, environment={"PRIORDIAL_PROT": "9"}) as server:
        assert server.exit() == 2
        server.wait_for("PRIORDIAL_PROT is not a setting; did you mean 'PRIORDIAL_PORT'")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_without_models_is_not_ready_until_one_is_loaded(tmp_path, workers):
    folder = tmp_path / "mount"
    folder.mkdir()
    with running(folder, workers=workers) as server:
        assert "ready on http" not in server.log
        (said,) = re.findall(r"but not ready: (.*)", server.log)  # once, not by each worker
        assert said.startswith(f"no model is served from '{folder}'")
        assert f"priordial import FILE.onnx --name NAME --models {folder}" in said
        status, body = readiness(server.url)
        assert status == 503
        assert f"no model is served from '{folder}'" in body["reason"]
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        publish_model(folder)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: readiness(server.url)[0] == 200)
        assert server.terminate() == 0


def test_a_service_that_may_have_no_models_is_ready_without_any(tmp_path):
    with running(tmp_path / "nowhere", allow_no_models=True, default_model="later") as server:
        status, body = readiness(server.url)
        assert (status, body["status"]) == (200, "degraded")
        assert "the default model 'later' is not served" in body["reason"]
        assert server.terminate() == 0


def test_the_second_of_two_services_that_bound_one_port_says_so():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:
            listen(first, 8)
            with pytest.raises(
                PortTaken, match=f"127.0.0.1:{port}: Address already in use; choose"
            ):
                listen(second, 8)


@pytest.mark.parametrize("name", ["metrics_port", "grpc_port"])
def test_a_second_service_gets_no_port_that_the_workers_of_the_first_share(models, name):
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        first.listen()
        with starting(models, **{name: first.getsockname()[1]}) as server:
            assert server.exit() == 1
            server.wait_for(f"Address already in use; choose another --{name.replace('_', '-')}")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "a --grpc-port of at least 1024"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign"), "expected an address of this machine"),
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), "expected an address of this"),
    ],
)
def test_a_port_that_cannot_be_had_is_told_with_what_to_do(error, words):
    told = str(PortTaken("127.0.0.1", 80, error, flag="--grpc-port"))
    assert told.startswith("cannot listen on 127.0.0.1:80: ")
    assert words in told


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_serves_both_ports(models, host):
    with socket.socket(socket.AF_INET6) as taken:
        try:
            taken.bind(("::1", 0))
        except OSError:
            pytest.skip("optional: this machine has no IPv6")
        port = taken.getsockname()[1]
    with running(models, host=host, metrics_port=port) as server:
        assert server.url.startswith("http://[::1]:")
        assert readiness(server.url)[0] == 200
        scrape = httpx.get(f"http://[::1]:{port}/metrics")
        assert "priordial_build_info" in scrape.text
        assert server.terminate() == 0
