"""Server processes under load: starts them, drives them with wrk, reads CPU and memory."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Process:
    """A running server: its URL, its log, and the CPU time and memory that it uses."""

    def __init__(self, popen: subprocess.Popen, url: str, log: Path | None = None) -> None:
        self.popen, self.url = popen, url
        self._log, self._read = log, 0

    def new_log(self) -> str:
        """Return what the process has written to stderr since the last call, in whole lines."""
        if self._log is None:
            return ""
        with self._log.open("rb") as file:
            file.seek(self._read)
            found = file.read()
        found = found[: found.rfind(b"\n") + 1]
        self._read += len(found)
        return found.decode(errors="replace")

    def cpu_seconds(self) -> float:
        """User and system time of the process and of its running descendants."""
        return (
            sum(_cpu_ticks(pid) for pid in [self.popen.pid, *_started_by(self.popen.pid)]) / _TICKS
        )

    def rss_mib(self) -> float:
        """Resident memory of the process, in MiB."""
        return int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) * _PAGE / 2**20


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def _started_by(pid: int) -> list[int]:
    """The running descendants of a process."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *_started_by(child)]
    return found


@contextlib.contextmanager
def process(*command: str) -> Iterator[Process]:
    """Run a Python script or module, and yield once it prints "ready on URL".

    Its log goes to a file, as in production.
    """
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            popen = subprocess.Popen(
                [sys.executable, *command],
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder},
            )
        try:
            while not (found := re.search(r"ready on (http://[^\s\"]+)", log.read_text())):
                if popen.poll() is not None:
                    raise SystemExit(f"{command} ended:\n{log.read_text()}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(0.02)
            yield Process(popen, found[1], log)
        finally:
            popen.terminate()
            popen.wait(60)


@contextlib.contextmanager
def service(
    models: Path, *flags: str, script: tuple[str, ...] = ("-m", "service")
) -> Iterator[Process]:
    """Run the service: one worker, one intra-op thread, and a store of its own."""
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as folder:
        fixed = ("--models", str(models), "--port", "0", "--store", f"sqlite:///{folder}/priors.db")
        with process(
            *script, "serve", *fixed, "--provider", "cpu", "--intra-op-threads", "1", *flags
        ) as started:
            yield started


def npy_bytes(array: np.ndarray) -> bytes:
    """The bytes of a .npy file that holds the array."""
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def wrk(
    server: Process,
    path: str,
    bodies: bytes | Sequence[bytes],
    headers: dict[str, str],
    *,
    connections: int,
    seconds: float,
    settings: str = "",
    folder: Path,
) -> dict[str, float]:
    """Load a server with one body, or with several bodies in turn, and return wrk's results.

    settings: which tau and prior each request sets; load.lua describes the forms.
    """
    file = folder / "bodies"
    with file.open("wb") as out:
        for body in [bodies] if isinstance(bodies, bytes) else bodies:
            out.write(b"%08d%b" % (len(body), body))
    before = server.cpu_seconds()
    done = subprocess.run(
        [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:g}s",
            "--timeout",
            "30s",
            "-s",
            str(HERE / "load.lua"),
            server.url + path,
            "--",
            str(file),
            settings,
            *(part for item in headers.items() for part in item),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    cpu_seconds = server.cpu_seconds() - before
    found = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("JSON "))[5:]
    )
    found["per_second"] = found["requests"] / found["seconds"]
    found["cpu_us"] = 1e6 * cpu_seconds / max(1, found["requests"])
    return found
