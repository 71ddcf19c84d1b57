"""Starts `python -m NAME …` in a fraction of the time, for tests that need many processes.

The service's imports take two seconds of processor time. One process pays them, and each program is
forked from it, with an environment, a folder and a stderr of its own. The start of the interpreter
is not repeated, so tests of the start itself run a command (tests/service/server/test_startup.py).
"""

import atexit
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing import forkserver, get_context, reduction
from pathlib import Path
from unittest import mock

CONTEXT = get_context("forkserver")
IMPORTED = ["tests.support.forked", "service.settings", "service.server.serving"]


class Forked:
    """A program that runs, with what tests use of `subprocess.Popen`.

    arguments: what stands after `python -m`. environment: all variables of the program. Its stderr
    can be read from `stderr`; its stdout is that of the tests.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        CONTEXT.set_forkserver_preload(IMPORTED)
        # NumPy would start threads while it is imported, and a fork would lose them.
        with mock.patch.dict(os.environ, OPENBLAS_NUM_THREADS="1"):
            forkserver.ensure_running()
        readable, writable = os.pipe()
        self.stderr = os.fdopen(readable, errors="replace")
        given = (_Descriptor(writable), arguments, environment, folder)
        self._process = CONTEXT.Process(target=_run, args=given, daemon=True)
        self._process.start()
        os.close(writable)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or -N where signal N ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit status so far. See `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; TimeoutExpired when it still runs after `timeout` seconds."""
        self._process.join(timeout)
        status = self.returncode
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Descriptor:
    """A file descriptor that goes to the process that is being started."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self):
        return _received, (reduction.DupFd(self.number),)


def _received(passed) -> int:
    return passed.detach()


def _run(stderr: int, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    """Be the program, in the process that was forked for it; ends the process."""
    os.dup2(stderr, 2)
    os.close(stderr)
    os.chdir(folder)
    tempfile.tempdir = None  # the variable TMPDIR is the program's own
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = arguments
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
