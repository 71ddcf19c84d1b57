"""The heaps, files and address of this process on its machine."""

import contextlib
import ctypes
import errno
import gc
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_MAPPED_BYTES = 4 * 2**20
_KEPT_BYTES = 4 * 2**20
_PORTION = 10_000
"""Entries of a sequence that are freed in one call."""


class PortTaken(RuntimeError):
    """A port of the service cannot be listened on."""

    def __init__(self, host: str, port: int, error: OSError, *, flag: str = "--port") -> None:
        """host, port: the address. error: the system's reason. flag: which setting the port is."""
        advice = f"choose another {flag}, or end the process that uses it"
        if error.errno in (errno.EACCES, errno.EPERM):
            advice = f"this user may not use it; choose a {flag} of at least 1024"
        elif isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            advice = "expected an address of this machine or its name in --host"
        super().__init__(f"cannot listen on {host}:{port}: {error.strerror}; {advice}")


NO_FOLDER = Path(os.devnull) / "no-folder"
"""Stands for a folder that could not be made. Nothing can be made in it."""


def allocate(descriptor: int, offset: int, size: int) -> None:
    """Extend a file by `size` bytes from its end at `offset`, and allocate disk space for them.

    A file that was only made longer has no disk space yet. On a full disk, writing to a mapping of
    it would kill the process with SIGBUS. Raises OSError, and then leaves the file unchanged.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, offset, size)
        elif os.pwrite(descriptor, bytes(size), offset) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, offset)
        raise


def bound_heaps() -> None:
    """Limit glibc to two heaps that keep little freed memory. Call it before any thread starts.

    glibc opens up to eight heaps per processor, and each keeps freed pages for its own threads.
    Once a block of up to 32 MiB has been freed, later blocks of that size come from the heaps, too:
    their memory is not returned, and growing one copies it. Here, blocks of 4 MiB and more are
    always mapped. Settings in the environment take precedence.
    """
    wanted = (
        ("MALLOC_ARENA_MAX", _M_ARENA_MAX, 2),
        ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD, _MAPPED_BYTES),
        ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD, _KEPT_BYTES),
    )
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for variable, option, value in wanted:
            if variable not in os.environ:
                mallopt(option, value)


def return_memory() -> None:
    """Give freed pages back to the system, since glibc keeps them."""
    gc.collect()
    trim_heaps()


def return_memory_of(vast: list[Sequence[object] | None]) -> None:
    """Give freed pages back to the system once nothing else holds these sequences. Their entries
    are freed in portions.

    One call that frees a million texts holds the interpreter lock for 20 to 45 ms, and so does a
    garbage collection that finds their sequence in a cycle. So arrays hold the entries until then:
    the collector does not visit the entries of an array. vast: the list is emptied.
    """
    held = [_held(each) for each in vast if each is not None]
    vast.clear()
    return_memory()
    for entries in held:
        for start in range(0, len(entries), _PORTION):
            entries[start : start + _PORTION] = None
    trim_heaps()


def _held(entries: Sequence[object]) -> Any:
    """An array of the same objects."""
    import numpy as np  # not for the supervisor, which needs little memory

    held = np.empty(len(entries), object)
    for start in range(0, len(entries), _PORTION):
        held[start : start + _PORTION] = entries[start : start + _PORTION]
    return held


def trim_heaps() -> None:
    """Give freed pages of the heaps back to the system, without a garbage collection first."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def own_address(host: str) -> str:
    """The address at which others reach a port that was bound to `host`."""
    if host not in ("0.0.0.0", "::", "[::]"):  # noqa: S104 - it is compared and not bound
        return host
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return socket.gethostname()
