"""Counts the metrics of one model version, once per batch, with NumPy."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.batching.facts import BatchFacts
from service.contract.bundle import Bundle
from service.contract.members.costs import REJECTED
from service.contract.members.named import vector_of
from service.contract.scores import group_of
from service.observe.exposition import NAMES, VectorGauge
from service.observe.statistics import VersionStatistics
from service.observe.tally import Cells, Histogram, Tally, one_by_one

DECISIONS = ("adjusted", "unadjusted")
BY_COST = ("as_predicted", "by_cost", "rejected")
"""The decision under costs: the most probable class, another one, or none."""
OTHER = "__other__"
REASONS = ("overloaded", "deadline", "abandoned", "failed", "invalid")
"""Why requests that a model accepted are not scored."""


@dataclass(frozen=True)
class ClassSeries:
    """The series that the classes of a model have. class_cell, group_cell: [C], the place of each
    class among them. class_names, group_names: their names in order, as JSON.
    """

    class_cell: NDArray[np.int64]
    group_cell: NDArray[np.int64]
    class_names: str
    group_names: str
    classes: int
    groups: int

    @classmethod
    def of(cls, bundle: Bundle, *, most: int) -> "ClassSeries":
        """Work them out, for a million classes in half a second: call it in a thread.

        most: classes with a series of their own, the most frequent first.
        """
        classes = len(bundle.class_names)
        shown = min(classes, most)
        cell = np.minimum(_by_frequency(bundle), shown) if shown < classes else np.arange(classes)
        counts = bundle.class_counts
        groups = ["unknown"] * classes if counts is None else [group_of(count) for count in counts]
        there = set(groups)
        present: list[str] = [g for g in ("many", "medium", "few", "unknown") if g in there]
        place = {group: at for at, group in enumerate(present)}
        names = _shown_names(bundle.class_names, cell, shown)
        return cls(
            class_cell=cell,
            group_cell=np.fromiter((place[g] for g in groups), np.int64, classes),
            class_names=json.dumps(["class", *names]),
            group_names=json.dumps(["group", *present]),
            classes=len(names),
            groups=len(present),
        )


class ModelMetrics:
    """Counts the batches, predictions, taus and refusals of one model version."""

    def __init__(
        self,
        tally: Tally,
        of_version: Tally,
        bundle: Bundle,
        *,
        statistics: VersionStatistics,
        series: ClassSeries,
    ) -> None:
        """Count by model in `tally`, and by version in `of_version`.

        bundle: of the version. statistics: the figures of the version that Triton's protocol
        reports. series: of its classes.
        """
        labels = {"model": bundle.name, "version": str(bundle.version)}
        by_model = {"model": bundle.name}
        self._class_cell, self._group_cell = series.class_cell, series.group_cell
        self._class_names, self._group_names = series.class_names, series.group_names
        self.class_series, self._group_series = series.classes, series.groups
        self._classes = [
            of_version.cells(
                "priordial_predictions",
                {**labels, "decision": d, NAMES: self._class_names},
                series.classes,
            )
            for d in DECISIONS
        ]
        self._groups = [
            of_version.cells(
                "priordial_group_predictions",
                {**labels, "decision": d, NAMES: self._group_names},
                series.groups,
            )
            for d in DECISIONS
        ]
        self._one_class = [one_by_one(cells) for cells in self._classes]
        self._one_group = [one_by_one(cells) for cells in self._groups]
        self._scored, self._failed = (
            of_version.cells("priordial_version_requests", {**labels, "outcome": outcome})
            for outcome in ("scored", "failed")
        )
        self._seconds = of_version.cells("priordial_version_inference_seconds", labels)
        self._changed = of_version.cells("priordial_decisions_changed", labels)
        self._by_cost = [
            of_version.cells("priordial_decisions", {**labels, "decision": d}) for d in BY_COST
        ]
        self._inference = Histogram.of(tally, "priordial_inference_seconds", by_model)
        self._rows = Histogram.of(tally, "priordial_batch_rows", by_model)
        self._queue = Histogram.of(tally, "priordial_queue_seconds", by_model)
        self._tau = Histogram.of(tally, "priordial_tau", by_model)
        self._by_model = by_model
        self._of_version, self._labels = of_version, labels
        self._statistics = statistics
        self._rejected: dict[str, Cells] = {  # at 0 from the start, so that rate() sees the first
            reason: tally.cells("priordial_rejected", {**by_model, "reason": reason})
            for reason in REASONS
        }

    def batch(self, facts: BatchFacts) -> None:
        """Count one graph call. Only rows that answer traffic count as predictions."""
        outputs = facts.outputs
        adjusted, unadjusted = outputs.top_index[:, 0], outputs.unadjusted_index
        if facts.answered is not None:
            adjusted, unadjusted = adjusted[facts.answered], unadjusted[facts.answered]
        if len(adjusted) == 1:  # as below, without a call of NumPy: a request alone in its batch
            self._count_one(adjusted.item(), unadjusted.item())
        else:
            for which, decided in enumerate((adjusted, unadjusted)):
                _count(self._classes[which], self._class_cell[decided])
                _count(self._groups[which], self._group_cell[decided])
            self._changed[0] += np.count_nonzero(adjusted != unadjusted)
        self._scored[0] += facts.requests
        self._seconds[0] += facts.seconds
        if outputs.decision is not None:
            decision = outputs.decision
            if facts.answered is not None:
                decision = decision[facts.answered]
            self._count_by_cost(decision, adjusted)
        self._inference.observe(facts.seconds)
        self._rows.observe(facts.rows)
        queued = self._queue.observe_all(facts.queue_seconds)
        self._tau.observe_all(facts.taus)
        self._statistics.batch(facts, queue_seconds=queued)

    def _count_one(self, adjusted: int, unadjusted: int) -> None:
        """Count the classes that one row was decided for."""
        class_cell, group_cell = self._class_cell.item, self._group_cell.item
        for which, decided in enumerate((adjusted, unadjusted)):
            self._one_class[which][class_cell(decided)] += 1
            self._one_group[which][group_cell(decided)] += 1
        if adjusted != unadjusted:
            self._changed[0] += 1

    def _count_by_cost(self, decision: NDArray[np.int64], adjusted: NDArray[np.int64]) -> None:
        """Count the rows that were decided by cost."""
        same = np.count_nonzero(decision == adjusted)
        rejected = np.count_nonzero(decision == REJECTED)
        for cell, number in zip(
            self._by_cost,
            (same, np.count_nonzero(decision >= 0) - same, rejected),
            strict=True,
        ):
            cell[0] += number

    def feedback(self, outcome: str, number: int) -> None:
        """Count answers that feedback labelled: right, wrong or undecided."""
        self._of_version.cells("priordial_feedback", {**self._labels, "outcome": outcome})[0] += (
            number
        )

    def target(self, prior: str, target: NDArray[np.float64]) -> Iterable[VectorGauge]:
        """Yield the gauges of a prior's target [C], by class and by group."""
        labels = {**self._by_model, "prior": prior}
        for name, names, cell, series in (
            ("priordial_target_prior", self._class_names, self._class_cell, self.class_series),
            (
                "priordial_group_target_prior",
                self._group_names,
                self._group_cell,
                self._group_series,
            ),
        ):
            yield (
                name,
                {**labels, NAMES: names},
                np.bincount(cell, target, series).astype(np.float64),
            )

    def estimated(
        self,
        prior: NDArray[np.float64],
        low: NDArray[np.float64],
        high: NDArray[np.float64],
    ) -> Iterable[VectorGauge]:
        """Yield the gauges of the tracked class mix [C] and of the ends of its intervals.

        The ends of classes without a series of their own are summed, which is wide enough.
        """
        labels = {**self._by_model, NAMES: self._class_names}
        for name, vector in (("", prior), ("_low", low), ("_high", high)):
            summed = np.bincount(self._class_cell, vector, self.class_series)
            yield (
                f"priordial_estimated_prior{name}",
                labels,
                np.minimum(summed, 1.0).astype(np.float64),
            )

    def rejected(self, reason: str) -> None:
        """Count a request without scores. Reasons: overloaded, deadline, abandoned, failed,
        invalid.
        """
        self._rejected[reason][0] += 1
        self._failed[0] += 1
        self._statistics.failed()


_FEW_CELLS = 256


def _count(cells: Cells, at: NDArray[np.int64]) -> None:
    """Add 1 to a cell for each time that `at` names it. For few cells, a histogram is faster."""
    if len(cells) <= _FEW_CELLS:
        cells += np.bincount(at, minlength=len(cells))
    else:
        np.add.at(cells, at, 1)


def _by_frequency(bundle: Bundle) -> NDArray[np.int64]:
    """Return the rank [C] of each class by training count; in output order where counts are
    unknown.
    """
    classes = len(bundle.class_names)
    if bundle.class_counts is None:
        return np.arange(classes)
    rank = np.empty(classes, np.int64)
    rank[np.argsort(-vector_of(bundle.class_counts), kind="stable")] = np.arange(classes)
    return rank


def _shown_names(
    class_names: Sequence[str], class_cell: NDArray[np.int64], shown: int
) -> list[str]:
    if shown == len(class_names):
        return list(class_names)
    names = [""] * shown + [OTHER]
    for name, cell in zip(class_names, class_cell.tolist(), strict=True):
        if cell < shown:
            names[cell] = name
    return names
