"""The service behind any ASGI server: it starts, answers, drains and stops, and leaves the process
alone.
"""

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from service.api.edge.access import ExposedWithoutKeys
from service.api.edge.keys import make_key
from service.repository.repository import Repository
from service.server import create_app
from service.server.assembly.service import NothingToServe
from service.settings import InvalidSetting, Settings
from tests.support.eventually import eventually
from tests.support.small_models import inputs, publish_model

ROOT = Path(__file__).parents[3]
BODY = {"instances": inputs(2).tolist()}
COMMANDS = {
    "uvicorn": ("uvicorn", "--factory", "service.server:create_app", "--fd", "{}"),
    "hypercorn": ("hypercorn", "service.server:create_app()", "--bind", "fd://{}"),
}


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def settings(models, tmp_path):
    return Settings(models=models, store=f"sqlite:///{tmp_path}/p.db", provider="cpu")


@contextlib.contextmanager
def served_by(server, environment, folder):
    """A real ASGI server on a socket of ours; its process, its URL and its log."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        descriptor = listener.fileno()
        command = [part.format(descriptor) for part in COMMANDS[server]]
        log = folder / "log"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PRIORDIAL_")}
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stderr=stderr,
                stdout=subprocess.DEVNULL,
                pass_fds=[descriptor],
                cwd=ROOT,
                env={**inherited, **environment, "TMPDIR": str(folder)},
            )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield process, url, log
        finally:
            process.kill()
            process.wait()


def is_ready(process, url, log):
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("server", COMMANDS)
def test_an_asgi_server_starts_serves_and_stops_it(server, models, tmp_path):
    environment = {
        "PRIORDIAL_MODELS": str(models),
        "PRIORDIAL_STORE": f"sqlite:///{tmp_path}/p.db",
        "PRIORDIAL_PROVIDER": "cpu",
    }
    with served_by(server, environment, tmp_path) as (process, url, log):
        eventually(lambda: is_ready(process, url, log), seconds=90)
        answer = httpx.post(f"{url}/predict?top_k=2", json=BODY, timeout=30)
        assert answer.status_code == 200
        assert len(answer.json()["predictions"]) == 2
        raised = httpx.put(
            f"{url}/priors", json={"target": {"class-0": 1}, "others": 0}, timeout=30
        )
        assert raised.status_code in (200, 201), raised.text
        assert httpx.post(f"{url}/predict", json=BODY, timeout=30).json()["prior"]["revision"] == 1
        assert "priordial_predictions_total" in httpx.get(f"{url}/metrics", timeout=30).text
        assert len(list(tmp_path.glob("priordial-run-*"))) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM), log.read_text()
        assert list(tmp_path.glob("priordial-run-*")) == [], "the lifespan has ended in order"


def test_a_start_that_fails_ends_the_server_with_the_reason(tmp_path):
    environment = {"PRIORDIAL_MODELS": str(tmp_path / "nowhere")}
    with served_by("uvicorn", environment, tmp_path) as (process, _url, log):
        assert process.wait(60) != 0
        assert "there is no such folder" in log.read_text()


def run(app, *requests, server=("127.0.0.1", 8000)):
    """Start the application, send requests to it, stop it; the answers."""

    async def go():
        await app.start()
        try:
            return [await send(app, *request, server=server) for request in requests]
        finally:
            await app.stop()

    return asyncio.run(go())


async def send(app, method, path, body=b"", **scope):
    """The status and the JSON of one request through the ASGI interface."""
    sent = await messages_of(app, method, path, body, **scope)
    content = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(content)


async def messages_of(
    app, method, path, body=b"", *, headers=(), server=("127.0.0.1", 8000), version="1.1"
):
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def take(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": version,
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"x"), *headers],
        "server": server,
        "client": ("127.0.0.1", 1),
        "state": {},
    }
    await app(scope, receive, take)
    return sent


def test_a_stopped_application_can_be_started_again(settings):
    app = create_app(settings)
    for _ in range(2):
        ((status, _),) = run(app, ("GET", "/health/ready"))
        assert status == 200


def test_a_second_start_is_refused_and_leaves_the_first_as_it_is(settings):
    app = create_app(settings)

    async def go():
        first = asyncio.create_task(app.start())
        await asyncio.sleep(0)  # the first has begun, and is not done
        with pytest.raises(RuntimeError, match="started already"):
            await app.start()
        await first
        with pytest.raises(RuntimeError, match=r"await stop\(\) first"):
            await app.start()
        answered, _ = await send(app, "GET", "/health/ready")
        await app.stop()
        return answered

    assert asyncio.run(go()) == 200
    ((status, _),) = run(app, ("GET", "/health/ready"))
    assert status == 200


def test_the_threads_of_a_stopped_application_end(settings):
    """Python ends while none of them is in compiled code, which could abort the process."""
    before = set(threading.enumerate())

    def own():
        names = {each.name for each in set(threading.enumerate()) - before}
        return {name for name in names if not name.startswith(("asyncio", "encoder"))}

    app = create_app(settings)
    started = []

    async def go():
        await app.start()
        started.extend(own())
        await app.stop()

    asyncio.run(go())
    assert {"drift", "history", "tracking", "shift"} <= set(started)
    assert not own() & {"drift", "history", "tracking", "shift"}, "stop() waits for these"
    eventually(lambda: not own())


def test_an_application_that_drains_is_not_ready_and_still_answers(settings):
    app = create_app(settings)

    async def go():
        await app.start()
        app.drain()
        found = await send(app, "GET", "/health/ready"), await send(app, "GET", "/models")
        await app.stop()
        return found

    (not_ready, reason), (answered, _) = asyncio.run(go())
    assert (not_ready, reason["reason"]) == (503, "draining")
    assert answered == 200


@pytest.mark.parametrize(("version", "expected"), [("1.1", True), ("2", False), ("3", False)])
def test_a_draining_application_closes_connections_where_the_protocol_allows_the_header(
    settings, version, expected
):
    app = create_app(settings)

    async def go():
        await app.start()
        app.drain()
        sent = await messages_of(app, "GET", "/models", version=version)
        await app.stop()
        return dict(sent[0]["headers"])

    headers = {name.lower() for name in asyncio.run(go())}
    assert (b"connection" in headers) is expected
    assert b"x-request-id" in headers


def test_without_its_lifespan_it_says_what_is_missing(settings):
    status, problem = asyncio.run(send(create_app(settings), "GET", "/health/ready"))
    assert status == 503
    assert "must run the application's lifespan" in problem["detail"]


@pytest.mark.parametrize("server", [("10.0.0.5", 8000), ("0.0.0.0", 8000), None])
def test_without_keys_only_this_machine_is_answered_whatever_the_server_binds(settings, server):
    ((status, problem),) = run(create_app(settings), ("GET", "/models"), server=server)
    assert status == 403
    assert "has no API keys" in problem["detail"]


@pytest.mark.parametrize("server", [("127.0.0.1", 80), ("::1", 80), ("/run/service.sock", None)])
def test_without_keys_loopback_and_unix_sockets_are_answered(settings, server):
    ((status, _),) = run(create_app(settings), ("GET", "/models"), server=server)
    assert status == 200


def test_keys_and_a_wish_for_none_open_the_service_to_others(settings, models, tmp_path):
    secret, key = make_key("shop", ["predict", "observe"])
    given = {"models": models, "store": settings.store, "provider": "cpu"}
    held = create_app(Settings(**given, api_keys=key.line()))
    bearer = [(b"authorization", b"Bearer " + secret.encode())]

    async def go():
        await held.start()
        found = [
            await send(held, "GET", "/metrics-not-there", headers=bearer, server=("10.0.0.5", 80)),
            await send(held, "POST", "/predict", b"{}", server=("10.0.0.5", 80)),
        ]
        await held.stop()
        return found

    (with_key, _), (without, _) = asyncio.run(go())
    assert (with_key, without) == (404, 401)
    everybody = create_app(Settings(**given, allow_anonymous=True))
    ((status, _),) = run(everybody, ("GET", "/models"), server=("10.0.0.5", 80))
    assert status == 200


@pytest.mark.parametrize("port", ["metrics_port", "grpc_port"])
def test_a_port_of_its_own_is_not_bound_for_others_without_keys(settings, port):
    given = dataclasses.replace(settings, host="0.0.0.0", **{port: 1})
    with pytest.raises(ExposedWithoutKeys):
        asyncio.run(create_app(given).start())


def test_it_changes_nothing_of_the_process(settings):
    def state():
        handlers = [
            signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        ]
        root = logging.getLogger()
        return (
            handlers,
            sys.getswitchinterval(),
            gc.get_threshold(),
            gc.get_freeze_count(),
            root.handlers[:],
            root.level,
        )

    before = state()
    run(create_app(settings), ("GET", "/models"))
    assert state() == before


def test_settings_come_from_the_environment_and_are_checked(monkeypatch, models, tmp_path):
    monkeypatch.setenv("PRIORDIAL_MODELS", str(models))
    assert create_app().settings.models == models
    monkeypatch.setenv("PRIORDIAL_MODLES", "x")
    with pytest.raises(InvalidSetting, match="PRIORDIAL_MODLES"):
        create_app()


def test_a_start_that_fails_leaves_nothing_behind(settings, models, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (models / "linear" / "1" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(NothingToServe):
        asyncio.run(create_app(settings).start())
    assert list(tmp_path.glob("priordial-run-*")) == []


def test_a_websocket_is_refused(settings):
    sent = []

    async def take(message):
        sent.append(message)

    asyncio.run(create_app(settings)({"type": "websocket"}, None, take))
    assert sent == [{"type": "websocket.close", "code": 1003}]


def test_an_order_that_another_worker_could_not_carry_out_is_503_and_can_be_tried_again(
    settings, monkeypatch
):
    from service.repository.order_book import OtherWorkerFailed

    async def failing(_self, name, **_by):
        raise OtherWorkerFailed(f"this worker could load '{name}' and another could not")

    monkeypatch.setattr(Repository, "load", failing)
    path = "/v2/repository/models/linear/load"
    ((status, problem),) = run(create_app(settings), ("POST", path))
    assert status == 503
    assert problem["type"] == "/problems/unavailable"
    assert "another could not" in problem["detail"]
