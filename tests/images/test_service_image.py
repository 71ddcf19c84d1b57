"""The service's image in a real Docker engine, as its documents run it."""

import contextlib
import http.client
import io
import json
import shutil
import socket
import subprocess
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.images.conftest import COMPOSE
from tests.images.engine import ROOT, Container, docker, run
from tests.service.console.conftest import CHROMIUM
from tests.support.eventually import eventually
from tests.support.server import metric
from tests.support.small_models import publish_model

SHIRT = ROOT / "examples" / "shirt.png"
pytestmark = pytest.mark.timeout(2400)  # the first test builds the image


def classify(container, **parameters):
    """The label of the picture in the README."""
    with SHIRT.open("rb") as picture:
        answer = httpx.post(
            f"{container.url}/predict", params=parameters, files={"image": picture}, timeout=30
        )
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]["label"]


PROCESSES = """
import json, pathlib
found = {}
for each in pathlib.Path("/proc").glob("[0-9]*/stat"):
    command = each.with_name("cmdline").read_bytes().replace(b"\\0", b" ").decode()
    found[each.parent.name] = [each.read_text().rpartition(")")[2].split()[0], command]
print(json.dumps(found))
"""


def processes(container):
    """The state and the command of each process in the container, by pid."""
    return {int(pid): found for pid, found in json.loads(container.python(PROCESSES)).items()}


def serving(container, word="priordial"):
    """The pids of the processes of the service that have not ended."""
    return sorted(
        pid
        for pid, (state, command) in processes(container).items()
        if state != "Z" and (word in command or "service.server.worker" in command)
    )


def documented():
    """The command that runs the image, from the page on deployment."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (line,) = (each.strip() for each in text.splitlines() if each.startswith("    docker run"))
    return line


def test_the_commands_of_the_documents_serve_the_shipped_models(image):
    line = documented()
    assert f"#   {line}\n" in (ROOT / "deploy/Dockerfile.service").read_text(encoding="utf-8")
    name = f"priordial-test-{uuid.uuid4().hex[:12]}"
    words = line.replace(":8000:8000", "::8000").replace("priordial:/data", f"{name}:/data").split()
    at = words.index("priordial")
    docker(*words[1:at], "-d", "--name", name, image, *words[at + 1 :])
    try:
        container = Container(name)
        container.ready()
        assert classify(container, tau=0) == "t-shirt"
        assert classify(container, tau=1) == "shirt"
        prior = {"target": "uniform"}
        assert httpx.put(f"{container.url}/priors/shop", json=prior, timeout=30).is_success
    finally:
        run("rm", "--force", name)
    docker("run", "-d", "--name", name, *words[2:at], image, *words[at + 1 :])
    try:
        container = Container(name)
        container.ready()
        assert httpx.get(f"{container.url}/priors/shop", timeout=30).json()["revision"] == 1
    finally:
        run("rm", "--force", name)
        run("volume", "rm", name)


def test_it_becomes_healthy(start):
    container = start()
    eventually(lambda: container.state["Health"]["Status"] == "healthy", seconds=90)


def test_the_console_shows_the_models(start):
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed (Debian: chromium)")
    container = start()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{container.url}/#/try?model=fashion")
        page.wait_for_selector(".verdict")
        assert "fashion" in page.inner_text("body")
        browser.close()
    assert faults == []


def test_its_user_is_not_root_and_can_write_nothing_but_the_volume(image):
    whole = (ROOT / "deploy/writable.py").read_text(encoding="utf-8")
    (line,) = (each for each in whole.splitlines() if each.startswith("docker run"))
    words = line.split(" - <")[0].replace("priordial-service:0.1.0", image).split()
    done = run(*words[1:], "-", stdin=whole)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.startswith("0 paths")
    assert docker("run", "--rm", "--entrypoint", "id", image, "-u").strip() == "10001"


def test_it_has_neither_torch_nor_a_compiler_nor_the_tests(image):
    program = (
        "import importlib.util, shutil\n"
        "print([n for n in ('torch', 'pytest', 'tests') if importlib.util.find_spec(n)],"
        " [n for n in ('cc', 'gcc', 'make') if shutil.which(n)])"
    )
    entry = ("run", "--rm", "-i", "--entrypoint", "python", image, "-")
    assert docker(*entry, stdin=program).strip() == "[] []"


def test_it_serves_on_a_read_only_root_without_capabilities_as_any_user(start):
    container = start(
        *("--read-only", "--tmpfs", "/tmp:size=64m,mode=1777", "--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges:true", "--user", "12345:12345"),
        *("-e", "PRIORDIAL_STORE=sqlite:////tmp/priordial.db"),
    )
    assert classify(container) == "shirt"


def test_a_store_that_the_user_may_not_write_is_named_with_what_to_do(start):
    container = start("--user", "12345:12345", ready=False)
    status = int(docker("wait", container.name).strip())
    assert status == 1
    assert "check its owner, folder and disk" in container.log.splitlines()[-1]
    assert "'/data/priordial.db'" in container.log.splitlines()[-1]


def test_every_line_of_its_log_is_json(start):
    container = start()
    classify(container)
    docker("stop", container.name)
    lines = [json.loads(line) for line in container.log.splitlines()]
    assert {"log", "request"} <= {line["event"] for line in lines}


def test_a_stop_answers_the_request_in_progress_and_ends_with_status_0(start):
    container = start()
    host, _, port = container.url.removeprefix("http://").partition(":")
    body = json.dumps({"instances": [[[[0] * 28] * 28]]}).encode()
    head = (
        "POST /models/fashion/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + body[:100])
        eventually(lambda: container.answers("/health/live"))
        stopping = threading.Thread(target=docker, args=("stop", "--time", 60, container.name))
        stopping.start()
        eventually(lambda: "draining" in container.log)
        connection.sendall(body[100:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    stopping.join()
    assert container.state["ExitCode"] == 0
    assert not container.state["OOMKilled"]


@pytest.mark.parametrize("workers_wanted", [1, 2])
def test_a_container_that_was_paused_for_longer_than_a_hang_goes_on(start, workers_wanted):
    flags = ("--workers", workers_wanted, "--hang-seconds", 1)
    container = start(command=("demo", "--allow-anonymous", *flags))
    before = serving(container)
    docker("pause", container.name)
    subprocess.run(["sleep", "3"], check=True)  # real time must pass while nothing runs
    docker("unpause", container.name)
    assert classify(container) == "shirt"
    assert serving(container) == before
    assert "made no progress" not in container.log
    docker("stop", container.name)
    assert container.state["ExitCode"] == 0


def test_a_hangup_loads_the_models_that_were_published_since(start, tmp_path):
    tmp_path.chmod(0o755)
    models = tmp_path / "models"
    shutil.copytree(ROOT / "models" / "digits", models / "digits")
    container = start(
        "-v", f"{models}:/models:ro", command=("serve", "--allow-anonymous", "--workers", 2)
    )
    publish_model(models, "linear")
    docker("kill", "--signal", "HUP", container.name)
    eventually(lambda: container.answers("/models/linear"), seconds=60)
    assert container.state["Running"]


def test_a_full_tmp_is_reported_and_answers_go_on(start):
    container = start(
        "--tmpfs",
        "/tmp:size=256k,mode=1777",
        command=(
            "demo",
            "--allow-anonymous",
            "--workers",
            2,
        ),
    )
    assert classify(container) == "shirt"
    container.exec("sh", "-c", "cat /dev/zero > /tmp/filler 2>/dev/null || true")
    for tau in range(8):
        assert classify(container, tau=tau) in ("shirt", "t-shirt")
    assert httpx.get(f"{container.url}/metrics", timeout=30).status_code == 200
    docker("stop", container.name)
    assert container.state["ExitCode"] == 0


def test_a_limit_of_processes_is_enough_and_one_that_is_not_is_named(start):
    limits = ("--pids-limit", "64")
    container = start(*limits, command=("demo", "--allow-anonymous", "--workers", 2))
    assert classify(container) == "shirt"
    small = start("--pids-limit", "3", ready=False)
    assert docker("wait", small.name).strip() == "1"
    assert "process" in small.log.lower() or "thread" in small.log.lower()


def test_a_killed_worker_is_replaced_and_no_zombie_stays(start):
    """Process 1 of a container gets the orphans of all others; `--init` makes it reap them."""
    assert " --init " in documented()
    assert COMPOSE["services"]["service"]["init"]
    container = start("--init", command=("demo", "--allow-anonymous", "--workers", 2))

    def workers():
        return serving(container, word="service.server.worker")

    victim, other = workers()
    container.exec("sh", "-c", f"kill -9 {victim}")
    eventually(lambda: len(workers()) == 2 and victim not in workers(), seconds=60)
    assert other in workers()
    container.exec("sh", "-c", "(sh -c 'exit 3' &) ; exit 0")
    eventually(lambda: all(state != "Z" for state, _ in processes(container).values()), seconds=30)
    container.ready()

    def restarts():
        text = httpx.get(f"{container.url}/metrics", timeout=30).text
        return metric(text, "priordial_worker_restarts_total", reason="killed")

    assert eventually(restarts) == 1
    docker("stop", container.name)
    assert container.state["ExitCode"] == 0


def large_bodies():
    """Bodies that take much memory: the largest array, a valid one, and a picture of 49 million
    pixels.
    """
    for shape, kind in (((19_000, 1, 28, 28), np.float32), ((2048, 1, 28, 28), np.float64)):
        file = io.BytesIO()
        np.save(file, np.zeros(shape, kind))
        yield "application/x-npy", file.getvalue()
    file = io.BytesIO()
    Image.new("RGBA", (7000, 7000), (1, 2, 3)).save(file, "PNG")
    yield "image/png", file.getvalue()


def test_large_bodies_of_many_clients_do_not_exhaust_512_mib(start):
    container = start("--memory", "512m", "--memory-swap", "512m")
    address = container.url.removeprefix("http://")

    def post(kind, body):
        connection = http.client.HTTPConnection(address, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", "/models/fashion/predict", body, {"content-type": kind})
            return connection.getresponse().status

    for kind, body in large_bodies():
        with ThreadPoolExecutor(16) as clients:
            statuses = set(clients.map(lambda _, k=kind, b=body: post(k, b), range(32)))
        assert statuses <= {200, 413, 422, 429, 504}
        assert not container.state["OOMKilled"]
    assert container.state["Running"]
    assert classify(container) == "shirt"
