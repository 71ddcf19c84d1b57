"""The class mix of each context's traffic, pulled towards the overall mix where rows are few.

    q ← (Σ_i r_i + κ·q_whole) / (n + κ),    r_iy ∝ q_y · p_i(y) / σ_y        κ = 5·C rows

This is expectation maximisation (Saerens et al. 2002) with a Dirichlet prior at the mix of all
contexts together (q_whole). A context with few rows stays near that mix; one with many follows its
own rows.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.evaluate.live import Mix, predicted
from service.evaluate.ring import Rows, context_code

ROWS_PER_CLASS = 5
"""κ / C: the weight of the overall mix, in rows per class."""
MAX_CONTEXTS = 100
"""The most contexts of one prior that are estimated: those with the most rows."""
_STEPS = 200
_CLOSE = 1e-6


class Context(NamedTuple):
    """One context: its key and value, its rows, and the mix of their classes [C]."""

    key: str
    value: str
    rows: int
    mix: Vector


def pooled(
    rows: Rows, prior: str, contexts: Iterable[tuple[str, str]], mix: Mix
) -> tuple[int, Vector, list[Context]]:
    """Return (rows, overall mix of a prior's contexts, the contexts with rows, largest first).

    contexts: the (key, value) pairs to look for. mix: that of all traffic, towards which the
    overall mix is pulled in turn; its log σ must be known.
    """
    found = [(key, value, context_code(prior, key, value)) for key, value in contexts]
    codes, counts = np.unique(rows["context"], return_counts=True)
    held = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    there = [each for each in found if each[2] in held]
    there.sort(key=lambda each: -held[each[2]])
    of_prior = np.flatnonzero(np.isin(rows["context"], [code for _, _, code in there]))
    ours = rows[of_prior]
    classes, likelihood = _likelihoods(ours, mix)
    whole = _em(classes, likelihood, towards=mix.prior / mix.prior.sum())
    estimated = []
    for key, value, code in there[:MAX_CONTEXTS]:
        mine = np.flatnonzero(ours["context"] == code)
        own = _em(classes[mine], likelihood[mine], towards=whole)
        estimated.append(Context(key, value, len(mine), own))
    return len(ours), whole, estimated


def _likelihoods(rows: Rows, mix: Mix) -> tuple[NDArray[np.int64], Vector]:
    """Classes [n, k], with C for no class, and p(y) / σ(y) of each, up to a factor per row."""
    assert mix.log_source is not None
    flat = predicted(rows, Mix(np.ones(len(mix.prior)), mix.log_source, mix.origin))
    there = flat.classes >= 0
    return np.where(there, flat.classes, len(mix.prior)), np.where(there, flat.probabilities, 0.0)


def _em(classes: NDArray[np.int64], likelihood: Vector, *, towards: Vector) -> Vector:
    """The class mix [C] of rows, pulled towards another mix with the weight of κ rows."""
    weight = ROWS_PER_CLASS * len(towards)
    q = towards
    for _ in range(_STEPS):
        shares = likelihood * np.append(q, 0.0)[classes]
        total = shares.sum(axis=1, keepdims=True)
        shares = np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)
        counts = np.bincount(classes.ravel(), shares.ravel(), len(q) + 1)[: len(q)]
        fresh: Vector = (counts + weight * towards) / (counts.sum() + weight)
        if np.abs(fresh - q).sum() < _CLOSE:
            return fresh
        q = fresh
    return q
