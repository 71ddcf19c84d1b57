"""The processors, the memory and the standard streams that this process may use."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
CLOSED = "standard output is closed; give the command a file, a pipe or /dev/null"
"""The message of a command whose output nobody would get."""


@dataclass(frozen=True)
class Processors:
    """How many processors the machine has, how many this process may use, and why."""

    machine: int
    affinity: int
    """How many processors the process may run on, by its affinity."""
    quota: float | None
    """How many processors' time the control group allows; None without a limit."""
    quota_source: str
    """The file that sets the quota; empty without a limit."""

    @property
    def usable(self) -> int:
        """Number of threads that can run at the same time, at least 1."""
        if self.quota is None:
            return self.affinity
        return max(1, min(self.affinity, round(self.quota)))


def processors(root: Path = _ROOT) -> Processors:
    """Read the machine, the process's affinity and its control group (version 1 or 2).

    `root` is the folder that holds proc and sys.
    """
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    found = [
        (quota, str(file)) for file in _quota_files(root) if (quota := _quota(file)) is not None
    ]
    quota, source = min(found, default=(None, ""))
    return Processors(machine, affinity, quota, source)


def available_threads() -> int:
    """Return how many threads of this process can run at the same time."""
    return processors().usable


def available_memory(root: Path = _ROOT) -> int:
    """Return how many bytes this process may use: the machine's memory, or its group's limit.

    `root` is the folder that holds proc and sys.
    """
    found = [
        int(line.split()[1]) * 1024
        for line in _text(root / "proc/meminfo").splitlines()
        if line.startswith("MemTotal:")
    ]
    for folder in _group_folders(root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _text(folder / name)
            if limit.isdigit():
                found.append(int(limit))
    return min(found, default=sys.maxsize)


def memory_kills(root: Path = _ROOT) -> int:
    """How many processes of this process's control group the kernel has killed because memory ran
    out.

    0 where no group counts them. `root` is the folder that holds proc and sys.
    """
    for folder in _group_folders(root):  # the process's own group comes before its parents
        for name in ("memory.events", "memory.oom_control"):
            for line in _text(folder / name).splitlines():
                kind, _, count = line.partition(" ")
                if kind == "oom_kill" and count.isdigit():
                    return int(count)
    return 0


def _quota_files(root: Path) -> list[Path]:
    """Return each file that may limit this process: its control group's and its parents'."""
    return [
        folder / name for folder in _group_folders(root) for name in ("cpu.max", "cpu.cfs_quota_us")
    ]


def _group_folders(root: Path) -> list[Path]:
    """Return the folders of this control group in every hierarchy, up to the top."""
    mount = root / "sys/fs/cgroup"
    found: dict[Path, None] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        tops = (
            [mount / controllers, *(mount / c for c in controllers.split(","))]
            if controllers
            else [mount, mount / "unified"]
        )
        parts = Path(path.lstrip("/")).parts
        if ".." in parts:  # a group that the container cannot see
            parts = ()
        for top in tops:
            for length in range(len(parts), -1, -1):
                found[top.joinpath(*parts[:length])] = None
    return list(found)


def _quota(file: Path) -> float | None:
    words = _text(file).split()
    if file.name == "cpu.max":
        quota, period = words if len(words) == 2 else ("max", "")
    else:
        quota, period = (words or ["-1"])[0], _text(file.with_name("cpu.cfs_period_us")).strip()
    if not (quota.isdigit() and period.isdigit() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def open_standard_streams() -> bool:
    """Open /dev/null for each closed standard stream. Returns whether stdout was open.

    Otherwise the next opened file or socket would get its descriptor, and output would go into it.
    What is meant for a closed stderr would appear on stdout.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    was_open = sys.stdout is not None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    return was_open


def flushed() -> bool:
    """Flush stdout. Returns False if that fails; stdout then leads to /dev/null.

    Otherwise the interpreter would try again at its exit, and fail with a traceback.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
