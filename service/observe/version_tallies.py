"""The counts of each model version, which outlive the version for a while."""

import shutil
from pathlib import Path

from service.contract.bundle import Bundle
from service.observe.run_folder import RunFolder
from service.observe.tally import Cells, Series, Tally

KEPT = 8
"""The number of retired versions whose counts are still shown.

A scrape after the last answer of a version must still find that answer counted.
"""


class VersionTallies:
    """One tally for each model version of a worker. Used from the event loop, but `fault` and
    `in_memory` from any thread.

    The counts of a retired version can therefore be removed without affecting the others.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self._run_folder = run_folder
        self._used: dict[Path, tuple[Tally, int]] = {}
        self._unused: dict[Path, Tally | None] = dict.fromkeys(run_folder.versions())
        """Folders of versions that are not in use, the oldest first.

        At the start, these are the folders of the slot's last worker.
        """

    @property
    def fault(self) -> str | None:
        """Why some counts are in memory only; None while all are in files."""
        used = list(self._used.values())  # in one step: a scrape's thread asks while models load
        return next((tally.fault for tally, _ in used if tally.fault), None)

    def use(self, bundle: Bundle) -> Tally:
        """Return the tally of a version, with its earlier counts, until `leave`.

        Call it once for each use: a version may be loaded again before its earlier use has ended.
        """
        folder = self._run_folder.version(bundle.name, bundle.version)
        before = self._unused.pop(folder, None)
        tally, users = self._used.get(folder) or (Tally(folder), 0)
        for (family, labels), cells in before.in_memory() if before is not None else ():
            tally.cells(family, dict(labels), len(cells))[:] += cells
        self._used[folder] = tally, users + 1
        return tally

    def leave(self, bundle: Bundle) -> None:
        """End one use. The counts of an unused version are removed once KEPT others have become
        unused.
        """
        folder = self._run_folder.version(bundle.name, bundle.version)
        tally, users = self._used.pop(folder)
        if users > 1:
            self._used[folder] = tally, users - 1
            return
        tally.close()
        self._unused[folder] = tally
        while len(self._unused) > KEPT:
            oldest = next(iter(self._unused))
            del self._unused[oldest]
            shutil.rmtree(oldest, ignore_errors=True)

    def in_memory(self) -> list[tuple[Series, Cells]]:
        """Return the blocks that no file holds."""
        used, unused = list(self._used.values()), list(self._unused.values())  # as above
        tallies = [*(tally for tally, _ in used), *unused]
        return [block for tally in tallies if tally is not None for block in tally.in_memory()]

    def close(self) -> None:
        """Close the files; the numbers stay on disk."""
        for tally, _ in self._used.values():
            tally.close()
