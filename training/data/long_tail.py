"""Computes long-tailed class counts (Cao et al., 2019) and shifted test sets (LADE)."""

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Labels, counts_of, rows_by_class
from training.faults import WrongUse

PROFILES = ("exp", "step")


def profile_counts(
    name: str, *, max_per_class: int, imbalance_ratio: float, num_classes: int
) -> Labels:
    """Return the training rows [C] of each class in label order; r = 1 / imbalance_ratio.

    exp: int(max_per_class * r ** (i / (C - 1))); step: the first half max_per_class, the second
    int(max_per_class * r). Raises WrongUse for an unknown name, a ratio below 1, or counts that
    would leave a class empty.
    """
    if imbalance_ratio < 1:
        raise WrongUse(
            f"imbalance ratio {imbalance_ratio:g}; expected the largest class over the smallest, "
            "at least 1"
        )
    if name == "exp":
        share = imbalance_ratio ** (-np.arange(num_classes) / (num_classes - 1))
    elif name == "step":
        share = np.where(
            np.arange(num_classes) < (num_classes + 1) // 2, 1.0, 1.0 / imbalance_ratio
        )
    else:
        raise WrongUse(f"unknown profile '{name}'; expected {' or '.join(PROFILES)}")
    # 1e-9: 100 * 0.01 must give 1 despite rounding of the power
    counts = np.floor(max_per_class * share + 1e-9).astype(np.int64)
    if counts.min() < 1:
        raise WrongUse(
            f"imbalance ratio {imbalance_ratio:g} with {max_per_class} rows in the largest class "
            "leaves a class empty; lower the ratio or raise --max-per-class"
        )
    return counts


def shifted_counts(
    direction: str, *, ratio: float, class_counts: Labels, available: Labels
) -> Labels:
    """Return the test rows [C] of each class for LADE's forward-k or backward-k, with k = ratio.

    The counts are a long tail of ratio k. Classes are ranked by class_counts [C] of training (ties
    by index); forward keeps that order, backward reverses it. The largest class gets as many rows
    as the smallest entry of available [C]; every class keeps at least one. Raises WrongUse for an
    unknown direction.
    """
    if direction not in ("forward", "backward"):
        raise WrongUse(f"unknown shift '{direction}'; expected forward or backward")
    order = np.argsort(-class_counts, kind="stable")
    if direction == "backward":
        order = order[::-1]
    share = ratio ** (-np.arange(len(order)) / max(1, len(order) - 1))
    counts = np.empty(len(order), np.int64)
    counts[order] = np.maximum(1, np.floor(available.min() * share + 1e-9))
    return counts


def shifted_rows(
    labels: Labels, *, direction: str, ratio: float, class_counts: Labels, seed: int = 0
) -> NDArray[np.int64]:
    """Draw test rows without replacement so that they follow forward-k or backward-k.

    labels: [N]; class_counts: [C] of training. Returns row numbers in ascending order. Raises
    WrongUse if a class has no row.
    """
    available = counts_of(labels, len(class_counts))
    if available.min() < 1:
        raise WrongUse(
            f"class {int(available.argmin())} has no row in this split, so it cannot be shifted; "
            "give a split with rows of every class"
        )
    counts = shifted_counts(direction, ratio=ratio, class_counts=class_counts, available=available)
    generator = np.random.default_rng(seed)
    of_classes = rows_by_class(labels, len(counts))
    rows = [generator.permutation(own)[:n] for own, n in zip(of_classes, counts, strict=True)]
    return np.sort(np.concatenate(rows))
