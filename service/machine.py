"""What this process may use of the machine, and what it gives back."""

import contextlib
import ctypes
import gc
import os
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_M_ARENA_MAX = -8  # of malloc.h


@dataclass(frozen=True)
class Processors:
    """How many processors there are, may be used, and why."""

    machine: int
    affinity: int
    """Those that the process may run on."""
    quota: float | None
    """Processors' worth of time a period that the control group allows; None without a limit."""
    quota_source: str
    """The file that says so; empty without a limit."""

    @property
    def usable(self) -> int:
        """Threads that can run at the same time, at least 1."""
        if self.quota is None:
            return self.affinity
        return max(1, min(self.affinity, round(self.quota)))


def processors(root: Path = _ROOT) -> Processors:
    """What the machine, the process's affinity and its control group (version 1 or 2) say. `root` holds /proc and /sys."""
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    found = [
        (quota, str(file)) for file in _quota_files(root) if (quota := _quota(file)) is not None
    ]
    quota, source = min(found, default=(None, ""))
    return Processors(machine, affinity, quota, source)


def available_threads() -> int:
    """Threads that this process can run at the same time."""
    return processors().usable


def memory_limit_bytes(root: Path = _ROOT) -> int | None:
    """What the control group allows; None without a limit."""
    limits = [
        int(text)
        for folder in _group_folders(root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _text(folder / name)).isdigit()
    ]
    real = [limit for limit in limits if limit < 2**60]  # version 1 says "none" with a huge number
    return min(real, default=None)


def _quota_files(root: Path) -> list[Path]:
    """Each file that may limit us: that of our own control group and those of the groups around it."""
    return [
        folder / name for folder in _group_folders(root) for name in ("cpu.max", "cpu.cfs_quota_us")
    ]


def _group_folders(root: Path) -> list[Path]:
    """The folders of our control group in every hierarchy, up to its top."""
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
        if ".." in parts:  # a group outside what this container sees
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


def bound_heaps() -> None:
    """Let all threads allocate from two heaps; to be called before there are threads.

    glibc opens up to eight a processor, each of which keeps freed pages that only its own threads can use again.
    """
    if "MALLOC_ARENA_MAX" in os.environ:  # whoever started the process has chosen
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 2)


def return_memory() -> None:
    """Give freed pages back to the system: glibc keeps them otherwise."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
