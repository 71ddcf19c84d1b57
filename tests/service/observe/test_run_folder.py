"""The folder of a run goes with the run, however it ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.observe import run_folder
from service.observe.run_folder import hold, new_run, sweep

ROOT = Path(__file__).parents[3]
HOLDS = """
import sys
from service.observe.run_folder import new_run
with new_run() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_run_removes_its_folder_at_its_end(place):
    with new_run() as folder:
        assert folder.parent == place
        (folder / "worker-0").mkdir()
    assert list(place.iterdir()) == []


def test_the_folder_of_a_killed_run_goes_at_the_next_start_and_that_of_a_live_one_stays(place):
    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(place)},
        )
        return process, Path(process.stdout.readline().strip())

    (killed, dead), (other, alive) = start(), start()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert dead.is_dir()
        with new_run() as folder:
            assert {each.name for each in place.iterdir()} == {alive.name, folder.name}
    finally:
        for process in (killed, other):
            process.communicate()
    assert list(place.iterdir()) == []


def test_a_worker_that_outlives_its_supervisor_keeps_the_folder(place):
    folder = place / "priordial-run-x"
    folder.mkdir()
    lock = hold(folder)
    sweep(place)
    assert folder.is_dir()
    os.close(lock)
    sweep(place)
    assert not folder.exists()


def test_an_empty_folder_is_left_to_the_run_that_is_about_to_lock_it(place):
    folder = place / "priordial-run-new"
    folder.mkdir()
    sweep(place)
    assert folder.is_dir()
    os.utime(folder, (0, 0))
    sweep(place)
    assert not folder.exists()


def test_nothing_but_folders_of_runs_is_swept(place):
    (place / "priordial-run-link").symlink_to(place / "elsewhere")
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "lock").write_text("")
    (place / "other").mkdir()
    sweep(place)
    names = {each.name for each in place.iterdir()}
    assert names == {"priordial-run-link", "elsewhere", "other"}


def test_a_run_goes_on_without_a_folder_and_says_why(place, monkeypatch, caplog):
    def refuse(**_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.tempfile, "mkdtemp", refuse)
    with new_run() as folder:
        assert not folder.exists()
    assert "no folder for metrics can be made" in caplog.text
    assert "No space left on device" in caplog.text
