"""Draws stratified splits, and a long-tailed training set from a balanced one."""

import math

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Labels, Split, counts_of, rows_by_class
from training.faults import WrongUse

Rows = NDArray[np.int64]
SHARE, SHARE_OF_FEW, FEW_ROWS = (
    0.1,
    0.2,
    2000,
)  # of each class for validation; more of small data, or it tells nothing
SPLIT_SEED = 20200714  # the seed of splits that must be the same for every run


def stratified(
    labels: Labels, *, per_class: int | None = None, share: float = 0.1, keep: int = 1, seed: int
) -> tuple[Rows, Rows]:
    """Split labels [N] into row numbers (kept, drawn), each in ascending order.

    per_class: rows to draw of each class; None draws the share `share`. Each class keeps at least
    `keep` rows, and one with more gives at least one. With keep = 1, a class of two rows gives one
    and a class of one row none.
    """
    generator = np.random.default_rng(seed)
    drawn: list[Rows] = []
    for rows in rows_by_class(labels, int(labels.max(initial=-1)) + 1):
        wanted = per_class if per_class is not None else max(1, math.floor(share * len(rows) + 0.5))
        # drawn even when none is wanted, so that the next class does not depend on it
        order = generator.permutation(rows)
        drawn.append(order[: max(0, min(wanted, len(rows) - keep))])
    chosen = np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.int64)
    kept = np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True)
    return kept, chosen


def set_aside_validation(data: Dataset, *, per_class: int | None, seed: int) -> Dataset:
    """Return the data with a validation split: its own, or one drawn from the training rows.

    per_class: validation rows of each class; None takes the data set's default; 0 makes no
    validation split. Raises WrongUse for a number above 0 if the data has a validation split.
    """
    if per_class == 0:
        return data.with_splits(train=data.train, val=None)
    if data.val is not None and per_class is not None:
        raise WrongUse(
            f"{data.spec} has a validation split of its own; leave --validation-per-class out"
        )
    if data.val is not None:
        return data
    wanted = data.val_per_class if per_class is None else per_class
    kept, drawn = stratified(
        data.train.labels,
        per_class=wanted,
        share=SHARE_OF_FEW if len(data.train) < FEW_ROWS else SHARE,
        seed=SPLIT_SEED if data.reproducible_split else seed,
    )
    if not drawn.size:
        return data.with_splits(train=data.train, val=None)
    return data.with_splits(train=data.train.take(kept), val=data.train.take(drawn))


def long_tailed(split: Split, class_counts: Labels, *, seed: int) -> Split:
    """Draw class_counts[y] rows of each class y, and return them in their original order.

    Raises WrongUse when a class has too few rows.
    """
    available = counts_of(split.labels, len(class_counts))
    short = np.flatnonzero(class_counts > available)
    if short.size:
        worst = int(short[0])
        raise WrongUse(
            f"the profile asks for {class_counts[worst]} training rows of class {worst}; "
            f"{available[worst]} are left after validation and test "
            "(lower --max-per-class or --validation-per-class)"
        )
    generator = np.random.default_rng([seed, 1])
    rows = [
        generator.permutation(own)[:count]
        for own, count in zip(
            rows_by_class(split.labels, len(class_counts)), class_counts, strict=True
        )
    ]
    return split.take(np.sort(np.concatenate(rows)))
