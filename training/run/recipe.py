"""Everything that shapes a model: the settings of one run."""

from dataclasses import asdict, dataclass, field
from typing import Any

from training.data.augment import Augmentation
from training.data.order import steps_of
from training.data.sources.listing import ImageOptions
from training.faults import WrongUse
from training.loop.schedule import in_steps
from training.loop.train import Plan

DEFAULT_EPOCHS = 20
FEWEST_DEFAULT_STEPS = 1500  # small data are seen more often than 20 times
FREE = (
    "name",
    "recipe",
    "description",
    "afterwards",
    "norm_tau",
    "publish_tau",
)  # settings that do not change what the network learns


@dataclass(frozen=True)
class Recipe:
    """docs/training.md tells each field; the command's flags have the same names."""

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
    network: str = "mlp"
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
    optimiser: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    adam_beta2: float = 0.999
    weight_decay: float = 5e-4
    decay_norms: bool = True
    schedule: str = "steps"
    warmup: float = 0.05
    milestones: tuple[float, ...] = (0.6, 0.85)
    drop: float = 0.1
    augment: str = "none"
    pad: int = 4
    precision: str = "fp32"
    afterwards: str = "nothing"
    norm_tau: float | None = None
    publish_tau: str = "one"

    def __post_init__(self) -> None:
        for name in (
            "imbalance_ratio",
            "max_per_class",
            "image_size",
            "epochs",
            "steps",
            "batch",
            "accumulate",
            "lr",
            "drop",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:  # NaN compares false
                raise WrongUse(f"{_flag(name)} is {value}; expected more than 0")
        for name in ("validation_per_class", "seed", "momentum", "weight_decay", "warmup", "pad"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise WrongUse(f"{_flag(name)} is {value}; expected at least 0")
        if not 0 <= self.adam_beta2 < 1:
            raise WrongUse(f"--adam-beta2 is {self.adam_beta2}; expected at least 0 and below 1")
        if self.epochs is not None and self.steps is not None:
            raise WrongUse("--epochs and --steps are two lengths of the same run; give one")
        if not (self.resize in (None, "stretch", "crop") or isinstance(self.resize, int)):
            raise WrongUse(
                f"--resize is {self.resize!r}; expected stretch, crop or a number of pixels"
            )
        if self.color not in (None, "RGB", "L"):
            raise WrongUse(f"--color is {self.color!r}; expected RGB or L")

    @property
    def image_options(self) -> ImageOptions:
        """How images become the tensor."""
        resize: Any = self.resize
        color: Any = self.color
        return ImageOptions(self.image_size, resize, color, self.image_mean, self.image_std)

    @property
    def augmentation(self) -> Augmentation:
        """What is done to training images."""
        return Augmentation(self.augment, self.pad)

    def plan(self, rows: int) -> Plan:
        """The optimisation of so many training rows, its lengths in steps."""
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
            optimiser=self.optimiser,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            adam_beta2=self.adam_beta2,
            weight_decay=self.weight_decay,
            decay_norms=self.decay_norms,
            schedule=self.schedule,
            warmup=in_steps([self.warmup], steps=steps, name="warmup")[0],
            milestones=in_steps(self.milestones, steps=steps, name="milestones"),
            drop=self.drop,
            precision=self.precision,
            accumulate=self.accumulate,
        )

    def learnt_from(self) -> dict[str, Any]:
        """The settings that change what is learnt, by name."""
        return {key: value for key, value in asdict(self).items() if key not in FREE}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
