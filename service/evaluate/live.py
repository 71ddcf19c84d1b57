"""Estimates the error of live traffic: from labels, and from the posterior alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.contract.bundle import Bundle
from service.contract.members.costs import REJECTED
from service.contract.scores import group_of
from service.evaluate.answers import Answers
from service.evaluate.ppi import Figures, Labelled, Predicted, figures, without_labels
from service.evaluate.ring import NO_LABEL, ROW, Rows, pieces

_NO_TIME = 2e11
"""Seconds since 1970 that no clock shows: beyond the year 8000."""
MAX_ROWS = 500_000
"""The most answers, the newest, that figures are computed from."""
MAX_LABELS = 20_000
"""The most labels, the newest, that figures are computed from."""

Origin: TypeAlias = Literal["estimate", "target", "training"]


class Mix(NamedTuple):
    """The best known class mix of the traffic.

    prior: [C]. log_source: [C] log σ, None where it is unknown. origin: whether the mix is an
    estimate, an expected target, or the training mix.
    """

    prior: Vector
    log_source: Vector | None
    origin: Origin


@dataclass(frozen=True)
class Live:
    """The figures of one model version. `by_labels` is None without labels of known sampling.

    of_labelled: (number of labels, error) of the labelled answers, without sampling weights.
    """

    rows: int
    rejected: int
    since: datetime | None
    until: datetime | None
    labels: int
    sampled: int
    mix: Mix
    by_labels: Figures | None
    by_posterior: dict[str, float]
    of_labelled: tuple[int, float] | None
    label_counts: NDArray[np.int64]


class Evaluation:
    """Computes the figures of model versions, and publishes them for the metrics."""

    def __init__(self, answers: Answers, mix_of: Callable[[Bundle], Mix]) -> None:
        """mix_of: returns the class mix of a version's traffic; called in the computing thread."""
        self._answers, self.mix_of = answers, mix_of
        self.published = answers.published

    def of(self, bundle: Bundle) -> Live:
        """The current figures of a version. Call it in a thread: it may take a second."""
        found = live(self.rows(bundle), self.mix_of(bundle), bundle)
        if found.by_labels is not None:
            error = found.by_labels.balanced_error
            self._answers.publish(bundle.name, bundle.version, error._asdict())
        return found

    def rows(self, bundle: Bundle) -> Rows:
        """The answers of a version that all workers keep, oldest first."""
        self._answers.flush()
        parts = [
            rows
            for model, version, rows in self._answers.files()
            if (model, version) == (bundle.name, bundle.version)
        ]
        return _fitting(_fresh(parts, self._answers.seconds), len(bundle.class_names))

    def refresh(self, bundles: Iterable[Bundle]) -> None:
        """Compute and publish the figures of those versions that have labels."""
        labelled = {
            (model, version)
            for model, version, rows in self._answers.files()
            if (rows["label"] != NO_LABEL).any()
        }
        for bundle in bundles:
            if (bundle.name, bundle.version) in labelled:
                self.of(bundle)


def _fitting(rows: Rows, classes: int) -> Rows:
    """The rows that a version with this many classes can have written: copies come from the
    store.
    """
    fits = (rows["decided"] >= REJECTED) & (rows["decided"] < classes)
    fits &= (rows["label"] >= NO_LABEL) & (rows["label"] < classes)
    fits &= ((rows["top"] >= -1) & (rows["top"] < classes)).all(axis=1)
    fits &= (rows["at"] >= 0) & (rows["at"] < _NO_TIME)
    fits &= ~((rows["sampled"] <= 0) | (rows["sampled"] > 1))
    return rows if fits.all() else rows[fits]


def _fresh(parts: Sequence[Rows], seconds: float) -> Rows:
    """The newest rows of all workers that are not too old, oldest first."""
    oldest = datetime.now(UTC).timestamp() - seconds
    times: Vector = np.empty(0)
    for rows in chain.from_iterable(map(pieces, parts)):
        times = np.concatenate([times, rows["at"][rows["at"] >= oldest]])
        if len(times) > MAX_ROWS:
            times = np.partition(times, -MAX_ROWS)[-MAX_ROWS:]
            oldest = times[0]
    fresh = [rows[rows["at"] >= oldest] for rows in chain.from_iterable(map(pieces, parts))]
    if not fresh:
        return np.empty(0, ROW)
    found = np.concatenate(fresh)
    newest: Rows = found[np.argsort(found["at"], kind="stable")[-MAX_ROWS:]]
    return newest


def live(rows: Rows, mix: Mix, bundle: Bundle) -> Live:
    """The figures of rows of one version, under the class mix of its traffic."""
    classes = len(bundle.class_names)
    if len(rows) == 0:
        empty = np.zeros(classes, np.int64)
        return Live(0, 0, None, None, 0, 0, mix, None, {}, None, empty)
    groups = groups_of(bundle)
    everything = predicted(rows, mix)
    labelled = np.flatnonzero(rows["label"] != NO_LABEL)[-MAX_LABELS:]
    label = rows["label"][labelled].astype(np.int64)
    known = ~np.isnan(rows["sampled"][labelled])
    chosen = labelled[known]
    by_labels = None
    if len(chosen):
        ours = Labelled(
            everything.take(chosen),
            rows["label"][chosen].astype(np.int64),
            1.0 / rows["sampled"][chosen].astype(np.float64),
        )
        by_labels = figures(everything, ours, groups=groups, classes=classes)
    decided = everything.decided[labelled]
    kept = decided != REJECTED
    of_labelled = None
    if kept.any():
        of_labelled = int(kept.sum()), float((decided[kept] != label[kept]).mean())
    since, until = (
        datetime.fromtimestamp(float(rows["at"][place]), UTC) for place in (0, len(rows) - 1)
    )
    return Live(
        rows=len(rows),
        rejected=int((everything.decided == REJECTED).sum()),
        since=since,
        until=until,
        labels=len(labelled),
        sampled=len(chosen),
        mix=mix,
        by_labels=by_labels,
        by_posterior=without_labels(everything, groups=groups, classes=classes),
        of_labelled=of_labelled,
        label_counts=np.bincount(label, minlength=classes),
    )


def predicted(rows: Rows, mix: Mix) -> Predicted:
    """The posterior of each row under a class mix, over the classes that were kept."""
    classes = rows["top"].astype(np.int64)
    score = rows["score"].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.log(mix.prior)
        if mix.log_source is not None:
            shift = shift - mix.log_source
        logits = np.where(classes >= 0, score + shift[classes], -np.inf)
        peak = logits.max(axis=1, keepdims=True)
        weight = np.where(np.isfinite(peak), np.exp(logits - peak), classes == classes[:, :1])
    chances: Vector = weight / weight.sum(axis=1, keepdims=True)
    return Predicted(classes, chances, rows["decided"].astype(np.int64))


def groups_of(bundle: Bundle) -> dict[str, NDArray[np.int64]]:
    """The classes of the groups many, medium and few; empty where class_counts are unknown."""
    if bundle.class_counts is None:
        return {}
    order = ("many", "medium", "few")
    groups = (order.index(group_of(count)) for count in bundle.class_counts)
    numbers = np.fromiter(groups, np.int8, len(bundle.class_counts))
    places = {name: np.flatnonzero(numbers == at) for at, name in enumerate(order)}
    return {name: found for name, found in places.items() if len(found)}
