"""The folder that the workers of one run share: a sub-folder a slot, with its tally and its gauges.

A slot is taken by one worker at a time. The worker that replaces a dead one goes on in the same sub-folder, so counts are
kept and files do not pile up.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "worker-"
_GAUGES = "gauges.json"

Gauge = tuple[str, dict[str, str], float]
"""A family's name, labels and a value."""


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

    def publish_gauges(self, gauges: Iterable[Gauge]) -> None:
        """Let the other workers know this one's gauges."""
        beside = self.own / f"{_GAUGES}.new"
        beside.write_text(json.dumps(list(gauges)), encoding="utf-8")
        beside.replace(self.own / _GAUGES)

    def forget_gauges(self) -> None:
        """The worker of this slot is gone, and its gauges with it; its counts stay."""
        (self.own / _GAUGES).unlink(missing_ok=True)

    def gauges_of_others(self) -> Iterator[Gauge]:
        """What the other live workers published last."""
        for folder in self.all():
            if folder != self.own:
                with contextlib.suppress(OSError):  # it has just gone
                    yield from json.loads((folder / _GAUGES).read_bytes())
