"""What is counted of model versions: a tally each, so that what is left of one that is served no more can go."""

import shutil
from pathlib import Path

from service.contract.bundle import Bundle
from service.observe.run_folder import RunFolder
from service.observe.tally import Tally

KEPT = 8
"""Versions that are served no more and still told: a scrape that comes after the last answer must find it counted."""


class VersionTallies:
    """The tallies of one worker's model versions. Used from the event loop."""

    def __init__(self, run_folder: RunFolder) -> None:
        self._run_folder = run_folder
        self._used: dict[Path, tuple[Tally, int]] = {}
        self._unused = dict.fromkeys(run_folder.versions())
        """Those that nobody counts in any more, the oldest first; at the start what a worker before this one has left."""

    def use(self, bundle: Bundle) -> Tally:
        """The tally of a version, with what was counted before, until `leave`: a version may be loaded again meanwhile."""
        folder = self._run_folder.version(bundle.name, bundle.version)
        self._unused.pop(folder, None)
        tally, users = self._used.get(folder) or (Tally(folder), 0)
        self._used[folder] = tally, users + 1
        return tally

    def leave(self, bundle: Bundle) -> None:
        """One user fewer. What was counted of a version that has none goes when KEPT others have followed it."""
        folder = self._run_folder.version(bundle.name, bundle.version)
        tally, users = self._used.pop(folder)
        if users > 1:
            self._used[folder] = tally, users - 1
            return
        tally.close()
        self._unused[folder] = None
        while len(self._unused) > KEPT:
            oldest = next(iter(self._unused))
            del self._unused[oldest]
            shutil.rmtree(oldest, ignore_errors=True)

    def close(self) -> None:
        """Close the files; the numbers stay on disk."""
        for tally, _ in self._used.values():
            tally.close()
