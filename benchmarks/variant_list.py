"""What benchmarks.variants trains: what each variant changes in the recipe of the comparison, and which runs that is tried in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from torch import nn

Run: TypeAlias = tuple[int, float, int]
"""Largest class, imbalance ratio, seed."""

SEEDS = range(3)
MORE_SEEDS, MOST_SEEDS = range(5), range(7)
"""Of what is to hold in every run: seeds 5 and 6 had no say in the choice of the recipe."""
WIDE, STEEP, SMALL = (5000, 100.0), (5000, 1000.0), (500, 100.0)
"""(Largest class, imbalance ratio) of the comparisons."""
ADAM: Mapping[str, Any] = {"optimiser": "adamw", "weight_decay": 0.0}
LDAM: Mapping[str, Any] = {"loss": "ldam"}
HIDDEN: Mapping[str, Any] = {"network": "cnn"}
SHIFTED: Mapping[str, Any] = HIDDEN | {"augment": "crop-flip", "pad": 2}
POOLED: Mapping[str, Any] = {"network": "benchmarks.variant_list:pooled"}
DECAYED: Mapping[str, Any] = SHIFTED | {"weight_decay": 3e-3}
HIDDEN_LAYER, ON_POOLED, PILOT = "hidden layer", "pooled", "pilot"
LONG, SHORT = "shifted images", "shifted images, short"
"""Groups of the last two recipes for the network with a hidden layer: as long as the compared runs, and half of it."""
ON_NORMS = ("adam", HIDDEN_LAYER, ON_POOLED, PILOT, LONG, SHORT)
"""Groups whose last layer is looked at."""


@dataclass(frozen=True)
class Variant:
    """What is changed in the recipe of the comparison, and in which runs that is tried."""

    group: str
    name: str
    changes: Mapping[str, Any]
    runs: tuple[Run, ...]


def runs_in(*settings: tuple[int, float], seeds: Iterable[int] = SEEDS) -> tuple[Run, ...]:
    """Every setting with every seed."""
    return tuple((*setting, seed) for seed in seeds for setting in settings)


EVERYWHERE = runs_in(WIDE, STEEP, SMALL)
IN_MORE_SEEDS = runs_in(WIDE, STEEP, SMALL, seeds=MORE_SEEDS)
IN_MOST_SEEDS = runs_in(WIDE, STEEP, SMALL, seeds=MOST_SEEDS)


def pooled(num_classes: int) -> nn.Module:
    """Three normalised convolutions of 16, 32 and 64 channels, pooled to one number each: the end of a ResNet-32."""
    layers: list[nn.Module] = []
    for before, after in pairwise((1, 16, 32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers += [nn.ReLU(), nn.MaxPool2d(2) if after < 64 else nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, num_classes))


def pilots() -> list[Variant]:
    """What was tried with SGD before LONG and SHORT, on the runs whose norms followed the counts least."""
    weakest, small = (*WIDE, 1), (*SMALL, 2)
    tried: tuple[tuple[str, Mapping[str, Any], tuple[Run, ...]], ...] = (
        ("no decay", {"weight_decay": 0.0}, (weakest,)),
        ("decay 0.0005", {"weight_decay": 5e-4}, (weakest,)),
        ("decay 0.002", {"weight_decay": 2e-3}, (weakest,)),
        ("decay 0.003", {"weight_decay": 3e-3}, (weakest, (*WIDE, 0), small)),
        (
            "decay 0.004",
            {"weight_decay": 4e-3},
            (weakest, (*WIDE, 0), small, (*SMALL, 3)),
        ),
        ("decay 0.005", {"weight_decay": 5e-3}, (weakest, small)),
        ("3600 steps", {"steps": 3600}, (weakest,)),
        ("shifted images, 3600 steps", SHIFTED | {"steps": 3600}, (weakest,)),
        ("shifted images, 2400 steps", SHIFTED | {"steps": 2400}, (weakest, (*WIDE, 0), small)),
        ("shifted images", SHIFTED, (weakest, small)),
        (
            "shifted images, decay 0.002",
            SHIFTED | {"weight_decay": 2e-3},
            (weakest, small, (*SMALL, 0)),
        ),
    )
    return [Variant(PILOT, name, HIDDEN | changes, runs) for name, changes, runs in tried]


VARIANTS = (
    Variant("adam", "rate 0.001, 1200 steps", ADAM | {"lr": 0.001}, EVERYWHERE),
    Variant("adam", "rate 0.1, 1200 steps", ADAM | {"lr": 0.1}, EVERYWHERE),
    Variant(HIDDEN_LAYER, "SGD, rate 0.1, 1200 steps", HIDDEN, EVERYWHERE),
    Variant(HIDDEN_LAYER, "Adam, rate 0.03, 1200 steps", HIDDEN | ADAM | {"lr": 0.03}, EVERYWHERE),
    *(
        Variant(group, f"{name}, {steps} steps", changes | {"steps": steps}, runs)
        for group, steps, runs in ((LONG, 1200, IN_MORE_SEEDS), (SHORT, 600, IN_MOST_SEEDS))
        for name, changes in (
            ("SGD, rate 0.1, decay 0.003", DECAYED),
            ("Adam, rate 0.03", SHIFTED | ADAM | {"lr": 0.03}),
        )
    ),
    *pilots(),
    Variant(ON_POOLED, "SGD, rate 0.1, 1200 steps", POOLED, EVERYWHERE),
    Variant(ON_POOLED, "Adam, rate 0.03, 1200 steps", POOLED | ADAM | {"lr": 0.03}, EVERYWHERE),
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
