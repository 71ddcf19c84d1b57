"""One scoring, many answers: the formula in float64 over logits that are at hand, for several settings of tau and prior."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, adjust_logits, softmax
from service.priors.revisions import PriorRevision


@dataclass(frozen=True, slots=True)
class Setting:
    """A tau and the prior that goes with it."""

    tau: float
    revision: PriorRevision


@dataclass(frozen=True, slots=True)
class Ranking:
    """The k best classes of each row, best first; ties go to the lower index."""

    indices: NDArray[np.int64]  # [n, k]
    probabilities: Vector  # [n, k]


def rank(
    logits: NDArray[Any], setting: Setting | None, *, temperature: float, top_k: int
) -> Ranking:
    """Rank the classes of logits [n, C] under a setting; None is tau = 0.

    The setting's prior must have an offset unless its tau is 0.
    """
    adjusted = np.asarray(logits, np.float64) / temperature
    if setting is not None and setting.tau:
        prior = setting.revision.prior
        assert prior.log_source is not None
        adjusted = adjust_logits(
            logits,
            log_source_prior=prior.log_source,
            log_target_prior=prior.log_target,
            tau=setting.tau,
            temperature=temperature,
        )
    indices = best(adjusted, top_k)
    return Ranking(indices, np.take_along_axis(softmax(adjusted), indices, axis=1))


def best(values: NDArray[Any], k: int) -> NDArray[np.int64]:
    """[n, k] columns of the k largest of each row, largest first, the lower column where they are equal."""
    columns = values.shape[1]
    if 4 * k >= columns:
        return np.argsort(-values, axis=1, kind="stable")[:, :k]
    smallest_taken = np.partition(values, columns - k, axis=1)[:, columns - k]
    found = np.empty((len(values), k), np.int64)
    for row, (line, least) in enumerate(zip(values, smallest_taken, strict=True)):
        candidates = np.flatnonzero(line >= least)
        found[row] = candidates[np.argsort(-line[candidates], kind="stable")[:k]]
    return found
