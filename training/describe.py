"""`training data`: what is in a data specification."""

from typing import Any

from service.contract.scores import GROUPS, group_of
from training import data as sources
from training.data.dataset import Dataset, Split, counts_of
from training.recipe import Recipe, prepare_data


def describe(recipe: Recipe) -> dict[str, Any]:
    """The contract's `data` object: the splits as the specification defines them, or, with a profile, as fit would
    train on them; and under `fit` the sizes that fit would use either way.
    """
    used = prepare_data(recipe)
    shown = used if recipe.profile else sources.load(recipe.data, seed=recipe.seed)
    return {
        "data": recipe.data,
        "kind": shown.kind,
        "class_names": list(shown.class_names),
        "splits": _splits(shown),
        "groups": groups(shown),
        "fit": {name: split["n"] for name, split in _splits(used).items()},
        **(
            {"image": {"size": list(shown.image.size), "color": shown.image.color}}
            if shown.image
            else {}
        ),
    }


def groups(data: Dataset) -> dict[str, int]:
    """How many classes are many, medium and few by their training counts."""
    names = [group_of(count) for count in data.class_counts]
    return {group: names.count(group) for group in GROUPS}


def _splits(data: Dataset) -> dict[str, Any]:
    found: dict[str, Split | None] = {"train": data.train, "val": data.val, "test": data.test}
    return {
        name: {"n": len(split), "class_counts": counts_of(split.labels, data.num_classes).tolist()}
        for name, split in found.items()
        if split is not None
    }
