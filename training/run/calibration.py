"""Fits the temperature, source prior and tau of a run to its validation split alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.contract.shift.estimation import Estimation
from training.data.dataset import Labels
from training.faults import say
from training.learning.losses import SourcePrior
from training.scores.calibrate import TauChoice, Temperature, choose_tau
from training.scores.source import measure

MAX_NAMED_CLASSES = 5
UNMEASURED = (
    "this loss or sampler has only an approximate source prior, which validation rows of every "
    "class would measure. Compare the scores at τ = 0 and τ = 1 before you serve the model"
)


@dataclass(frozen=True)
class Calibration:
    """The values fitted to the validation split; without one, temperature 1 and tau 1."""

    fitted: Temperature | None = None
    tau: float = 1.0
    choice: TauChoice | None = None
    estimation: Estimation | None = None
    """The `estimation` block of model.json."""

    @property
    def temperature(self) -> float:
        """The temperature T, as model.json states it."""
        return 1.0 if self.estimation is None else self.estimation.temperature

    @property
    def temperature_interval(self) -> list[float] | None:
        """The 95 % likelihood interval of T; None if T was not fitted."""
        return None if self.fitted is None else list(self.fitted.interval)

    def log_source_prior(self, implied: Vector) -> Vector:
        """Return the log source prior [C] with which the service adjusts: the measured one if any.

        implied: [C], the one that the training counts imply; used if the split lacks a class.
        """
        block = self.estimation
        if block is None or not block.calibrates_every_class:
            return implied
        return block.log_source

    def tau_object(self) -> dict[str, Any]:
        """Return the `tau` member of the object that `fit` prints."""
        return {
            "chosen": self.tau,
            "lowest": None if self.choice is None else self.choice.lowest,
            "validation_curve": [list(point) for point in self.choice.curve] if self.choice else [],
            "interval": list(self.choice.interval) if self.choice else None,
        }


def calibrate(
    logits: NDArray[np.float32] | None,
    labels: Labels | None,
    *,
    log_source_prior: Vector,
    class_counts: Sequence[float] | NDArray[Any],
    class_names: Sequence[str],
    source_prior: SourcePrior = "exact",
) -> Calibration:
    """Measure the estimation block, then choose tau for the balanced error.

    logits [n, C] and labels [n] are of the validation split; without them, T and tau stay 1.
    source_prior: whether training implies one exactly. Warnings on stderr name the values for which
    the split is too small.
    """
    if logits is None or labels is None:
        if source_prior == "approximate":
            say(UNMEASURED)
        return Calibration()
    block, fitted = measure(
        logits, labels, log_source_prior=log_source_prior, class_frequencies=class_counts
    )
    _say_doubts(block, fitted, class_names)
    if source_prior == "approximate" and not block.calibrates_every_class:
        say(UNMEASURED)
    calibration = Calibration(fitted, estimation=block)
    choice = choose_tau(
        logits,
        labels,
        log_source_prior=calibration.log_source_prior(log_source_prior),
        temperature=block.temperature,
    )
    return Calibration(fitted, choice.chosen, choice, block)


def _say_doubts(block: Estimation, fitted: Temperature, class_names: Sequence[str]) -> None:
    if fitted.why_one is not None:
        say(f"the temperature stays 1: {fitted.why_one}")
    elif fitted.is_wide:
        low, high = fitted.interval
        say(
            f"the temperature {fitted.value:.2f} is uncertain: its 95 % interval is {low:.2f} … "
            f"{high:.2f}; more validation rows would narrow it"
        )
    counts = block.validation.class_counts
    absent = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if absent:
        more = "" if len(absent) <= MAX_NAMED_CLASSES else " …"
        say(
            f"{len(absent)} of {len(counts)} classes have no validation row and no part in "
            f"temperature, tau and validation scores: {', '.join(absent[:MAX_NAMED_CLASSES])}{more}"
        )
