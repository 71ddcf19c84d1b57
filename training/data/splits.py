"""Stratified splits, and a long-tailed training set drawn from a balanced one."""

import math

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Labels, Split, counts_of
from training.faults import WrongUse

Rows = NDArray[np.int64]
SHARE, SHARE_OF_FEW, FEW_ROWS = (
    0.1,
    0.2,
    2000,
)  # share of each class for validation; larger for small data, where few rows tell little
SPLIT_SEED = 20200714  # of the splits that must not change with the run's seed


def stratified(
    labels: Labels, *, per_class: int | None = None, share: float = 0.1, keep: int = 1, seed: int
) -> tuple[Rows, Rows]:
    """Rows (kept, drawn) in ascending order: per_class rows of each class, or a share of each.

    A class with more than `keep` rows gives at least one row and keeps at least `keep`. With the
    default, a class of two rows gives one, and a class of one row none.
    """
    generator = np.random.default_rng(seed)
    drawn: list[Rows] = []
    for index in range(int(labels.max(initial=-1)) + 1):
        rows = np.flatnonzero(labels == index)
        wanted = per_class if per_class is not None else max(1, math.floor(share * len(rows) + 0.5))
        order = generator.permutation(
            rows
        )  # drawn even when none is wanted: the next class does not depend on it
        drawn.append(order[: max(0, min(wanted, len(rows) - keep))])
    chosen = np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.int64)
    kept = np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True)
    return kept, chosen


def set_aside_validation(data: Dataset, *, per_class: int | None, seed: int) -> Dataset:
    """The data with a validation split: its own, or one drawn from the training rows.

    per_class: rows of each class; None follows the data set's own rule; 0 leaves the data without
    validation.
    """
    if per_class == 0:
        return data.with_splits(train=data.train, val=None)
    if data.val is not None and per_class is not None:
        raise WrongUse(
            f"{data.spec} has a validation split of its own; leave out --validation-per-class"
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
    """class_counts[y] rows of each class y, drawn by the seed, in ascending order.

    Raises WrongUse when a class has too few rows.
    """
    available = counts_of(split.labels, len(class_counts))
    short = np.flatnonzero(class_counts > available)
    if short.size:
        worst = int(short[0])
        raise WrongUse(
            f"the profile asks for {class_counts[worst]} training rows of class {worst}; "
            f"{available[worst]} are left "
            "beside validation and test (lower --max-per-class or --validation-per-class)"
        )
    generator = np.random.default_rng([seed, 1])
    rows = [
        generator.permutation(np.flatnonzero(split.labels == index))[:count]
        for index, count in enumerate(class_counts)
    ]
    return split.take(np.sort(np.concatenate(rows)))
