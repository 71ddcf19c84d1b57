"""The folder that the workers of one run share: a sub-folder a slot, with its tally and its gauges.

A slot is taken by one worker at a time. The worker that replaces a dead one goes on in the same sub-folder, so counts are
kept and files do not pile up.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PREFIX = "worker-"
_GAUGES = "gauges.json"
_EXEMPLARS = "exemplars.json"

Gauge = tuple[str, dict[str, str], float]
"""A family's name, labels and a value."""

SeenExemplar = tuple[str, dict[str, str], int, str, float, float]
"""A histogram's name and labels, the bucket, the request's id, the value that was observed, and when."""


@dataclass(frozen=True)
class RunFolder:
    """One worker's view of the folder: its own slot, and all of them."""

    root: Path
    slot: int = 0

    @property
    def own(self) -> Path:
        """The sub-folder of this worker."""
        return self.root / f"{_PREFIX}{self.slot}"

    def all(self) -> list[Path]:
        """The sub-folders of every worker that there is or was."""
        return sorted(self.root.glob(f"{_PREFIX}*"))

    def version(self, model: str, version: int) -> Path:
        """The sub-folder of what this worker counts of a model version; no name of a model has an @."""
        return self.own / f"{model}@{version}"

    def versions(self) -> list[Path]:
        """Those that there are."""
        return sorted(self.own.glob("*@*"))

    def tallies(self) -> list[Path]:
        """Every folder in which any worker counts."""
        return [*self.all(), *self.version_tallies()]

    def version_tallies(self) -> list[Path]:
        """Those in which any worker counts of a model version."""
        return sorted(self.root.glob(f"{_PREFIX}*/*@*"))

    def publish_gauges(self, gauges: Iterable[Gauge]) -> None:
        """Let the other workers know this one's gauges."""
        self._publish(_GAUGES, list(gauges))

    def publish_exemplars(self, exemplars: Iterable[SeenExemplar]) -> None:
        """Let the other workers know the last requests that this one saw."""
        self._publish(_EXEMPLARS, list(exemplars))

    def forget_gauges(self) -> None:
        """The worker of this slot is gone, and its gauges with it; its counts stay."""
        for name in (_GAUGES, _EXEMPLARS):
            (self.own / name).unlink(missing_ok=True)

    def gauges_of_others(self) -> Iterator[Gauge]:
        """What the other live workers published last."""
        yield from self._of_others(_GAUGES)

    def exemplars_of_others(self) -> Iterator[SeenExemplar]:
        """The last requests that the other live workers saw."""
        yield from self._of_others(_EXEMPLARS)

    def _publish(self, name: str, found: list[Any]) -> None:
        beside = self.own / f"{name}.new"
        beside.write_text(json.dumps(found), encoding="utf-8")
        beside.replace(self.own / name)

    def _of_others(self, name: str) -> Iterator[Any]:
        for folder in self.all():
            if folder != self.own:
                with contextlib.suppress(OSError):  # it has just gone
                    yield from json.loads((folder / name).read_bytes())
