"""A faulty machine costs at most a worker or part of the metrics; the service keeps running and
reports the fault.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from service.api.edge.keys import make_key
from service.process.exit_codes import FAILED
from service.server import serving
from service.settings import Settings
from tests.support.eventually import eventually
from tests.support.server import READY, ROOT, children, metric, running, starting
from tests.support.small_models import inputs, publish_model

BODY = {"instances": inputs(1).tolist()}


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def small_disk():
    """A file system of one MiB; skips where none can be mounted."""
    with tempfile.TemporaryDirectory(prefix="disk-", ignore_cleanup_errors=True) as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=False)


def fill(disk):
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def predict(url, count=1):
    """The statuses of some predictions, each on a connection of its own."""
    return [httpx.post(f"{url}/predict", json=BODY, timeout=30).status_code for _ in range(count)]


def highest_descriptor(pid):
    return max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())


def ready(url):
    return httpx.get(f"{url}/health/ready", timeout=30).json()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_under_the_metrics_ends_nothing_and_is_told(models, small_disk, workers):
    with running(models, environment={"TMPDIR": str(small_disk)}, workers=workers) as server:
        fill(small_disk)
        publish_model(models, "second")
        load = f"{server.url}/v2/repository/models/second/load"
        assert httpx.post(load, timeout=60).status_code == 200, "its metrics need new pages"
        for model in ("linear", "second"):
            url = f"{server.url}/models/{model}/predict"
            answers = [httpx.post(url, json=BODY, timeout=30) for _ in range(8)]
            assert {each.status_code for each in answers} == {200}
        assert httpx.get(f"{server.url}/metrics", timeout=30).status_code == 200
        found = ready(server.url)
        assert found["status"] == "degraded"
        assert "metrics are kept in memory only" in found["reason"]
        assert "No space left on device" in found["reason"]
        assert server.process.poll() is None
        assert server.terminate() == 0


def test_a_service_starts_on_a_full_disk(models, small_disk):
    fill(small_disk)
    with running(models, environment={"TMPDIR": str(small_disk)}, workers=2) as server:
        assert predict(server.url, 4) == [200] * 4
        assert server.terminate() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_was_stopped_for_longer_than_a_hang_goes_on(models, workers):
    with running(models, workers=workers, hang_seconds=1) as server:
        before = [server.process.pid, *children(server.process.pid)]
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        frozen = subprocess.Popen(["sleep", "3"])  # real time must pass while nothing runs
        frozen.wait()
        for pid in before:
            os.kill(pid, signal.SIGCONT)
        assert predict(server.url, 4) == [200] * 4
        assert [server.process.pid, *children(server.process.pid)] == before
        assert "made no progress" not in server.log
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        assert server.terminate() == 0


def test_a_replacement_that_cannot_be_started_is_tried_again_while_the_others_serve(models):
    with running(models, workers=2) as server:
        pid = server.process.pid
        victim, other = children(pid)
        open_files = highest_descriptor(pid) + 1
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files - 2, hard))
        os.kill(victim, signal.SIGKILL)
        server.wait_for(r"could not be started: .*Too many open files(?s:.*)could not be started")
        assert predict(server.url, 4) == [200] * 4
        assert Path(f"/proc/{other}").exists()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, hard))
        eventually(lambda: len(children(pid)) == 2, seconds=60)

        def restarts():
            text = httpx.get(f"{server.url}/metrics", timeout=30).text
            return metric(text, "priordial_worker_restarts_total", reason="killed")

        assert eventually(restarts, seconds=60) == 1
        assert server.terminate() == 0


def test_a_report_of_faults_of_megabytes_fails_its_own_load_only(models):
    """Each of 20,000 counts of zero is a fault with a line of its own."""
    with running(models, workers=2) as server:
        folder = models / "big" / "1"
        folder.mkdir(parents=True)
        counts = ",".join(["0"] * 20_000)
        (folder / "model.json").write_text(f'{{"class_counts": [{counts}]}}')
        (folder / "model.onnx").write_bytes(b"")
        repository = f"{server.url}/v2/repository/models"
        for _ in range(2):
            refused = httpx.post(f"{repository}/big/load", timeout=60)
            assert refused.status_code == 422
        for _ in range(4):
            assert httpx.post(f"{repository}/linear/load", timeout=60).status_code == 200
        assert len(children(server.process.pid)) == 2
        assert "has ended" not in server.log
        assert server.terminate() == 0


def test_without_descriptors_connections_are_refused_and_taken_again_later(models):
    with running(models) as server:
        pid = server.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        lowest = highest_descriptor(pid) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, hard))
        clients = [httpx.Client(base_url=server.url) for _ in range(4)]
        with contextlib.suppress(httpx.HTTPError):
            for client in clients:
                client.get("/health/live", timeout=0.5)
        server.wait_for("cannot accept a connection: Too many open files; trying again")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, hard))
        for client in clients:
            client.close()
        assert predict(server.url, 4) == [200] * 4
        assert server.terminate() == 0


def test_a_killed_service_leaves_a_folder_that_the_next_start_removes(models, tmp_path):
    place = tmp_path / "tmp"
    place.mkdir()
    environment = {"TMPDIR": str(place)}
    with running(models, environment=environment, workers=2) as server:
        workers = children(server.process.pid)
        server.process.kill()
        server.process.wait()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    (left,) = place.glob("priordial-run-*")
    with running(models, environment=environment) as server:
        assert left not in set(place.glob("priordial-run-*"))
        assert server.terminate() == 0
    assert list(place.glob("priordial-run-*")) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_that_cannot_hold_metrics_at_the_start_is_told_in_readiness(
    models, tmp_path, workers
):
    """Like a read-only root without a writable /tmp: the interpreter finds no place for files."""
    script = (
        "import sys, tempfile\n"
        "def nowhere():\n"
        "    raise FileNotFoundError(2, 'No usable temporary directory found')\n"
        "tempfile.gettempdir = nowhere\n"
        "from service import __main__\n"
        "sys.exit(__main__.main(sys.argv[1:]))\n"
    )
    program = tmp_path / "nowhere.py"
    program.write_text(script)
    with starting(
        models,
        workers=workers,
        program=("nowhere",),
        environment={"PYTHONPATH": str(tmp_path)},
    ) as server:
        server.url = server.wait_for(r"ready on (http://[^\s\"]+)")[1]
        assert "no folder for metrics can be made" in server.log
        assert predict(server.url, 2) == [200, 200]
        reason = ready(server.url)["reason"]
        assert "metrics are kept in memory only, because no folder for them can be made" in reason
        assert "no-folder" not in reason + server.log, "the stand-in for the folder is not shown"
        text = httpx.get(f"{server.url}/metrics").text
        if workers == "1":  # of two, each shows its own
            assert metric(text, "priordial_predictions_total", decision="adjusted") == 2
        assert server.terminate() == 0


def test_a_wall_clock_that_jumps_back_and_forth_changes_nothing_but_time_stamps(models, tmp_path):
    jump = tmp_path / "jump"
    jump.write_text("0")
    keys = tmp_path / "keys"
    secret, key = make_key("one", ["predict", "operate"], per_second=1000)
    keys.write_text(key.line())
    settings = {"keys": keys, "hang_seconds": 2, "measure_loop_turns": True}
    environment = {"JUMP_FILE": str(jump)}
    program = ("tests.support.jumping_server",)
    with (
        running(models, program=program, environment=environment, **settings) as server,
        httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {secret}"}, timeout=30
        ) as client,
    ):
        expected = client.post("/predict", json=BODY).json()
        days = 86_400
        for number, seconds in enumerate((0, 400 * days, -400 * days, 3, 0), 1):
            jump.write_text(str(seconds))
            soon = {"X-Request-Timeout-Ms": "20000"}
            for _ in range(20):
                answer = client.post("/predict", json=BODY, headers=soon)
                assert (answer.status_code, answer.json()) == (200, expected)
            prior = {"target": [1, 2, 3, 4, number]}
            stored = client.put("/priors/moved", json=prior)
            assert stored.status_code in (200, 201)
            assert stored.json()["revision"] == number
            revisions = client.get("/priors/moved/revisions").json()["revisions"]
            assert [each["revision"] for each in revisions] == [*range(number, 0, -1)]
            answer = client.post("/predict?prior=moved", json=BODY).json()
            assert answer["prior"] == {"name": "moved", "revision": number}
            assert client.get("/health/live").status_code == 200
            assert ready(server.url)["status"] == "ready"
            text = client.get("/metrics").text
            assert metric(text, "priordial_prior_revision", prior="moved") == number
        assert server.process.poll() is None
        assert "Traceback" not in server.log
        assert server.terminate() == 0


def test_a_request_for_which_no_memory_is_left_is_answered_and_the_others_are_served(models):
    with running(models) as server:
        pid = server.process.pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        room = 24 * 2**20
        resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))
        large = httpx.post(f"{server.url}/predict", content=b" " * (60 * 2**20), timeout=60)
        assert (large.status_code, large.headers["retry-after"]) == (503, "1")
        assert "no memory left" in large.json()["detail"]
        assert httpx.post(f"{server.url}/predict", json=BODY, timeout=60).status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_without_processor_time_answers_its_last_requests_and_says_why_it_ends(
    models, workers
):
    """The limit counts from the start of a process, so it is set when its use is known."""
    with running(models, workers=workers) as server:
        hard = set()
        for pid in children(server.process.pid) if workers > 1 else [server.process.pid]:
            clock = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            used = (int(clock[11]) + int(clock[12])) // os.sysconf("SC_CLK_TCK")
            resource.prlimit(pid, resource.RLIMIT_CPU, (used + 1, used + 60))
            hard.add(f"used up (hard limit {used + 60} s)")
        statuses = set()
        with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=60) as client:
            while "processor time" not in server.log:
                statuses.add(client.post(f"{server.url}/predict", json=BODY).status_code)
        assert statuses <= {200, 503}
        assert any(each in server.log for each in hard)
        if workers == 1:
            assert server.exit() == FAILED
        else:
            server.wait_for("has ended: exit status 1; the next one starts")
            assert eventually(lambda: predict(server.url) == [200])


def test_a_limit_on_the_size_of_files_is_told_at_the_start_and_where_it_is_met(models, tmp_path):
    log = tmp_path / "log"
    command = ["prlimit", "--fsize=65536", sys.executable, "-m", "service", "serve"]
    flags = ["--models", str(models), "--port", "0", "--store", f"sqlite:///{tmp_path}/p.db"]
    with log.open("w") as stderr:
        process = subprocess.Popen([*command, *flags], stderr=stderr, cwd=ROOT)
    try:
        url = eventually(lambda: READY.search(log.read_text()), seconds=60)[1]
        assert "limits each file of this process to 65536 bytes" in log.read_text()
        refused = None
        for number in range(200):
            body = {"target": [1, 2, 3, 4, 5 + number], "note": "x" * 1900}
            answer = httpx.put(f"{url}/priors/default", json=body, timeout=30)
            refused = answer if answer.status_code == 503 else refused
        assert refused is not None
        assert "(full)" in refused.json()["detail"]
        assert "ulimit -f" in refused.json()["detail"]
        assert eventually(lambda: "log lines are lost" in str(ready(url)), seconds=30)
        assert predict(url) == [200]
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_a_start_without_threads_names_the_limit_and_another_error_keeps_its_traceback(
    monkeypatch, capfd
):
    def failing(message):
        async def alone(*_):
            raise RuntimeError(message)

        return alone

    monkeypatch.setattr(serving, "bound_heaps", lambda: None)
    monkeypatch.setattr(serving, "_alone", failing("can't start new thread"))
    with socket.socket() as listener:
        assert serving.serve_alone(Settings(), listener) == FAILED
        last = capfd.readouterr().err.splitlines()[-1]
        assert "raise its limit of processes and threads" in last
        monkeypatch.setattr(serving, "_alone", failing("another"))
        with pytest.raises(RuntimeError, match="another"):
            serving.serve_alone(Settings(), listener)
