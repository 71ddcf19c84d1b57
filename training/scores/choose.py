"""The validation score by which networks, penalties and steps are compared. NumPy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.adjustment import log_softmax
from service.contract.scores import class_totals

TEMPERATURES = tuple(float(2 ** (step / 2)) for step in range(-4, 7))
"""0.25 … 8. An overconfident network is thus judged as it will be after calibration."""


def uniform_nll(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    temperatures: Sequence[float] = TEMPERATURES,
) -> float:
    """Return the NLL in nats of softmax(f / T - log sigma), the uniform target, at the best T.

    logits: [n, C]; labels: [n]; log_source_prior: [C] log sigma. Every class has equal weight;
    classes without a row do not count. On few rows, the NLL ranks models more reliably than the
    balanced error, which it tracks.
    """
    f = np.asarray(logits, np.float64)
    totals = class_totals(labels, f.shape[1])
    weights = (1 / np.maximum(totals, 1))[labels] / np.count_nonzero(totals)
    rows = np.arange(len(f))
    source = np.asarray(log_source_prior, np.float64)
    return min(
        -float(weights @ log_softmax(f / temperature - source)[rows, labels])
        for temperature in temperatures
    )
