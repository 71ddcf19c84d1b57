"""Several processes share the port, the metrics and the models; one that ends is replaced
without effect on the others.
"""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from service.server import supervisor
from tests.support.eventually import eventually
from tests.support.server import children, metric, running, starting
from tests.support.small_models import inputs, publish_model

BODY = {"instances": inputs(1).tolist()}


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


def predicted(url):
    return metric(
        httpx.get(f"{url}/metrics").text, "priordial_predictions_total", decision="adjusted"
    )


def connections_of(pid):
    """Open sockets of a process, which may close a file while they are counted."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(link.readlink()).startswith("socket:")
    return found


def test_a_scrape_of_any_worker_counts_what_all_have_answered(models):
    with running(models, workers=3) as server:
        assert len(children(server.process.pid)) == 3
        for sent in range(1, 13):
            assert httpx.post(f"{server.url}/predict", json=BODY, timeout=30).status_code == 200
            assert predicted(server.url) == sent
        text = httpx.get(f"{server.url}/metrics", timeout=30).text
        assert metric(text, "priordial_model_info") == 1
        assert metric(text, "priordial_queued_rows") == 0
        assert server.terminate() == 0


def test_connections_are_shared_out_evenly(models):
    with running(models, workers=2) as server:
        pids = children(server.process.pid)
        before = {pid: connections_of(pid) for pid in pids}
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        clients = [socket.create_connection(address) for _ in range(40)]
        try:
            has = {}

            def all_accepted():
                has.update({pid: connections_of(pid) - before[pid] for pid in pids})
                return sum(has.values()) == len(clients)

            eventually(all_accepted)
            assert min(has.values()) >= 10
        finally:
            for client in clients:
                client.close()


def test_a_killed_worker_comes_back_and_its_counts_stay(models):
    with running(models, workers=2) as server:
        for _ in range(8):
            httpx.post(f"{server.url}/predict", json=BODY, timeout=30)
        first = children(server.process.pid)
        for number, victim in enumerate(first):
            # A lone request is counted after its answer, which the kill must not precede.
            eventually(lambda counted=8 + number: predicted(server.url) == counted)
            os.kill(victim, signal.SIGKILL)
            server.wait_for(rf"\(process {victim}\) has ended: killed by SIGKILL")
            assert httpx.post(f"{server.url}/predict", json=BODY, timeout=30).status_code == 200
        eventually(lambda: len(set(children(server.process.pid)) - set(first)) == 2)
        eventually(
            lambda: (
                metric(
                    httpx.get(f"{server.url}/metrics", timeout=30).text,
                    "priordial_worker_restarts_total",
                )
                == 2
            )
        )
        assert predicted(server.url) == 10
        assert server.terminate() == 0


def test_clients_of_the_other_worker_notice_nothing_when_one_is_killed(models):
    stop = threading.Event()
    failures = []

    def ask(url):
        """A new connection each time; only one that the killed worker held may fail, and it is
        tried again.
        """
        while not stop.is_set():
            answer = httpx.post(f"{url}/predict", json=BODY, timeout=30)
            if answer.status_code != 200:
                failures.append(answer.text)

    with running(models, workers=2) as server, ThreadPoolExecutor(4) as pool:
        # Workers accept only what they can serve, so connections made while one is dead go to the
        # other.
        victim = children(server.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        server.wait_for(rf"\(process {victim}\) has ended")
        asking = [pool.submit(ask, server.url) for _ in range(4)]
        try:
            eventually(
                lambda: (
                    metric(
                        httpx.get(f"{server.url}/metrics", timeout=30).text,
                        "priordial_worker_restarts_total",
                    )
                    == 1
                ),
                seconds=60,
            )
        finally:
            stop.set()  # else the pool would wait for them for ever
        for each in asking:
            each.result()
    assert failures == []


def test_a_worker_that_ends_again_and_again_is_started_with_longer_delays(models):
    with running(models, workers=2) as server:
        delays = []
        for _ in range(4):
            known = set(children(server.process.pid))
            victim = max(known)
            os.kill(victim, signal.SIGKILL)
            ended = server.wait_for(
                rf"worker (\d) \(process {victim}\) has ended: .*; the next one starts in (\S+) s"
            )
            delays.append((ended[1], float(ended[2])))
            eventually(lambda gone=victim: len(set(children(server.process.pid)) - {gone}) == 2)
        by_slot = {}
        for slot, delay in delays:
            by_slot.setdefault(slot, []).append(delay)
        for found in by_slot.values():
            assert found == sorted(set(found))
        assert server.terminate() == 0


def test_workers_end_when_their_supervisor_is_killed(models):
    with running(models, workers=2) as server:
        workers = children(server.process.pid)
        server.process.kill()
        server.process.wait()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_second_sigterm_does_not_wait_out_the_drain_delay(models):
    with running(models, workers=2, drain_seconds=600) as server:
        server.process.terminate()
        server.wait_for("draining for 600 s(?s:.*)draining for 600 s")
        ready = httpx.get(f"{server.url}/health/ready")
        assert ready.status_code == 503
        assert "draining" in ready.text
        assert httpx.post(f"{server.url}/predict", json=BODY, timeout=30).status_code == 200
        assert server.terminate() == 0


def test_sighup_loads_a_new_version_in_every_worker(models):
    with running(models, workers=2) as server:
        publish_model(models)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("(?s:version 2 is ready.*version 2 is ready)")
        for _ in range(8):
            assert eventually(
                lambda: (
                    httpx.post(f"{server.url}/predict", json=BODY, timeout=30).json()["version"]
                    == 2
                )
            )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"provider": "cuda"}, "provider cuda does not work here"),
        ({"store": "sqlite:////proc/nowhere/priors.db"}, "the store of priors is unavailable"),
        ({"store": "mysql://somewhere"}, "mysql"),
    ],
)
def test_what_would_stop_every_worker_stops_the_start_with_that_message(models, settings, words):
    with starting(models, workers=2, **settings) as server:
        assert server.exit() == 1
        last = server.log.splitlines()[-1]
        assert last.startswith("priordial: ")
        assert words in last
        assert server.log.count("priordial: ") == 1


def test_a_folder_of_which_no_model_can_be_served_stops_the_start(models):
    (models / "linear" / "1" / "model.onnx").write_bytes(b"not a graph")
    for workers in (1, 2):
        with starting(models, workers=workers) as server:
            assert server.exit() == 1
            assert "priordial: no model can be served" in server.log.splitlines()[-1]


@pytest.mark.parametrize("other_serves", [True, False])
def test_a_worker_that_cannot_start_ends_the_start_unless_another_serves(other_serves):
    async def keep():
        tried = []

        async def serve(_slot, _replaces):
            tried.append(None)
            if len(tried) == 6:
                made._leaving.set()
            return supervisor._Ending("could not be started: no descriptors")

        async def pause(_seconds):
            pass

        made = supervisor._Supervisor.__new__(supervisor._Supervisor)
        made._announced, made._leaving = False, asyncio.Event()
        made._workers = {1: SimpleNamespace(listens_at=1.0)} if other_serves else {}
        made._serve, made._pause = serve, pause
        await made._keep(0)

    if other_serves:
        asyncio.run(keep())
    else:
        with pytest.raises(supervisor.WillNotStart, match="worker 0 could not be started"):
            asyncio.run(keep())
