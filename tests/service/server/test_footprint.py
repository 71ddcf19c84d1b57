"""A serving process holds what its models need, and no more heaps than its threads can share."""

import subprocess
import sys

import psutil
import pytest

from tests.support import server as servers
from tests.support.server import ROOT, running
from tests.support.small_models import IMAGE_FIELDS, image_model, publish_model

HEAPS = """
import ctypes, re, sys, tempfile, threading
from service.process.machine import bound_heaps
if sys.argv[1] == "bounded":
    bound_heaps()
libc, together = ctypes.CDLL("libc.so.6"), threading.Barrier(5)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
def allocate():
    libc.malloc(100)
    together.wait()  # all are alive at once, so that none takes over the heap of one that has ended
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
together.wait()
with tempfile.NamedTemporaryFile() as dump:
    file = ctypes.c_void_p(libc.fopen(dump.name.encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    print(len(re.findall(rb"<heap ", dump.read())))
"""


@pytest.fixture(autouse=True)
def own_interpreter(monkeypatch):
    """A forked process would also hold what the one before it has imported."""
    monkeypatch.setattr(servers, "start_service", servers.command)


def libraries(pid: int) -> str:
    """The files that a process has mapped."""
    return " ".join(each.path for each in psutil.Process(pid).memory_maps())


def test_pillow_comes_with_a_model_that_takes_images_and_not_without_one(tmp_path):
    publish_model(tmp_path / "numbers")
    publish_model(tmp_path / "images", model=image_model(), **IMAGE_FIELDS)
    for models, has_pillow in (("numbers", False), ("images", True)):
        with running(tmp_path / models) as server:
            assert ("_imaging" in libraries(server.process.pid)) == has_pillow


def test_onnxruntime_keeps_no_record_for_its_maker(tmp_path):
    publish_model(tmp_path / "models")
    with running(tmp_path / "models") as server:
        found = psutil.Process(server.process.pid).open_files()
        assert [file.path for file in found if "onnxruntime" in file.path] == []
    program = (
        "import training.run.export, psutil; print(*(f.path for f in "
        "psutil.Process().open_files()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "onnxruntime" not in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_threads_share_two_heaps():
    assert heaps("bounded") == 2
    assert heaps("as usual") > 2


def heaps(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", HEAPS, how], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize("module", ["service.server.supervisor", "service.__main__"])
def test_the_supervisor_and_the_command_line_load_no_large_library(module):
    large = {"numpy", "pydantic", "sqlalchemy", "fastapi", "onnxruntime", "prometheus_client"}
    code = (
        f"import sys, {module} as tried; "
        "getattr(tried, 'make_parser', str)('priordial'); "
        f"sys.exit(', '.join({large!r} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr
