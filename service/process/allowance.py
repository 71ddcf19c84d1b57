"""What the system lets this process use: processor time, the size and number of files (ulimit -t,
-f, -n).

By default, a process that has used up its processor time ends without a word: with SIGXCPU at the
soft limit, or with SIGKILL at the hard one.
"""

import resource
import signal
from collections.abc import Callable

NOTICE_SECONDS = 5
"""Seconds of processor time that are kept for ending well before the hard limit."""

LEAST_FILES = 64
"""A start with fewer open files stops somewhere in a library, which may then wait for ever."""


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
    """Why a service cannot start with so few open files; None where they suffice."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= LEAST_FILES:
        return None
    return (
        f"the system lets this process open {soft} files; expected at least {LEAST_FILES}, and one "
        "more for each connection: raise the limit (ulimit -n)"
    )


def file_limit() -> str | None:
    """What the limit on the size of files means here; None without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY:
        return None
    return (
        f"the system limits each file of this process to {soft} bytes: beyond that, the log is "
        "cut, metrics stay in memory and writes of priors fail; raise the limit (ulimit -f)"
    )
