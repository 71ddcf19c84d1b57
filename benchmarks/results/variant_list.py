"""The variants that benchmarks.results.variants trains: their changes to the comparison's recipe,
and their settings and seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from training.studies.methods import ADAM_RUN, RUNS

Run: TypeAlias = tuple[int, float, int]
"""Largest class, imbalance ratio, seed."""

SEEDS = range(3)
WIDE, STEEP, SMALL = (5000, 100.0), (5000, 1000.0), (500, 100.0)
"""(Largest class, imbalance ratio) of the comparisons."""
LDAM: Mapping[str, Any] = {"loss": "ldam"}
HIDDEN: Mapping[str, Any] = {"network": "cnn"}
ADAM, HIDDEN_LAYER = "adam", "hidden layer"
ON_NORMS = (ADAM, HIDDEN_LAYER)
"""Groups whose last layer is examined."""


@dataclass(frozen=True)
class Variant:
    """A change of the comparison's recipe, and the settings and seeds that it is trained with."""

    group: str
    name: str
    changes: Mapping[str, Any]
    runs: tuple[Run, ...]


def runs_in(*settings: tuple[int, float]) -> tuple[Run, ...]:
    """Every pair of one of these settings and a seed."""
    return tuple((*setting, seed) for seed in SEEDS for setting in settings)


EVERYWHERE = runs_in(WIDE, STEEP, SMALL)


def adam_name(rate: float, beta2: float) -> str:
    """The name of a training with Adam."""
    return f"Adam, rate {rate:g}, β₂ {beta2:g}"


def with_adam(
    group: str, rate: float, beta2: float, others: Mapping[str, Any] | None = None
) -> Variant:
    """The comparison's `erm-adam` with another learning rate and β₂, and with further changes."""
    changes = {**(others or {}), **RUNS[ADAM_RUN], "lr": rate, "adam_beta2": beta2}
    return Variant(group, adam_name(rate, beta2), changes, EVERYWHERE)


VARIANTS = (
    with_adam(ADAM, 0.01, 0.999),
    with_adam(ADAM, 0.03, 0.95),
    with_adam(ADAM, 0.03, 0.999),
    with_adam(ADAM, 0.1, 0.999),
    Variant(HIDDEN_LAYER, "SGD, rate 0.1", HIDDEN, EVERYWHERE),
    with_adam(HIDDEN_LAYER, 0.01, 0.95, HIDDEN),
    Variant(
        "ldam",
        "largest margin 0.3",
        LDAM | {"loss_options": {"drw": False, "max_margin": 0.3}},
        runs_in(STEEP),
    ),
    Variant(
        "ldam",
        "largest margin 0.8",
        LDAM | {"loss_options": {"drw": False, "max_margin": 0.8}},
        runs_in(STEEP),
    ),
    Variant("sampler", "without flips", {"sampler": "balanced", "augment": "none"}, runs_in(WIDE)),
    Variant("balanced", "in float32", {"loss": "balanced", "precision": "fp32"}, runs_in(STEEP)),
    Variant("balanced", "at a tenth of the rate", {"loss": "balanced", "lr": 0.01}, runs_in(STEEP)),
)
"""Each variant of `adam` differs in exactly one setting from the comparison or from another of the
group.
"""
