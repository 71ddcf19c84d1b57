"""The folder that the workers of a run share: one sub-folder per slot, for counts and gauges.

A slot belongs to one worker at a time. The worker that replaces a dead one continues in its
sub-folder, so counts are kept and files do not pile up. Every process of a run holds a lock in the
folder. The next start removes the folders of runs that no process holds any more.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.process.machine import NO_FOLDER

logger = logging.getLogger(__name__)

_RUN_PREFIX = "priordial-run-"
_LOCK = "lock"
_PREFIX = "worker-"
_GAUGES = "gauges.json"
_EXEMPLARS = "exemplars.json"
_ABANDONED_SECONDS = 60.0
"""An empty folder is not removed for this many seconds: its process may be about to lock it."""
Gauge = tuple[str, dict[str, str], float]
"""A family's name, labels and a value."""

SeenExemplar = tuple[str, dict[str, str], int, str, float, float]
"""A histogram's name and labels, the bucket, the request's id, the observed value, and when."""


@contextlib.contextmanager
def new_run() -> Iterator[Path]:
    """Make and lock the folder of a run, and remove the folders of dead runs.

    The folder is removed at the end. If none can be made, this is NO_FOLDER, and metrics are kept
    in memory.
    """
    root, lock = NO_FOLDER, None
    try:
        parent = Path(tempfile.gettempdir())
        sweep(parent)
        root, lock = _made(parent)
    except OSError as error:
        logger.warning(
            "no folder for metrics can be made: %s; each worker shows only its own metrics, and "
            "connections are spread unevenly over the workers; set TMPDIR to a folder that can be "
            "written, and restart",
            error,
        )
    try:
        yield root
    finally:
        if lock is not None:
            shutil.rmtree(root, ignore_errors=True)
            os.close(lock)


def hold(root: Path) -> int | None:
    """Lock the folder, which marks the run as alive until this process ends.

    Returns the descriptor of the lock.
    """
    try:
        lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    with contextlib.suppress(
        OSError
    ):  # a file system without locks: no other start can remove the folder either
        fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def sweep(parent: Path) -> None:
    """Remove this user's folders of runs that no process holds, such as after a kill -9."""
    for folder in parent.glob(f"{_RUN_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if folder.is_symlink() or found.st_uid != os.getuid():
                continue
            if (folder / _LOCK).exists():
                _remove_dead(folder)
            elif time.time() - found.st_mtime > _ABANDONED_SECONDS:
                folder.rmdir()  # fails, as it should, unless it is empty


def _made(parent: Path) -> tuple[Path, int]:
    while True:
        root = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX, dir=parent))
        lock = hold(root)
        if lock is None:
            shutil.rmtree(root, ignore_errors=True)
            raise OSError(errno.ENOSPC, f"nothing can be written to {root}")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (root / _LOCK).stat()):
                return root, lock
        os.close(lock)  # another start removed the folder before it was locked


def _remove_dead(folder: Path) -> None:
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: the run is alive
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


@dataclass(frozen=True)
class RunFolder:
    """The run's folder from the point of view of one worker: its own slot and all others."""

    root: Path
    slot: int = 0

    @property
    def own(self) -> Path:
        """The sub-folder of this worker."""
        return self.root / f"{_PREFIX}{self.slot}"

    def all(self) -> list[Path]:
        """Return the sub-folders of all workers, past workers included."""
        return sorted(self.root.glob(f"{_PREFIX}*"))

    def version(self, model: str, version: int) -> Path:
        """Return this worker's sub-folder of a model version; no model's name has an @."""
        return self.own / f"{model}@{version}"

    def versions(self) -> list[Path]:
        """Return this worker's sub-folders of model versions."""
        return sorted(self.own.glob("*@*"))

    def tallies(self) -> list[Path]:
        """Return every folder in which any worker counts."""
        return [*self.all(), *self.version_tallies()]

    def version_tallies(self) -> list[Path]:
        """Return the folders in which any worker counts for a model version."""
        return sorted(self.root.glob(f"{_PREFIX}*/*@*"))

    def publish_gauges(self, gauges: Iterable[Gauge]) -> None:
        """Write this worker's gauges for the other workers. Raises OSError."""
        self._publish(_GAUGES, list(gauges))

    def publish_exemplars(self, exemplars: Iterable[SeenExemplar]) -> None:
        """Write the last requests of this worker for the other workers. Raises OSError."""
        self._publish(_EXEMPLARS, list(exemplars))

    def forget_gauges(self) -> None:
        """Remove the gauges of this slot after its worker has ended. Its counts stay."""
        for name in (_GAUGES, _EXEMPLARS):
            with contextlib.suppress(OSError):
                (self.own / name).unlink(missing_ok=True)

    def gauges_of_others(self) -> Iterator[Gauge]:
        """Yield the latest gauges of the other live workers."""
        yield from self._of_others(_GAUGES)

    def exemplars_of_others(self) -> Iterator[SeenExemplar]:
        """Yield the latest requests of the other live workers."""
        yield from self._of_others(_EXEMPLARS)

    def _publish(self, name: str, found: list[Any]) -> None:
        beside = self.own / f"{name}.new"
        beside.write_text(json.dumps(found), encoding="utf-8")
        beside.replace(self.own / name)

    def _of_others(self, name: str) -> Iterator[Any]:
        for folder in self.all():
            if folder != self.own:
                with contextlib.suppress(OSError, ValueError):  # its worker has just removed it
                    yield from json.loads((folder / name).read_bytes())
