"""Holds and checks the settings of one run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from training.data.augment import AUGMENTATIONS, Augmentation
from training.data.long_tail import PROFILES
from training.data.order import steps_of
from training.data.sources.listing import ImageOptions
from training.data.text import TOKENIZER_SUFFIX, TOKENS
from training.faults import WrongUse
from training.learning.losses import LOSSES
from training.learning.samplers import SAMPLERS
from training.loop.schedule import SCHEDULES, in_steps
from training.loop.train import OPTIMISERS, PRECISIONS, Plan

DEFAULT_EPOCHS = 20
FEWEST_DEFAULT_STEPS = 1500  # the least default length, so that small data get more than 20 epochs
FREE = ("name", "recipe", "description", "afterwards", "norm_tau", "publish_tau", "refit")
"""Settings that do not change what the network learns."""
AUTO = "auto"
"""The name under which several networks are tried and validation chooses one."""
LINEAR = ("linear", "linear-pieces", "linear-scaled", "tfidf")
"""Networks whose only trained layer is linear, on fixed features."""
MLPS = ("mlp", "mlp-pieces", "mlp-scaled")
MLP_DEFAULTS: Mapping[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "schedule": "cosine"}
"""Defaults for AdamW, from the comparison on twelve data sets in docs/results.md."""
PUBLISHED_TAUS = ("one", "chosen")
AFTERWARDS = ("nothing", "weight-norm", "crt", "lws")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "profile": PROFILES,
    "loss": LOSSES,
    "sampler": SAMPLERS,
    "optimiser": (*OPTIMISERS, "lbfgs"),
    "schedule": SCHEDULES,
    "augment": AUGMENTATIONS,
    "precision": PRECISIONS,
    "color": ("RGB", "L"),
    "afterwards": AFTERWARDS,
    "publish_tau": PUBLISHED_TAUS,
}
"""The fields that must have one of a few names."""
POSITIVE = (
    "imbalance_ratio", "max_per_class", "image_size", "epochs", "steps", "batch", "accumulate",
    "lr", "drop", "penalty",
)  # fmt: skip
LARGEST = {
    "batch": 10**7, "accumulate": 10**7, "image_size": 10**4, "pad": 10**4, "steps": 10**12,
    "epochs": 10**9, "max_per_class": 10**12, "validation_per_class": 10**12,
    "lr": 1e30, "weight_decay": 10**6, "penalty": 10**12, "imbalance_ratio": 10**12,
}  # fmt: skip
"""Beyond these a number is a slip: it would overflow, or take more memory or time than there is."""
NOT_NEGATIVE = ("validation_per_class", "seed", "momentum", "weight_decay", "warmup", "pad")


@dataclass(frozen=True)
class Recipe:
    """The settings of one run. Each has a flag of the same name; `fit --help` describes them."""

    data: str
    name: str = ""
    recipe: str = ""
    description: str = ""
    profile: str | None = None
    imbalance_ratio: float = 100.0
    max_per_class: int | None = None
    validation_per_class: int | None = None
    image_size: int | None = None
    resize: str | int | None = None
    color: str | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    skip_broken: bool = False
    tokens: str = "words"
    network: str = AUTO
    init: str | None = None
    freeze: tuple[str, ...] = ()
    lr_of: dict[str, float] = field(default_factory=dict)
    features_once: bool = False
    loss: str = "erm"
    loss_tau: float = 1.0
    loss_options: dict[str, float] = field(default_factory=dict)
    sampler: str = "uniform"
    sampler_options: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    epochs: float | None = None
    steps: int | None = None
    batch: int = 128
    accumulate: int = 1
    optimiser: str | None = None
    penalty: float | None = None
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = True
    adam_beta2: float = 0.999
    weight_decay: float | None = None
    decay_norms: bool = True
    schedule: str | None = None
    warmup: float = 0.05
    milestones: tuple[float, ...] = (0.6, 0.85)
    drop: float = 0.1
    augment: str = "none"
    pad: int = 4
    precision: str = "fp32"
    afterwards: str = "nothing"
    norm_tau: float | None = None
    publish_tau: str = "one"
    refit: bool | None = None

    def __post_init__(self) -> None:
        """Raise WrongUse for a meaningless value, from a flag or from a file."""
        self._check_ranges()
        if self.tokens not in TOKENS and not self.tokens.endswith(TOKENIZER_SUFFIX):
            raise WrongUse(
                f"--tokens is '{self.tokens}'; expected one of {', '.join(TOKENS)}, or a "
                "tokenizer.json of Hugging Face's tokenizers"
            )
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise WrongUse(f"{_flag(name)} is '{value}'; expected one of {', '.join(choices)}")
        if self.epochs is not None and self.steps is not None:
            raise WrongUse("--epochs and --steps are two lengths of the same run; give one")
        if not (self.resize in (None, "stretch", "crop") or _is_count(self.resize)):
            raise WrongUse(
                f"--resize is {self.resize!r}; expected stretch, crop or a number of pixels"
            )

    def _check_convex(self) -> None:
        """Raise WrongUse for what L-BFGS cannot do, a penalty without it, or factors up to 0."""
        for part, factor in self.lr_of.items():
            if not 0 < factor < math.inf:
                raise WrongUse(
                    f"--lr-of {part}={factor:g}: expected a factor above 0; --freeze {part} "
                    "freezes the part"
                )
        if self.penalty is not None and self.optimiser in OPTIMISERS:
            raise WrongUse(
                f"--penalty is only for --optimiser lbfgs; with {self.optimiser}, use "
                "--weight-decay"
            )
        if self.features_once and self.optimiser not in {None, "lbfgs"}:
            raise WrongUse(
                f"--features-once fits the last layer by lbfgs; --optimiser {self.optimiser} "
                "would compute them at every step; leave out one flag"
            )
        if self.features_once and self.augment != "none":
            raise WrongUse(
                f"--augment {self.augment} has no effect: --features-once uses each image once; "
                "leave one out"
            )
        if self.optimiser != "lbfgs" and not self.features_once:
            return
        if self.sampler != "uniform":
            raise WrongUse(
                f"--sampler {self.sampler}: --optimiser lbfgs takes every row; use a loss instead, "
                "or --optimiser sgd"
            )
        if self.loss == "ldam":
            raise WrongUse("--loss ldam trains a cosine head; use --optimiser sgd")

    def _check_sizes(self) -> None:
        for name in (*POSITIVE, *NOT_NEGATIVE):
            value = getattr(self, name)
            if value is None:
                continue
            if name in POSITIVE and not 0 < value < math.inf:  # NaN compares false
                raise WrongUse(f"{_flag(name)} is {value}; expected more than 0")
            if not 0 <= value < math.inf:
                raise WrongUse(f"{_flag(name)} is {value}; expected at least 0")
            if value > LARGEST.get(name, math.inf):
                raise WrongUse(f"{_flag(name)} is {value}; expected at most {LARGEST[name]:,}")

    def _check_ranges(self) -> None:
        self._check_sizes()
        self._check_convex()
        if not 0 <= self.adam_beta2 < 1:
            raise WrongUse(f"--adam-beta2 is {self.adam_beta2}; expected at least 0 and below 1")
        if not self.momentum < 1:
            raise WrongUse(f"--momentum is {self.momentum}; expected at least 0 and below 1")
        if self.seed >= 2**63:
            raise WrongUse(f"--seed is {self.seed}; expected a number below 2^63")
        if not all(0 < value < math.inf for value in self.image_std or ()):
            raise WrongUse(f"--image-std is {list(self.image_std or ())}; expected more than 0")
        if not all(map(math.isfinite, self.image_mean or ())):
            raise WrongUse(f"--image-mean is {list(self.image_mean or ())}; expected numbers")

    @property
    def image_options(self) -> ImageOptions:
        """The settings of how images become the tensor."""
        resize: Any = self.resize
        color: Any = self.color
        return ImageOptions(self.image_size, resize, color, self.image_mean, self.image_std)

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images."""
        return Augmentation(self.augment, self.pad)

    def resolved(self) -> "Recipe":
        """The recipe with its optimiser, rate, decay and schedule filled in.

        Linear networks are fitted by L-BFGS if the recipe allows it: L-BFGS takes every row at
        once, so it has no sampler, no length and no cosine head. The network mlp uses AdamW.
        """
        given = (self.lr, self.weight_decay, self.schedule)
        optimiser = "lbfgs" if self.features_once else self.optimiser
        if optimiser is None and self.network in LINEAR and self._suits_lbfgs:
            optimiser = "lbfgs"
        elif optimiser is None and self.network in MLPS and given == (None, None, None):
            return replace(self, optimiser="adamw", **MLP_DEFAULTS)
        optimiser = optimiser or "sgd"
        lr = 0.05 if optimiser == "sgd" else 1e-3
        return replace(
            self,
            optimiser=optimiser,
            lr=lr if self.lr is None else self.lr,
            weight_decay=5e-4 if self.weight_decay is None else self.weight_decay,
            schedule=self.schedule or "steps",
        )

    @property
    def _suits_lbfgs(self) -> bool:
        asked = (self.steps, self.epochs, self.lr, self.weight_decay, self.schedule)
        plain = self.sampler == "uniform" and self.loss != "ldam"
        return plain and all(value is None for value in asked)

    def plan(self, rows: int) -> Plan:
        """Return how to optimise with `rows` training rows, with all lengths in steps."""
        used = self.resolved()
        assert used.optimiser is not None
        assert used.lr is not None
        assert used.weight_decay is not None
        assert used.schedule is not None
        if self.steps is not None:
            steps = self.steps
        else:
            epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
            steps = steps_of(epochs=epochs, rows=rows, batch_rows=self.batch)
            if self.epochs is None:
                steps = max(FEWEST_DEFAULT_STEPS, steps)
        return Plan(
            steps=steps,
            batch_rows=self.batch,
            optimiser=used.optimiser,
            lr=used.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            adam_beta2=self.adam_beta2,
            weight_decay=used.weight_decay,
            decay_norms=self.decay_norms,
            schedule=used.schedule,
            warmup=in_steps([self.warmup], steps=steps, name="warmup")[0],
            milestones=in_steps(self.milestones, steps=steps, name="milestones"),
            drop=self.drop,
            precision=self.precision,
            lr_of=self.lr_of,
            accumulate=self.accumulate,
        )

    def learnt_from(self) -> dict[str, Any]:
        """Return the settings that affect the trained network, by name."""
        return {key: value for key, value in asdict(self).items() if key not in FREE}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
