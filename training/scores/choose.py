"""What networks, penalties and steps are compared by on the validation split. NumPy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.adjustment import log_softmax
from service.contract.scores import class_totals

TEMPERATURES = tuple(float(2 ** (step / 2)) for step in range(-4, 7))
"""0.25 … 8: a network that is too sure is judged by what calibration makes of it."""


def uniform_nll(
    logits: ArrayLike,
    labels: NDArray[np.integer],
    *,
    log_source_prior: ArrayLike,
    temperatures: Sequence[float] = TEMPERATURES,
) -> float:
    """The NLL at the uniform target, in nats: of softmax(f / T - log sigma), at the best T.

    logits [n, C]. Each class weighs as much as another; classes without a row do not count. It is
    what the balanced error follows, and says more of a few rows than the errors among them do.
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
