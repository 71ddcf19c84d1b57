"""`training data`: describes the contents of a data specification."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.scores import GROUPS, group_of
from training.data.dataset import Dataset, Split, counts_of
from training.data.image_files import made_ready
from training.data.order import Part
from training.data.problems import check_held_out, columns_of, problems
from training.data.sources import load as sources
from training.data.splits import set_aside_validation
from training.faults import BadData, WrongUse, say
from training.run.prepare import prepare_data, with_profile
from training.run.recipe import Recipe

SHOWN_VALUES = 5
"""The most values shown of a category, the most frequent first."""


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return the object that `training data --json` prints.

    `splits` are those that the specification defines, with the profile if there is one. For data
    without a validation split, the rows that a fit would set aside count as training rows here;
    Fashion-MNIST and digits define a validation split of their own. `fit` has the sizes that a fit
    would use, and `problems` lists likely faults of the data. Every image is read.
    """
    loaded = sources.load(recipe.data, seed=recipe.seed, options=recipe.image_options)
    data = made_ready(loaded, in_memory=False, part=Part(), skip_broken=recipe.skip_broken)
    shown = data
    if recipe.profile is not None and (
        data.val_per_class is not None or recipe.validation_per_class is not None
    ):
        shown = set_aside_validation(data, per_class=recipe.validation_per_class, seed=recipe.seed)
    shown = with_profile(recipe, shown)
    found: dict[str, Any] = {
        "data": recipe.data,
        "kind": shown.kind,
        "class_names": list(shown.class_names),
        "splits": _splits(shown),
        "groups": groups(shown),
        "fit": _fit(recipe),
        "problems": problems(shown),
    }
    if shown.kind in {"tensor", "columns"}:
        found["columns"] = columns(shown)
    if shown.image is not None:
        found["image"] = {"size": list(shown.image.size), "color": shown.image.color}
    return found


def columns(data: Dataset) -> list[dict[str, Any]]:
    """Describe each column of the training rows: name, kind, distinct and missing values, range."""
    found = columns_of(data.train.inputs, data.origin.get("columns"))
    return [_column(name, values) for name, values in found.items()]


def _column(name: str, values: NDArray[Any]) -> dict[str, Any]:
    if values.dtype == object:
        counts = Counter(values)
        common = [value for value, _ in counts.most_common(SHOWN_VALUES)]
        kind: dict[str, Any] = {"kind": "category", "values": common}
        return {"name": name} | kind | {"distinct": len(counts), "missing": counts[""]}
    there = values[~np.isnan(values)]
    return {
        "name": name,
        "kind": values.dtype.name,
        "min": float(there.min()) if len(there) else None,
        "max": float(there.max()) if len(there) else None,
        "distinct": len(np.unique(there)),
        "missing": len(values) - len(there),
    }


def groups(data: Dataset) -> dict[str, int]:
    """Return how many classes count as many, medium and few by their training rows."""
    names = [group_of(count) for count in data.class_counts]
    return {group: names.count(group) for group in GROUPS}


def _fit(recipe: Recipe) -> dict[str, int] | None:
    """Return the rows of each split in a fit; None if a fit would refuse, with why on stderr."""
    try:
        used = prepare_data(recipe)
        check_held_out(used)
    except (WrongUse, BadData) as error:
        say(f"fit would refuse these data: {error}")
        return None
    return {name: split["n"] for name, split in _splits(used).items()}


def _splits(data: Dataset) -> dict[str, Any]:
    found: dict[str, Split | None] = {"train": data.train, "val": data.val, "test": data.test}
    return {
        name: {"n": len(split), "class_counts": counts_of(split.labels, data.num_classes).tolist()}
        for name, split in found.items()
        if split is not None
    }
