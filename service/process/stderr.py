"""Writes to stderr without making anybody wait: the program that reads the pipe may stop reading.

A pipe holds 64 KiB. Once it is full, a write waits for the reader, perhaps for ever. So a thread
writes, and lines that it cannot write soon are dropped and counted.
"""

import atexit
import contextlib
import faulthandler
import io
import os
import queue
import select
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

MAX_WAITING = 1000
"""The most lines that wait for the thread."""
_DESCRIPTOR = 2
_FLUSH_SECONDS = 1.0
_lines: "queue.SimpleQueue[bytes | threading.Event]" = queue.SimpleQueue()
"""A signal handler may put a line here while its thread is in the middle of putting another."""
_one_at_a_time = threading.Lock()
"""Held while a block of lines is written, so that none comes between. Never taken on a loop."""
_starting = threading.Lock()
_thread: threading.Thread | None = None


def binary() -> BinaryIO:
    """Stderr as a binary stream without a buffer, even if a host program has replaced it.

    A buffer has a lock. A thread that waits in a write would keep it, also from the interpreter,
    which flushes stderr at its end.
    """
    found: Any = getattr(sys.stderr, "buffer", None)
    if found is not None:
        raw: BinaryIO = getattr(found, "raw", found)
        return raw
    try:
        return os.fdopen(os.dup(_DESCRIPTOR), "wb")
    except OSError:
        return Path(os.devnull).open("wb")


def write(stream: BinaryIO, block: bytes) -> None:
    """Write all of a block of lines, however long that takes. Raises OSError or ValueError."""
    with _one_at_a_time:
        left = memoryview(block)
        while left:
            count = stream.write(left)
            if count is not None:
                left = left[count:]
            elif isinstance(stream, io.RawIOBase):  # somebody made the pipe non-blocking
                select.select((), (stream,), ())
            else:
                break
        stream.flush()


def put(line: bytes) -> bool:
    """Hand a line to the thread. Returns whether it will be written; False where too many wait."""
    if _lines.qsize() >= MAX_WAITING:
        return False
    _lines.put(line)
    if not _runs() and not _start():
        _write_waiting()
    return True


def tell(line: bytes) -> None:
    """Write a line from a signal handler: it takes no lock and never waits."""
    if _runs():
        if _lines.qsize() < MAX_WAITING:
            _lines.put(line)
        return
    with contextlib.suppress(OSError):
        for at in range(0, len(line), select.PIPE_BUF):
            if not select.select((), (_DESCRIPTOR,), (), 0)[1]:
                return
            os.write(_DESCRIPTOR, line[at : at + select.PIPE_BUF])


def flush(seconds: float = _FLUSH_SECONDS) -> None:
    """Wait until the lines so far are written, but not longer than `seconds`."""
    if _runs():
        written = threading.Event()
        _lines.put(written)
        written.wait(seconds)


def stacks() -> bytes:
    """The stacks of all threads as text. It may be called from a signal handler."""
    if not hasattr(os, "memfd_create"):
        return b""
    descriptor = os.memfd_create("stacks")
    try:
        faulthandler.dump_traceback(descriptor, all_threads=True)
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _runs() -> bool:
    return _thread is not None and _thread.is_alive()


def _start() -> bool:
    """Start the thread. Returns False where the system allows no more."""
    global _thread  # noqa: PLW0603 - a process has one stderr
    with _starting:
        if _runs():
            return True
        thread = threading.Thread(target=_write_for_ever, name="stderr", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        if _thread is None:
            atexit.register(flush)
        _thread = thread
        return True


def _write_for_ever() -> None:
    while True:
        _write_one(_lines.get())


def _write_waiting() -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            _write_one(_lines.get_nowait())


def _write_one(line: "bytes | threading.Event") -> None:
    if isinstance(line, threading.Event):
        line.set()
        return
    with contextlib.suppress(OSError, ValueError):  # the reader has gone, or the disk is full
        write(binary(), line)
