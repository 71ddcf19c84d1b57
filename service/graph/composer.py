"""Composes graphs in another process, which imports onnx and parses foreign files instead of this.

`python -m service.graph.composer` reads a job a line from stdin, a JSON object with the arguments
of `service.graph.head.compose` and the model's `path`. Each reply on stdout is a line of JSON,
`{"bytes": n}` with n bytes after it, or `{"error": "…"}`.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.graph.foreign import UnsupportedGraph
from service.process.threads import is_no_process, raise_limit

COMPOSE_SECONDS = 120
SHARED_SECONDS = 0.5
"""Seconds that a load waits for the shared process before it starts one of its own."""


class _Ended(Exception):
    """The composing process ended without a reply."""


class Composer:
    """A process that composes one graph after another."""

    def __init__(self) -> None:
        """Start the process; it is ready for the first job when it has imported onnx.

        Raises UnsupportedGraph where the system allows no more processes or memory.
        """
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.graph.composer"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            if not is_no_process(error):
                raise
            raise UnsupportedGraph(
                f"no process can be started to read its graph: {error}; {raise_limit()}"
            ) from None
        self._late = False
        self.ended = False
        """Whether the process has ended, so that it takes no further job."""

    def compose(self, job: dict[str, Any]) -> bytes:
        """Return a composed graph. Raises UnsupportedGraph, or _Ended if the process has ended."""
        process, path = self._process, job["path"]
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(COMPOSE_SECONDS, self._end_late)
        timer.start()
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            reply = json.loads(process.stdout.readline() or b"null")
            content = b"" if reply is None else process.stdout.read(reply.get("bytes", 0))
        except (OSError, ValueError):
            reply = None
        finally:
            timer.cancel()
        if reply is None or len(content) < reply.get("bytes", 0):
            self.ended = True
        if self._late:
            raise UnsupportedGraph(
                f"{path}: took over {COMPOSE_SECONDS} s to read; put it on a faster disk, or "
                "export a smaller graph"
            )
        if self.ended:
            raise _Ended
        if "error" in reply:
            raise UnsupportedGraph(f"{path}: {reply['error']}")
        return content

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()

    def _end_late(self) -> None:
        self._late = True
        self._process.kill()


class _Shared:
    """At most one process that the loads of a start share."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._composer: Composer | None = None

    def start(self) -> None:
        self._composer = Composer()

    def close(self) -> None:
        with self._turn:
            if self._composer is not None:
                self._composer.close()
            self._composer = None

    def compose(self, job: dict[str, Any]) -> bytes | None:
        """Return a composed graph, or None if there is no such process or it is busy."""
        if self._composer is None or not self._turn.acquire(timeout=SHARED_SECONDS):
            return None
        composer = self._composer
        try:
            return None if composer is None or composer.ended else composer.compose(job)
        except _Ended:
            return None
        finally:
            self._turn.release()


_shared = _Shared()


def start_early() -> None:
    """Start the process that the next loads share; it imports onnx while this process imports the
    rest.

    If none can be started, as without free descriptors or processes, each load tries by itself.
    """
    with contextlib.suppress(OSError, UnsupportedGraph):
        _shared.start()


def end_shared() -> None:
    """End the shared process; later loads start one each."""
    _shared.close()


def compose_file(
    path: Path,
    *,
    output: str,
    kind: str,
    temperature: float,
    classes: int = 0,
    calibration: tuple[Sequence[float], Sequence[float]] | None = None,
) -> bytes:
    """Compose in a separate process; return the graph serialised, without its external weights.

    output, kind, temperature, classes, calibration: see `service.graph.head.compose`. A file that
    ends the shared process is tried once more in a process of its own. Raises UnsupportedGraph.
    """
    job = {
        "path": str(path),
        "output": output,
        "kind": kind,
        "temperature": temperature,
        "classes": classes,
        "calibration": calibration,
    }
    composed = _shared.compose(job)
    if composed is not None:
        return composed
    own = Composer()
    try:
        return own.compose(job)
    except _Ended:
        raise UnsupportedGraph(f"{path}: cannot be read; export the model again") from None
    finally:
        own.close()


def main() -> int:
    """Compose a file for each line of stdin, until there is none."""
    import onnx

    from service.graph import foreign, head

    for line in sys.stdin.buffer:
        job = json.loads(line)
        path = Path(job.pop("path"))
        try:
            model = onnx.load(path, load_external_data=False)
            foreign.external_files(model, path.parent)
            content = head.compose(model, **job).SerializeToString()
        except Exception as error:  # noqa: BLE001 - a foreign file may raise anything; report it in one line
            message = str(error).strip().splitlines() or [type(error).__name__]
            reply, content = json.dumps({"error": message[0]}), b""
        else:
            reply = json.dumps({"bytes": len(content)})
        sys.stdout.buffer.write(reply.encode() + b"\n" + content)
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
