"""Temperature and tau of a run, fitted to its validation split and to nothing else."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from training.data.dataset import Labels
from training.faults import say
from training.scores.calibrate import (
    TauChoice,
    choose_tau,
    fit_temperature,
    log_validation_prior_of,
)

FEWEST_ROWS = 30  # fewer could put the temperature anywhere


@dataclass(frozen=True)
class Calibration:
    """The result of calibration; without a validation split, temperature 1 and tau 1."""

    temperature: float = 1.0
    tau: float = 1.0
    choice: TauChoice | None = None

    def tau_object(self) -> dict[str, Any]:
        """The `tau` member of fit's answer."""
        return {
            "chosen": self.tau,
            "validation_curve": [list(point) for point in self.choice.curve] if self.choice else [],
            "interval": list(self.choice.interval) if self.choice else None,
        }


def calibrate(
    logits: NDArray[np.float32] | None, labels: Labels | None, *, log_source_prior: Vector
) -> Calibration:
    """Fit the temperature, then choose tau for the balanced error.

    logits [n, C] and labels [n] are those of the validation split; without one, both stay 1. With
    fewer than FEWEST_ROWS rows the temperature stays 1, and a line on stderr says so.
    """
    if logits is None or labels is None:
        return Calibration()
    temperature = 1.0
    if len(labels) < FEWEST_ROWS:
        say(
            f"only {len(labels)} validation rows: no temperature is fitted, and the chosen tau "
            "means little"
        )
    else:
        temperature = fit_temperature(
            logits,
            labels,
            log_source_prior=log_source_prior,
            log_validation_prior=log_validation_prior_of(labels, logits.shape[1]),
        )
    choice = choose_tau(logits, labels, log_source_prior=log_source_prior, temperature=temperature)
    return Calibration(temperature, choice.chosen, choice)
