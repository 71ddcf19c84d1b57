"""The networks that `--network auto` tries, and the one that validation chooses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset
from training.data.problems import is_unspaced
from training.data.sources import load as sources
from training.learning.fronts import edges
from training.run.prepare import Prepared
from training.run.recipe import AUTO, Recipe
from training.scores.choose import uniform_nll

SAMPLE = 10_000
"""Rows that say whether a number has enough values to be cut into pieces."""
MOST_PIECES = 2_048
"""Pieces up to which auto tries the network mlp-pieces: embeddings have more, and no steps."""
MOST_LINEAR = 50_000_000
"""Rows × pieces up to which auto tries linear-pieces, which keeps them in memory (200 MB)."""


@dataclass(frozen=True)
class Tried:
    """A candidate, and how it did on validation."""

    name: str
    uniform_nll: float | None
    """In nats; None without a validation split."""


def candidates(recipe: Recipe) -> list[Recipe]:
    """The recipe itself; or, of network auto, one for each network that suits the data.

    The first one is taken where there is no validation split.
    """
    if recipe.network != AUTO:
        return [recipe]
    data = sources.load(recipe.data, seed=recipe.seed, options=recipe.image_options)
    return _of_kind(recipe, data)


def _of_kind(recipe: Recipe, data: Dataset) -> list[Recipe]:
    if data.kind == "text":
        tokens = [recipe.tokens] if recipe.tokens != "words" else ["words", "subwords"]
        if recipe.tokens == "words" and is_unspaced(data):
            tokens = ["characters"]
        return [_linear(recipe, "tfidf", each) for each in tokens]
    rows = data.kind == "columns" or (
        data.kind == "tensor" and np.asarray(data.train.inputs[:1]).ndim == 2
    )
    if not rows:
        return [replace(recipe, network="mlp")]
    bent = _pieces(data)
    found = [_linear(recipe, "linear", recipe.tokens)]
    if 0 < bent * len(data.train) <= MOST_LINEAR:
        found.append(_linear(recipe, "linear-pieces", recipe.tokens))
    found.append(replace(recipe, network="mlp"))
    if 0 < bent <= MOST_PIECES:
        found.append(replace(recipe, network="mlp-pieces"))
    return found


def _pieces(data: Dataset) -> int:
    """How many inputs the numbers of a table have in pieces."""
    rows = np.asarray(data.train.inputs[:SAMPLE])
    if rows.dtype.names is None:
        columns = list(rows.T)
    else:
        columns = [rows[name].reshape(-1) for name in rows.dtype.names]
    numbers = [column for column in columns if column.dtype.kind in "fiu"]
    return sum(max(0, len(edges(column)) - 1) for column in numbers)


def _linear(recipe: Recipe, network: str, tokens: str) -> Recipe:
    """A linear candidate: the length of the run is that of the others."""
    plain = recipe.optimiser is None and recipe.sampler == "uniform" and recipe.loss != "ldam"
    if not plain:
        return replace(recipe, network=network, tokens=tokens)
    return replace(recipe, network=network, tokens=tokens, steps=None, epochs=None)


def name_of(recipe: Recipe) -> str:
    """A candidate's name in messages and in the run's folder."""
    return f"{recipe.network}-{recipe.tokens}" if recipe.network == "tfidf" else recipe.network


def described(recipe: Recipe, found: Sequence[Tried]) -> str:
    """The network, and what it was chosen from."""
    scores = ", ".join(
        each.name if each.uniform_nll is None else f"{each.name} {each.uniform_nll:.3f}"
        for each in found
    )
    chosen = f" (validation NLL at the uniform target: {scores})" if scores else ""
    return f"{name_of(recipe)}{chosen}"


def tried(recipe: Recipe, ready: Prepared, logits: NDArray[np.float32] | None) -> Tried:
    """How a candidate did: its NLL on validation [n, C] at the uniform target."""
    val = ready.data.val
    if logits is None or val is None:
        return Tried(name_of(recipe), None)
    nll = uniform_nll(logits, val.labels, log_source_prior=ready.log_source_prior)
    return Tried(name_of(recipe), nll)


def best_of(found: Sequence[Tried]) -> int:
    """The place of the candidate with the lowest NLL; the first one without validation."""
    scores = [each.uniform_nll for each in found]
    if any(score is None for score in scores):
        return 0
    return int(np.argmin([score for score in scores if score is not None]))
