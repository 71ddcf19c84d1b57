"""The thread that owns a model's session."""

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from service.batching.batch import Batch
from service.batching.run import Outcome
from service.batching.work import Piece

Report: TypeAlias = "Callable[[GraphThread, list[Outcome] | BaseException, float], None]"


class GraphThread:
    """Runs batches in order. It ends when it is handed None or when running a batch raises."""

    def __init__(
        self, name: str, run: Callable[[list[Piece]], list[Outcome]], report: Report
    ) -> None:
        """Report is called in this thread with what came of a batch, and the seconds that it took."""
        self.inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._run, self._report = run, report
        threading.Thread(target=self._work, name=f"graph-{name}", daemon=True).start()

    def _work(self) -> None:
        while (batch := self.inbox.get()) is not None:
            begun = time.perf_counter()
            try:
                outcomes = self._run(batch.begin())
            except BaseException as error:  # noqa: BLE001 - the loop must hear of it; then this thread ends
                self._report(self, error, time.perf_counter() - begun)
                return
            self._report(self, outcomes, time.perf_counter() - begun)
            del batch, outcomes  # an idle thread keeps no request alive
