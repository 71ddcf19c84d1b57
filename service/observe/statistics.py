"""Triton's statistics of a model version: counted once a batch, shown in Triton's form."""

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from service.batching.facts import BatchFacts
from service.contract.bundle import Bundle
from service.observe.run_folder import RunFolder
from service.observe.tally import Cells, Series, Tally, TallyReader, one_by_one

_BATCHES, _REQUESTS, _LAST = "statistics_batches", "statistics_requests", "statistics_last"
_BEGUN, _REFUSED, _REFUSED_ROWS, _FAILED, _QUEUE_SECONDS, _INFER_SECONDS = range(6)


class VersionStatistics:
    """The counts of a model version in one worker. Used from the event loop."""

    def __init__(self, tally: Tally, bundle: Bundle, *, max_batch_rows: int, worker: int) -> None:
        """Count in `tally`.

        max_batch_rows: of the service, not of the model, so that all workers have blocks of one
        length.
        """
        labels = _labels(bundle.name, bundle.version)
        self._largest = (bundle.input.shape[0] if bundle.input.shape else None) or max_batch_rows
        self._batches = one_by_one(tally.cells(_BATCHES, labels, 2 * (self._largest + 1)))
        self._requests = one_by_one(tally.cells(_REQUESTS, labels, _INFER_SECONDS + 1))
        by_worker = {**labels, "worker": str(worker)}  # times of workers are not added up
        self._last = one_by_one(tally.cells(_LAST, by_worker))

    def batch(self, facts: BatchFacts, *, queue_seconds: float) -> None:
        """Count a graph call. `queue_seconds` is the sum over its requests."""
        rows, seconds = facts.rows, facts.seconds
        batches, requests = self._batches, self._requests
        batches[rows] += 1
        batches[self._largest + 1 + rows] += seconds
        requests[_BEGUN] += len(facts.queue_seconds)
        requests[_QUEUE_SECONDS] += queue_seconds
        requests[_INFER_SECONDS] += seconds * facts.requests
        if facts.refused:
            requests[_REFUSED] += len(facts.refused)
            requests[_REFUSED_ROWS] += sum(facts.refused)
        self._last[0] = time.time()

    def failed(self) -> None:
        """Count a request that was not scored."""
        self._requests[_FAILED] += 1


class StatisticsReader:
    """Sums what all workers have counted for model versions. Call it in a thread."""

    def __init__(self, run_folder: RunFolder) -> None:
        self._run_folder, self._reader = run_folder, TallyReader()
        self._lock = threading.Lock()

    def read(
        self,
        wanted: Iterable[tuple[str, int]],
        *,
        in_memory: Iterable[tuple[Series, Cells]] = (),
    ) -> list[dict[str, Any]]:
        """Return the protocol's `model_stat` of each (model, version).

        in_memory: blocks of this process that no file holds.
        """
        with self._lock:
            totals = self._reader.merged(self._run_folder.version_tallies(), in_memory=in_memory)
        return [_model_stat(totals, *each) for each in wanted]


def _model_stat(totals: Mapping[Series, Cells], model: str, version: int) -> dict[str, Any]:
    labels = _labels(model, version)
    batches = totals.get(_series(_BATCHES, labels), np.zeros(2))
    counts, seconds = batches.reshape(2, -1)
    requests = totals.get(_series(_REQUESTS, labels), np.zeros(_INFER_SECONDS + 1)).tolist()
    times = [
        cells[0]
        for (name, own), cells in totals.items()
        if name == _LAST and labels.items() <= dict(own).items()
    ]
    begun, queue, infer = requests[_BEGUN], requests[_QUEUE_SECONDS], requests[_INFER_SECONDS]
    return {
        "name": model,
        "version": str(version),
        "last_inference": int(1000 * max(times, default=0)),
        "inference_count": int(counts @ np.arange(len(counts)) - requests[_REFUSED_ROWS]),
        "execution_count": int(counts.sum()),
        "inference_stats": {
            "success": _duration(begun - requests[_REFUSED], queue + infer),
            "fail": _duration(requests[_FAILED], 0),
            "queue": _duration(begun, queue),
            "compute_input": _duration(0, 0),
            "compute_infer": _duration(begun, infer),
            "compute_output": _duration(0, 0),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(0, 0),
                "compute_infer": _duration(counts[rows], seconds[rows]),
                "compute_output": _duration(0, 0),
            }
            for rows in np.flatnonzero(counts).tolist()
        ],
    }


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": round(1e9 * seconds)}


def _labels(model: str, version: int) -> dict[str, str]:
    return {"model": model, "version": str(version)}


def _series(family: str, labels: Mapping[str, str]) -> Series:
    return family, tuple(sorted(labels.items()))
