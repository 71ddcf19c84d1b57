"""Machine faults while predictions run: the service must keep serving. Run by hand:

    python -m benchmarks.endurance.machine_faults [--rounds 3] [--workers 2] [--only CASE]

Each case causes one kind of fault for a real service on loopback, several times, while clients send
predictions on new connections. A table shows how many predictions were answered and how many
failed, the memory before and after, and whether the case's promise held. The exit status is 1 when
a promise was broken.

A short version of each case runs in tests/service/server/test_machine_faults.py.
"""

import argparse
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.eventually import eventually
from tests.support.server import READY, Server, children, starting
from tests.support.small_models import inputs, publish_model

BODY = {"instances": inputs(1).tolist()}
HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Broken(AssertionError):
    """A promise of the service was broken; the message says which."""


class Clients:
    """Threads that send predictions until the block ends, each on a new connection."""

    def __init__(self, url: str, *, threads: int = 2) -> None:
        self.url = url
        self.answered = self.failed = 0
        self.wrong: list[str] = []
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def some_more(self, count: int = 20) -> None:
        """Wait until this many further predictions are answered."""
        goal = self.answered + count
        eventually(lambda: self.answered >= goal, seconds=90)

    def _send(self) -> None:
        while not self._stop.is_set():
            try:
                answer = httpx.post(f"{self.url}/models/linear/predict", json=BODY, timeout=60)
            except httpx.HTTPError:
                with self._lock:
                    self.failed += 1
                continue
            with self._lock:
                if answer.status_code == 200:
                    self.answered += 1
                else:
                    self.failed += 1
                    self.wrong.append(f"{answer.status_code} {answer.text[:200]}")


class Case:
    """One service under one kind of fault."""

    def __init__(self, server: Server, clients: Clients, *, rounds: int, place: Path) -> None:
        self.server, self.clients = server, clients
        self.rounds, self.place = rounds, place
        self.random = random.Random(0)

    @property
    def pids(self) -> list[int]:
        """The process ids of the service and its workers."""
        return [self.server.process.pid, *children(self.server.process.pid)]

    def resident_mib(self) -> float:
        """Resident memory of all processes of the service, in MiB."""
        found = 0
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):
                found += psutil.Process(pid).memory_info().rss
        return found / 2**20

    def full_disk(self) -> None:
        """Fill the temporary folder: metrics move to memory, and readiness reports it."""
        with contextlib.suppress(OSError), (self.place / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for number in range(self.rounds):
            publish_model(self.place.parent / "models", f"more-{number}")
            url = f"{self.server.url}/v2/repository/models/more-{number}/load"
            if httpx.post(url, timeout=120).status_code != 200:
                raise Broken("a model could not be loaded")
            self.clients.some_more()
        ready = httpx.get(f"{self.server.url}/health/ready", timeout=30).json()
        if "kept in memory only" not in ready.get("reason", ""):
            raise Broken(f"readiness does not say what is degraded: {ready}")
        self._nothing_failed()

    def stopped(self) -> None:
        """Stop all processes for longer than `--hang-seconds`: they must continue, not end."""
        before = self.pids
        for _ in range(self.rounds):
            for pid in before:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(4)
            for pid in before:
                os.kill(pid, signal.SIGCONT)
            self.clients.some_more()
        if self.pids != before:
            raise Broken("a process was ended")
        self._nothing_failed()

    def storm(self) -> None:
        """Send hundreds of signals that mean nothing or a reload."""
        before = self.pids
        for _ in range(100 * self.rounds):
            os.kill(self.random.choice(before), self.random.choice(HARMLESS))
        self.clients.some_more(100)
        if self.pids != before:
            raise Broken("a signal ended a process")
        self._nothing_failed()

    def killed_workers(self) -> None:
        """Kill the workers one after another: each is replaced while the others serve."""
        for _ in range(self.rounds):
            known = children(self.server.process.pid)
            victim = self.random.choice(known)
            os.kill(victim, signal.SIGKILL)
            eventually(
                lambda known=known, victim=victim: (
                    len(set(children(self.server.process.pid)) - {victim}) == len(known)
                ),
                seconds=120,
            )
            self.clients.some_more()
        if self.clients.wrong:
            raise Broken(self.clients.wrong[0])

    def without_descriptors(self) -> None:
        """Leave no descriptor for connections, then make some available again."""
        for _ in range(self.rounds):
            limits = {}
            for pid in self.pids:
                highest = max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())
                limits[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                low = (highest + 1, limits[pid][1])
                resource.prlimit(pid, resource.RLIMIT_NOFILE, low)
            time.sleep(2)
            for pid, found in limits.items():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, found)
            self.clients.some_more()
        if self.clients.wrong:
            raise Broken(self.clients.wrong[0])

    def _nothing_failed(self) -> None:
        if self.clients.failed:
            raise Broken(f"{self.clients.failed} predictions failed: {self.clients.wrong[:1]}")


CASES: dict[str, Callable[[Case], None]] = {
    "full-disk": Case.full_disk,
    "stopped": Case.stopped,
    "storm": Case.storm,
    "killed-workers": Case.killed_workers,
    "without-descriptors": Case.without_descriptors,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=[*CASES, "starts"])
    given = parser.parse_args()
    broken = 0
    print(f"{'case':<22}{'answered':>9}{'failed':>8}{'MiB before':>12}{'after':>8}  verdict")
    for name, fault in CASES.items():
        if given.only in (None, name):
            broken += not run(name, fault, rounds=given.rounds, workers=given.workers)
    if given.only in (None, "starts"):
        broken += not starts(rounds=given.rounds, workers=given.workers)
    return 1 if broken else 0


def run(name: str, fault: Callable[[Case], None], *, rounds: int, workers: int) -> bool:
    """Run one case and print its line. Returns whether its promise held."""
    verdict = "held"
    with small_disk() as place:
        publish_model(place.parent / "models")
        settings = {"workers": workers, "hang_seconds": 2, "environment": {"TMPDIR": str(place)}}
        with starting(place.parent / "models", **settings) as server:
            server.url = server.wait_for(READY, seconds=300)[1]
            with Clients(server.url) as clients:
                case = Case(server, clients, rounds=rounds, place=place)
                clients.some_more()
                before = case.resident_mib()
                try:
                    fault(case)
                except AssertionError as error:
                    verdict = f"BROKEN: {error}"
                after = case.resident_mib()
        if server.process.poll() not in (None, -signal.SIGKILL):
            verdict = f"BROKEN: the service ended with status  {server.process.returncode}"
    print(
        f"{name:<22}{clients.answered:>9}{clients.failed:>8}{before:>12.0f}{after:>8.0f}  {verdict}"
    )
    return verdict == "held"


def starts(*, rounds: int, workers: int) -> bool:
    """Send signals at random moments of the start.

    SIGHUP must change nothing; after SIGTERM the exit status must be 0.
    """
    chance = random.Random(0)
    wrong = []
    with tempfile.TemporaryDirectory(prefix="priordial-faults-") as folder:
        publish_model(Path(folder) / "models")
        for _ in range(4 * rounds):
            with starting(Path(folder) / "models", workers=workers) as server:
                eventually(lambda server=server: handles_signals(server.process.pid))
                time.sleep(chance.random() * 1.5)
                for number in HARMLESS:
                    server.process.send_signal(number)
                time.sleep(chance.random())
                server.process.send_signal(signal.SIGTERM)
                if status := server.exit(seconds=60):
                    wrong.append(status)
    verdict = f"BROKEN: exit statuses {wrong}" if wrong else "held"
    print(f"{'starts':<22}{4 * rounds:>9}{len(wrong):>8}{'':>20}  {verdict}")
    return not wrong


def handles_signals(pid: int) -> bool:
    """Whether the process has installed its signal handlers."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt:"))[7:], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of 1 MiB, or an ordinary folder where none can be mounted."""
    with tempfile.TemporaryDirectory(prefix="priordial-faults-") as folder:
        place = Path(folder) / "tmp"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", str(place)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        if not mounted:
            print(
                "no file system can be mounted here (it takes root): full-disk fills nothing",
                file=sys.stderr,
            )
        try:
            yield place
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(place)], check=False)


if __name__ == "__main__":
    sys.exit(main())
