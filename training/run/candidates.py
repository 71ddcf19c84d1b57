"""Lists the networks that `--network auto` tries, and picks the best on validation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, has_categories
from training.data.problems import is_one_word, is_unspaced
from training.data.sources import load as sources
from training.learning.fronts import edges
from training.run.prepare import Prepared
from training.run.recipe import AUTO, Recipe
from training.scores.choose import uniform_nll

SAMPLE = 10_000
"""How many rows are examined to find out whether a number has enough values for pieces."""
MOST_PIECES = 2_048
"""The most pieces for which auto tries mlp-pieces: embeddings have more, and gain nothing."""
MOST_LINEAR = 50_000_000
"""The most rows × pieces for which auto tries linear-pieces, which keeps them in memory (200
MB).
"""


@dataclass(frozen=True)
class Tried:
    """A candidate and its validation score."""

    name: str
    uniform_nll: float | None
    """Validation NLL in nats; None without a validation split."""


def candidates(recipe: Recipe) -> list[Recipe]:
    """Return the recipe itself or, for network auto, one recipe per network that suits the data.

    The first is used if there is no validation split.
    """
    if recipe.network != AUTO:
        return [recipe]
    data = sources.load(recipe.data, seed=recipe.seed, options=recipe.image_options)
    return _of_kind(recipe, data)


def _of_kind(recipe: Recipe, data: Dataset) -> list[Recipe]:
    if data.kind == "text":
        tokens = [recipe.tokens]
        if recipe.tokens == "words":
            tokens = ["words", "split-words", "subwords"]
        if recipe.tokens == "words" and (is_unspaced(data) or is_one_word(data)):
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
    if has_categories(data):
        found.append(_linear(recipe, "linear-scaled", recipe.tokens))
    found.append(replace(recipe, network="mlp"))
    if 0 < bent <= MOST_PIECES:
        found.append(replace(recipe, network="mlp-pieces"))
    if has_categories(data):
        found.append(replace(recipe, network="mlp-scaled"))
    return found


def _pieces(data: Dataset) -> int:
    """Return how many inputs the numbers of a table become when cut into pieces."""
    rows = np.asarray(data.train.inputs[:SAMPLE])
    if rows.dtype.names is None:
        columns = list(rows.T)
    else:
        columns = [rows[name].reshape(-1) for name in rows.dtype.names]
    numbers = [column for column in columns if column.dtype.kind in "fiu"]
    return sum(max(0, len(edges(column)) - 1) for column in numbers)


def _linear(recipe: Recipe, network: str, tokens: str) -> Recipe:
    """Make a linear candidate, without steps and epochs: L-BFGS has no length."""
    plain = recipe.optimiser is None and recipe.sampler == "uniform" and recipe.loss != "ldam"
    if not plain:
        return replace(recipe, network=network, tokens=tokens)
    return replace(recipe, network=network, tokens=tokens, steps=None, epochs=None)


def name_of(recipe: Recipe) -> str:
    """Return a candidate's name, for messages and the run's folder."""
    return (
        f"{recipe.network}-{Path(recipe.tokens).stem}"
        if recipe.network == "tfidf"
        else recipe.network
    )


def described(recipe: Recipe, found: Sequence[Tried]) -> str:
    """Describe the chosen network and the candidates."""
    scores = ", ".join(
        each.name if each.uniform_nll is None else f"{each.name} {each.uniform_nll:.3f}"
        for each in found
    )
    chosen = f" (validation NLL at the uniform target: {scores})" if scores else ""
    return f"{name_of(recipe)}{chosen}"


def tried(recipe: Recipe, ready: Prepared, logits: NDArray[np.float32] | None) -> Tried:
    """Score a candidate by the NLL of its validation logits [n, C] at the uniform target."""
    val = ready.data.val
    if logits is None or val is None:
        return Tried(name_of(recipe), None)
    nll = uniform_nll(logits, val.labels, log_source_prior=ready.log_source_prior)
    return Tried(name_of(recipe), nll)


def best_of(found: Sequence[Tried]) -> int:
    """Return the index of the candidate with the lowest NLL; 0 without validation."""
    scores = [each.uniform_nll for each in found]
    if any(score is None for score in scores):
        return 0
    return int(np.argmin([score for score in scores if score is not None]))
