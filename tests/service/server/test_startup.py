"""Signals are handled from the first line of code on, and closed standard streams do no harm."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.process.exit_codes import FAILED
from service.server.startup import meaningless
from tests.support.eventually import eventually
from tests.support.server import READY, children, running, starting
from tests.support.small_models import inputs, publish_model

ROOT = Path(__file__).parents[3]
WAITS = """
import sys, threading
from service.server.startup import prepare_process
prepare_process()
print("prepared", flush=True)
threading.Event().wait(60)
"""


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def prepared():
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "prepared\n"
    yield process
    process.kill()
    process.communicate()


def test_signals_that_mean_nothing_end_nothing_and_are_told_once(prepared):
    everything = [*meaningless(), signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH, signal.SIGCHLD]
    for number in everything * 3:
        prepared.send_signal(number)
    reported = {prepared.stderr.readline() for _ in meaningless()}
    for name in ("SIGALRM", "SIGPROF", "SIGUSR2", "SIGRTMIN"):
        assert f"priordial: {name} is ignored; SIGTERM ends the service\n" in reported
    assert len(reported) == len(meaningless())
    prepared.send_signal(signal.SIGUSR1)
    assert "most recent call first" in prepared.stderr.readline()
    assert prepared.poll() is None


def test_a_signal_that_comes_early_ends_nothing(prepared):
    for _ in range(20):
        prepared.send_signal(signal.SIGHUP)
    prepared.send_signal(signal.SIGUSR1)
    assert "most recent call first" in prepared.stderr.readline()
    assert prepared.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_is_told_to_end_ends_at_once_and_in_order(prepared, number):
    prepared.send_signal(number)
    assert prepared.wait(30) == 0
    assert "Traceback" not in prepared.stderr.read()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_storm_of_signals_ends_nothing_before_and_after_the_start(models, workers):
    with starting(models, workers=workers) as server:
        eventually(lambda: _handles_signals(server.process.pid))
        storm([server.process.pid])
        server.wait_for(READY)
        storm([server.process.pid, *children(server.process.pid)])
        for _ in range(3):
            server.process.send_signal(signal.SIGTERM)
        assert server.exit() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_is_told_to_end_until_it_has_ended_ends_well(models, workers):
    """A signal while the interpreter ends would otherwise kill it, or hide a worker's status."""
    flags = ("--models", models, "--port", "0", "--provider", "cpu", "--workers", workers)
    store = ("--store", f"sqlite:///{models.parent}/p.db")
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve", *map(str, flags), *store],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        log = []
        while "ready on" not in "".join(log[-1:]):
            log.append(process.stderr.readline())
            assert log[-1], log
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)  # so that it gets on between two signals
        assert process.returncode == 0, process.stderr.read()


TO_ANOTHER_THREAD = """
import asyncio, signal, threading
from service.server.startup import on_signals

async def main():
    ended, idle = asyncio.Event(), threading.Event()
    on_signals({signal.SIGTERM: ended.set})
    other = threading.Thread(target=threading.Event().wait, daemon=True)
    other.start()
    selector = asyncio.get_running_loop()._selector
    select = selector.select

    def noted(timeout=None):
        if timeout is None:  # the loop waits for nothing but a signal
            idle.set()
        return select(timeout)

    selector.select = noted

    def send():
        idle.wait()
        signal.pthread_kill(other.ident, signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    await ended.wait()
    print("ended")

asyncio.run(main())
"""


def test_a_signal_that_the_system_gives_to_another_thread_wakes_an_idle_loop():
    done = subprocess.run(
        [sys.executable, "-c", TO_ANOTHER_THREAD],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def storm(pids):
    for _ in range(20):
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
            for pid in pids:
                os.kill(pid, number)


def _handles_signals(pid):
    """Whether the process is past its first line; before it, the interpreter itself starts."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt:"))[7:], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_service_whose_standard_streams_are_closed_serves(models, tmp_path, closed):
    script = f'exec "$@" {closed}'
    with running(models) as other:  # a free port that nobody else is given meanwhile
        port = int(other.url.rsplit(":", 1)[1])
    command = [
        "sh", "-c", script, "sh", sys.executable, "-m", "service", "serve",
        "--models", str(models), "--port", str(port), "--store", f"sqlite:///{tmp_path}/p.db",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PRIORDIAL_")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:

        def ready():
            assert process.poll() is None, "it has ended without a word"
            try:
                return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
            except httpx.HTTPError:
                return False

        assert eventually(ready, seconds=60)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_process_whose_processor_time_is_used_up_says_so_at_every_moment(prepared):
    prepared.send_signal(signal.SIGXCPU)
    assert "processor time" in prepared.stderr.readline()
    assert prepared.wait(60) == FAILED


def test_the_last_line_of_a_process_whose_processor_time_is_used_up_follows_its_log():
    script = (
        "from service.server.startup import prepare_process\n"
        "prepare_process()\n"
        "import logging, signal\n"
        "from service.observe.log import configure\n"
        "configure('text')\n"
        "for number in range(99):\n"
        "    logging.warning('line %d', number)\n"
        "signal.raise_signal(signal.SIGXCPU)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == FAILED
    *lines, last = done.stderr.splitlines()
    assert len(lines) == 99
    assert "processor time" in last


@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_whose_reader_stops_reading_holds_up_nobody(models, tmp_path, workers):
    """A pipe takes a page here and 64 KiB elsewhere; then each write waits for the reader."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    command = [
        sys.executable, "-m", "service", "serve", "--models", str(models), "--port", "0",
        "--store", f"sqlite:///{tmp_path}/p.db", "--workers", str(workers),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PRIORDIAL_")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=writing)
    os.close(writing)
    try:
        log = b""
        while not (found := re.search(rb'ready on (http://[^\s"]+)', log)):
            log += os.read(reading, 4096)
        with httpx.Client(base_url=found[1].decode(), timeout=30) as client:
            for number in range(1, 41):  # each is a line of the audit, which the loop writes
                stored = client.put("/priors/moved", json={"target": [1, 2, 3, 4, number]})
                assert stored.status_code in (200, 201)
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
                process.send_signal(number)
                body = {"instances": inputs(1).tolist()}
                assert client.post("/predict", json=body).status_code == 200
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
