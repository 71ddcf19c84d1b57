"""Estimates the class prior of unlabelled data from logits, for `training estimate`. NumPy only.

The service computes the same estimate: both call service.contract.shift.verdict.assess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.adjustment import Vector
from service.contract.scores import class_totals
from service.contract.shift.estimation import Estimation
from service.contract.shift.label_shift import MAX_CONDITION, bbse_prior, condition_of
from service.contract.shift.verdict import assess
from training.faults import BadData
from training.scores.source import measure

Labels: TypeAlias = NDArray[np.integer]

METHODS = ("em", "bbse")
REFUSED = ("too_little_traffic", "too_many_classes", "uncalibrated")
"""Verdicts under which `em` has no numbers, because its intervals would be wrong."""


class EstimateRefused(BadData):
    """The data do not support an estimate; the message says why."""


@dataclass(frozen=True)
class HeldOut:
    """A labelled split, to calibrate the estimate where the model has no `estimation` block."""

    logits: Vector
    """[m, C] raw logits."""
    labels: Labels
    log_source_prior: Vector
    """[C] log of the model's source prior sigma, as its training implies it."""

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return int(self.logits.shape[1])

    def measured(
        self,
        *,
        class_frequencies: ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Estimation:
        """Measure the `estimation` block on the split.

        class_frequencies: [C] of training; by default those that sigma implies. class_names: [C],
        for the message. Raises EstimateRefused when a class has no row in the split.
        """
        absent = np.flatnonzero(class_totals(self.labels, self.num_classes) == 0)
        if len(absent):
            first = f"class {absent[0]}" if class_names is None else f"'{class_names[absent[0]]}'"
            raise EstimateRefused(
                f"{len(absent)} of {self.num_classes} classes (the first is {first}) "
                "have no held-out row, so the model's answers for them cannot be measured; give "
                "at least one row of each class"
            )
        return measure(
            self.logits,
            self.labels,
            log_source_prior=self.log_source_prior,
            class_frequencies=class_frequencies,
        )[0]


def estimate(
    logits: ArrayLike,
    calibration: Estimation,
    *,
    class_frequencies: ArrayLike | None = None,
    current: ArrayLike | None = None,
) -> dict[str, Any]:
    """Estimate the prior of unlabelled logits [n, C]; return the object that `--json` prints.

    class_frequencies: [C] of training. current: [C] the target in force, uniform by default;
    `candidate` is pulled toward it. In the result, `em` has the prior with its intervals, or only
    `refused` with the reason. `bbse` is a cross-check by the confusion matrix. `recommended` is
    `em`, or null if that is refused.
    """
    f = np.asarray(logits, np.float64)
    classes = calibration.num_classes
    found = assess(
        f,
        temperature=calibration.temperature,
        log_source=calibration.log_source,
        current=np.full(classes, 1 / classes) if current is None else current,
        calibration=calibration,
        class_frequencies=class_frequencies,
    )
    refused = found.verdict in REFUSED
    em: dict[str, Any] = {"refused": found.reason}
    if not refused:
        em = {
            "prior": found.estimate.prior.tolist(),
            "interval": np.stack([found.estimate.low, found.estimate.high], axis=1).tolist(),
            "effective_n": found.estimate.effective_n,
        }
    return {
        "n": len(f),
        "n_held_out": calibration.validation.rows,
        "verdict": found.verdict,
        "reason": found.reason,
        "evidence": found.evidence(),
        "methods": {"em": em, "bbse": _by_confusion(f, calibration)},
        "candidate": None if refused else found.candidate.tolist(),
        "recommended": None if refused else "em",
    }


def _by_confusion(logits: Vector, calibration: Estimation) -> dict[str, Any]:
    """Estimate by black-box shift estimation: from the confusion matrix, without intervals."""
    if calibration.confusion is None:
        many = f"{calibration.num_classes} classes are too many for a confusion matrix"
        return {"refused": f"{many}; use the estimate by expectation maximisation"}
    predicted = np.bincount(logits.argmax(axis=1), minlength=calibration.num_classes)
    prior = bbse_prior(calibration.confusion, predicted)
    if prior is not None:
        return {"prior": prior.tolist()}
    cells = np.asarray(calibration.confusion)
    never = int((cells.diagonal() == 0).sum())
    wrong = f"; {never} classes are never predicted correctly" if never else ""
    return {
        "refused": f"the confusion matrix is ill-conditioned ({condition_of(cells):.3g}, "
        f"at most {MAX_CONDITION:g}){wrong}; use the estimate by expectation maximisation"
    }
