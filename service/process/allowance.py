"""What the system lets this process use: processor time, memory, the size and number of files
(ulimit -t, -v, -d, -f, -n).

By default, a process that has used up its processor time ends without a word: with SIGXCPU at the
soft limit, or with SIGKILL at the hard one.
"""

import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

NOTICE_SECONDS = 5
"""Seconds of processor time that are kept for ending well before the hard limit."""

LEAST_FILES = 64
"""With fewer open files, a start gets stuck somewhere in a library, perhaps for ever."""

_MIB = 2**20
_STACK_BYTES = 8 * _MIB
"""Bytes that a thread reserves for its stack if the stack has no limit; glibc may then take
less.
"""
_MEMORY = (
    (resource.RLIMIT_AS, "VmSize", "ulimit -v", 400 * _MIB),
    (resource.RLIMIT_DATA, "VmData", "ulimit -d", 192 * _MIB),
)
"""Limits on memory: their line in /proc/self/status, their command, and the least for a start.
With less, libraries end the process while they are imported, by a signal or without a reason.
"""


def heed_processor_time(spent: Callable[[], object]) -> None:
    """Call `spent` in a signal handler when the allowed processor time is nearly used up."""
    signal.signal(signal.SIGXCPU, lambda *_: spent())
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft >= hard):
        resource.setrlimit(resource.RLIMIT_CPU, (max(1, hard - NOTICE_SECONDS), hard))


def processor_time() -> str:
    """Why a process ends when its processor time is used up, for its last line."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)  # the system raises the soft limit itself
    shown = "none" if hard == resource.RLIM_INFINITY else f"{hard} s"
    return (
        f"the processor time that the system allows this process is used up (hard limit {shown}); "
        "it finishes its requests and ends: raise the limit (ulimit -t) and start it again"
    )


def too_few_files() -> str | None:
    """Say why a service cannot start with this limit on open files; None if the limit suffices."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= LEAST_FILES:
        return None
    return (
        f"the system lets this process open {soft} files; expected at least {LEAST_FILES}, and one "
        "more for each connection: raise the limit (ulimit -n)"
    )


def too_little_memory() -> str | None:
    """Say why a service cannot start within the limits on memory; None if they suffice."""
    for soft, _, command, least in _memory_limits():
        if soft < least:
            return (
                f"the system lets this process use {soft // _MIB} MiB of memory ({command}); "
                f"expected at least {least // _MIB} MiB, and more for large models or many "
                f"processors: raise the limit ({command})"
            )
    return None


def memory_limit(more_bytes: int | None = None) -> str | None:
    """Name the memory limit that leaves no room for `more_bytes`, and what to do; None if there is
    room.

    more_bytes: None stands for the stack of one more thread.
    """
    if more_bytes is None:
        soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
        more_bytes = _STACK_BYTES if soft == resource.RLIM_INFINITY else soft
    for soft, used, command, _ in _memory_limits():
        if used + more_bytes > soft:
            return (
                f"raise its limit of memory: {command} is {soft // 1024} KiB, and "
                f"{used // 1024} KiB of it are used"
            )
    return None


def memory_limits() -> str:
    """The limits on memory that are set, as "ulimit -v is 400000 KiB"; empty without any."""
    return ", ".join(f"{command} is {soft // 1024} KiB" for soft, _, command, _ in _memory_limits())


def _memory_limits() -> Iterator[tuple[int, int, str, int]]:
    """Yield each limit that is set: its bytes, those that are used, its command and the least."""
    for limit, line, command, least in _MEMORY:
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield soft, _used(line), command, least


def _used(line: str) -> int:
    """Bytes that a line of /proc/self/status names; 0 where there is no such file."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(rf"^{line}:\s+([0-9]+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def file_limit() -> str | None:
    """What the limit on the size of files means here; None without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY:
        return None
    return (
        f"the system limits each file of this process to {soft} bytes: beyond that, the log is "
        "cut, metrics stay in memory and writes of priors fail; raise the limit (ulimit -f)"
    )
