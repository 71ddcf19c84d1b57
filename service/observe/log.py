"""The log on stderr: a line for each request and each event, as JSON or as text.

A request's line never holds an input, a body, an error's text (it may quote an input) or an API
key. It holds the key's name.
"""

import asyncio
import atexit
import contextlib
import errno
import logging
import queue
import sys
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from typing import Any, BinaryIO, Protocol, TypeAlias

import orjson

from service.process import stderr
from service.process.exit_codes import FAILED

logger = logging.getLogger(__name__)

Line: TypeAlias = dict[str, Any]

ANONYMOUS = "anonymous"
"""Logged as the key's name where the service requires no key."""

FLUSH_SECONDS = 0.05
BLOCK_LINES = 64
"""Number of lines encoded together, which halves the time per line and delays no request."""
BLOCKS_TOGETHER = 4
"""Number of blocks handed to the thread together: waking it costs more than encoding them."""
MAX_WAITING = 50
"""The most handovers that wait while stderr is slow; further lines are dropped and counted."""


def configure(log_format: str) -> None:
    """Send the process's log to stderr. `log_format`: text, json, or auto (text on a terminal)."""
    json = is_json(log_format)
    handler = _Handler(as_json if json else as_text)
    handler.setFormatter(JsonFormatter() if json else logging.Formatter(_TEXT, _TIME))
    # Libraries log warnings only: clients of object stores would log each request, even headers.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("service").setLevel(logging.INFO)


def is_json(log_format: str) -> bool:
    """Whether this setting makes the log of this process JSON."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return log_format == "json" or (log_format == "auto" and not terminal)


def refuse(reason: str) -> int:
    """Write one line to stderr that says why the process does not start. Returns its exit
    status.
    """
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in reason)
    stderr.put(f"priordial: {line}\n".encode())
    stderr.flush()
    return FAILED


def request_log(log_format: str) -> "RequestLog":
    """Open the request log of this process."""
    encode = as_json if is_json(log_format) else as_text
    return RequestLog(stderr.binary(), encode=encode)


class Encode(Protocol):
    """A function that encodes one line of the request log."""

    def __call__(self, line: Line, at: float, *, event: str = "request") -> bytes:
        """Return the line's bytes. `at`: time.time() when the request was answered."""
        ...


class RequestLog:
    """Takes the lines of requests, and writes them from a thread so that no request waits."""

    def __init__(self, stream: BinaryIO, *, encode: Encode) -> None:
        self._stream, self._encode = stream, encode
        self._lines: list[tuple[Line, float]] = []
        self._encoded: list[bytes] = []
        self._timer_runs = False
        self._blocks: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self.fault: str | None = None
        """Why lines are lost, as on a full disk; None while they are written."""

    def __call__(self, lines: list[Line]) -> None:
        """Log answered requests. Call it on the event loop; the log keeps the dictionaries."""
        if not self._timer_runs:
            self._timer_runs = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        at = time.time()
        self._lines += zip(lines, repeat(at))
        if len(self._lines) >= BLOCK_LINES:
            self._encode_taken()
            if len(self._encoded) >= BLOCK_LINES * BLOCKS_TOGETHER:
                self._hand_on()

    def start(self) -> None:
        """Start the writing thread. Raises RuntimeError where the system allows no more."""
        thread = threading.Thread(target=self._write, name="request-log", daemon=True)
        thread.start()
        self._thread = thread
        atexit.register(self.close)

    def flush(self) -> None:
        """Hand all lines so far to the thread."""
        self._timer_runs = False
        self._encode_taken()
        if self._encoded:
            self._hand_on()

    def _encode_taken(self) -> None:
        lines, self._lines = self._lines, []
        try:
            self._encoded += [self._encode(line, at) for line, at in lines]
        except Exception:  # noqa: BLE001 - reported below, for the line that has it
            for line, at in lines:  # the others are not lost with it
                self._encode_alone(line, at)

    def _encode_alone(self, line: Line, at: float) -> None:
        try:
            self._encoded.append(self._encode(line, at))
        except Exception:
            logger.exception(
                "request %s is missing in the log; report this with the traceback",
                line.get("request_id"),
            )

    def _hand_on(self) -> None:
        lines, self._encoded = self._encoded, []
        if self._thread is None:
            with contextlib.suppress(RuntimeError):  # the system allows no thread now; lines wait
                self.start()
        dropped = {"lines": self._dropped}
        if self._dropped:
            lines.insert(0, self._encode(dropped, time.time(), event="dropped"))
        try:
            self._blocks.put_nowait(b"".join(lines))
        except queue.Full:
            self._dropped += len(lines) - bool(self._dropped)
        else:
            self._dropped = 0

    def close(self, *, seconds: float = 1.0) -> None:
        """Write the remaining lines, but give up after `seconds` if stderr does not accept them."""
        self.flush()
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        atexit.unregister(self.close)
        try:
            self._blocks.put(None, timeout=seconds)
        except queue.Full:
            return
        thread.join(seconds)

    def _write(self) -> None:
        while (block := self._blocks.get()) is not None:
            try:
                stderr.write(self._stream, block)
            except (OSError, ValueError) as error:
                # Otherwise the reader of stderr has gone, or the stream is closed.
                if getattr(error, "errno", None) in _NO_ROOM:
                    self.fault = f"log lines are lost: {error}"
            else:
                self.fault = None


def as_json(line: Line, at: float, *, event: str = "request") -> bytes:
    """Encode a line as a JSON object, with seconds to the microsecond."""
    for name in _SECONDS:
        if name in line:
            line[name] = int(1e6 * line[name] + 0.5) / 1e6
    level = b"error" if line.get("status", 0) >= 500 else b"info"
    return _start(at, level, event) + orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)[1:]


@lru_cache(maxsize=4)  # the lines of a batch have one time
def _start(at: float, level: bytes, event: str) -> bytes:
    """The first members of a line, up to the comma."""
    second = int(at)
    return b'{"time":"%b.%06dZ","level":"%b","event":"%b",' % (
        _utc(second),
        int(1e6 * (at - second)),
        level,
        event.encode(),
    )


@lru_cache(maxsize=4)
def _utc(second: int) -> bytes:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def as_text(line: Line, at: float, *, event: str = "request") -> bytes:
    """Encode a line as text for human readers: the outcome first, the request id last."""
    if event == "dropped":
        return (
            b"%d request lines were dropped, because stderr is not read fast enough\n"
            % line["lines"]
        )
    parts = [
        datetime.fromtimestamp(at).astimezone().strftime(_TIME),
        f"{line['status']} {line.get('method', ''):<6} {line['route']}",
        f"{1e3 * line['seconds']:.2f} ms",
    ]
    if "model" in line:
        parts.append(f"{line['model']}/{line.get('version', '?')}")
    settings = []  # a request whose rows have different ones has no prior, or no τ, of its own
    if "revision" in line:
        settings.append(f"prior {line.get('prior') or 'inline'}@{line['revision']}")
    if "tau" in line:
        settings.append(f"τ {line['tau']:g}")
    if settings:
        parts.append(" ".join(settings))
    if "rows" in line:
        seconds = {"queue": line.get("queue_seconds"), "graph": line.get("inference_seconds")}
        times = [
            f"{part} {1e3 * took:.2f} ms" for part, took in seconds.items() if took is not None
        ]
        parts.append(", ".join([f"{line['rows']} rows", *times]))
    details = {name: line.get(name) for name in ("problem", "key")}
    parts += [f"{name} {text}" for name, text in details.items() if text not in (None, ANONYMOUS)]
    return "  ".join([*parts, line["request_id"]]).encode(errors="replace") + b"\n"


class _Handler(logging.Handler):
    """Hands each line to the thread that writes to stderr. Lines that find no room are counted."""

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self._encode, self._dropped = encode, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record and hand on its line; called with the handler's lock."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a fault in a log call ends nothing
            self.handleError(record)
            return
        if self._dropped and stderr.put(
            self._encode({"lines": self._dropped}, time.time(), event="dropped")
        ):
            self._dropped = 0
        if not stderr.put(line.encode(errors="backslashreplace") + b"\n"):
            self._dropped += 1

    def flush(self) -> None:
        """Wait for the thread, but not long."""
        stderr.flush()


class JsonFormatter(logging.Formatter):
    """Formats log records as JSON: the message, the logger's name, an error's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "event": "log",
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        found |= getattr(record, "audit", {})
        try:
            return orjson.dumps(found, option=orjson.OPT_UTC_Z, default=str).decode()
        except TypeError:  # a path whose bytes are not text
            printable = {name: _printable(value) for name, value in found.items()}
            return orjson.dumps(printable, option=orjson.OPT_UTC_Z, default=str).decode()


def _printable(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value.encode(errors="backslashreplace").decode()


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_TEXT = "%(asctime)s  %(levelname)s %(name)s: %(message)s"
_TIME = "%Y-%m-%d %H:%M:%S"
_SECONDS = ("seconds", "queue_seconds", "inference_seconds")
