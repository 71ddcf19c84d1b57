"""Warnings about a prior: how extreme its target is, and how many recent answers it changes."""

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.contract.bundle import Bundle
from service.contract.prior import Prior
from service.priors.rule import Rule, chunks

DRASTIC_RATIO = 10_000.0
"""Warn when the largest entry of a target is more than this many times the smallest nonzero one."""
FEW_CLASSES = 1.01
"""Warn when a target has fewer effective classes than this: one class then has over 99.9 %."""
MENTIONED_FLIPS = 0.05
"""Warn when at least this share of the recent answers would change."""
MIN_ROWS = 100
"""With fewer recent rows, no change is refused: the share of so few rows is unreliable."""


class TooManyFlips(ValueError):
    """A change that would give more recent answers another label than `--max-flip-share` allows."""


def effective_classes(target: Vector) -> float:
    """The exponential of a target's entropy: C if it is uniform, 1 if one class has everything."""
    possible = target[target > 0]
    return float(np.exp(-(possible * np.log(possible)).sum()))


def target_warnings(prior: Prior, class_names: list[str]) -> list[str]:
    """Warnings about extremes in a prior's target; an empty list if there are none."""
    target = prior.target
    largest, positive = int(target.argmax()), target > 0
    smallest = int(np.where(positive, target, np.inf).argmin())
    ratio = target[largest] / target[smallest]
    effective = effective_classes(target)
    warnings = []
    if effective < FEW_CLASSES:
        warnings.append(
            f"the target is as narrow as {effective:.2f} of {len(target)} classes: "
            f"nearly every answer will be '{class_names[largest]}'"
        )
    if ratio > DRASTIC_RATIO:
        warnings.append(
            f"the target of '{class_names[largest]}' is {ratio:,.0f} times that of "
            f"'{class_names[smallest]}'"
        )
    return warnings


def source_replaced(bundle: Bundle, prior: Prior) -> list[str]:
    """A warning where a prior's label_frequencies replace the model's measured source prior."""
    if prior.calibrated or bundle.calibrated_log_source is None:
        return []
    return [
        (
            "its label_frequencies replace the source prior that was measured for this model, so "
            "estimates for it are 'uncalibrated'; to use the measured one, PUT the prior without "
            "label_frequencies"
        )
    ]


def flip_share(
    logits: NDArray[np.float32], *, temperature: float, before: Rule, after: Rule
) -> float:
    """The share of recent logits [n, C], n > 0, whose decision differs between two rules."""
    flips = 0
    for rows in chunks(logits):
        labels = [
            rule.decide(rule.adjust(rows, temperature=temperature)) for rule in (before, after)
        ]
        flips += int((labels[0] != labels[1]).sum())
    return flips / len(logits)


def flip_warning(share: float, rows: int, *, tau: float) -> str | None:
    """The warning about a share of flipped answers; None when the share is small."""
    if share < MENTIONED_FLIPS:
        return None
    return (
        f"{share:.0%} of the last {rows:,} answers would have had another label under this prior "
        f"(at tau {tau:g})"
    )


def check_flips(share: float, rows: int, *, most: float) -> None:
    """Raise TooManyFlips when more than `most` of at least MIN_ROWS recent answers would change."""
    if rows >= MIN_ROWS and share > most:
        raise TooManyFlips(
            f"{share:.0%} of the last {rows:,} answers would have had another label under this "
            f"prior; at most {most:.0%} may (--max-flip-share). Nothing was stored. Check the "
            "preview, and repeat the request with ?force=1 if this is intended"
        )
