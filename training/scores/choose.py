"""The validation score by which networks, penalties and steps are compared. NumPy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.adjustment import log_softmax
from service.contract.scores import class_totals

TEMPERATURES = tuple(float(2 ** (step / 2)) for step in range(-4, 7))
"""0.25 … 8: an overconfident network is judged after calibration."""


def uniform_nll(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    temperatures: Sequence[float] = TEMPERATURES,
) -> float:
    """The NLL at the uniform target, in nats: of softmax(f / T - log sigma), at the best T.

    logits [n, C]. All classes have the same weight; classes without a row do not count. This score
    agrees with the balanced error, and is more informative on few rows.
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
