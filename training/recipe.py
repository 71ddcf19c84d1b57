"""One training run: what it is made of (`Recipe`), and how it goes (`run`)."""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.contract.adjustment import Vector, log_source_prior
from training import calibrate
from training import data as sources
from training.checkpoint import CheckpointFile
from training.data.augment import Augmentation
from training.data.dataset import Dataset
from training.data.feed import ArrayFeed
from training.data.splits import long_tailed, set_aside_validation
from training.evaluate import score
from training.faults import WrongUse
from training.long_tail import profile_counts
from training.loop import Keeping, Plan, logits_of, train
from training.losses import Objective, make_loss
from training.networks import Standardise, build
from training.order import steps_of
from training.processes import Processes
from training.publish import publish
from training.samplers import Recorded, Sampler, make_sampler, recorded
from training.schedule import in_steps

DEFAULT_EPOCHS = 20
FEWEST_DEFAULT_STEPS = 1500  # small data are seen more often than 20 times


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a model. docs/training.md tells each field; the command's flags have the same names."""

    data: str
    name: str = ""
    recipe: str = ""
    description: str = ""
    profile: str | None = None
    imbalance_ratio: float = 100.0
    max_per_class: int | None = None
    validation_per_class: int | None = None
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
    weight_decay: float = 5e-4
    decay_norms: bool = True
    schedule: str = "steps"
    warmup: float = 0.05
    milestones: tuple[float, ...] = (0.6, 0.85)
    drop: float = 0.1
    augment: str = "none"
    pad: int = 4
    precision: str = "fp32"
    publish_tau: str = "one"

    def plan(self, rows: int) -> Plan:
        """The optimisation of so many training rows, its lengths in steps."""
        if self.epochs is not None and self.steps is not None:
            raise WrongUse("--epochs and --steps are two lengths of the same run; give one")
        batch = min(self.batch, max(2, rows))
        if batch < self.batch and self.accumulate > 1:
            raise WrongUse(
                f"--accumulate {self.accumulate}: the data have only {rows} rows for a batch of {self.batch}"
            )
        if self.steps is not None:
            steps = self.steps
        elif self.epochs is not None:
            steps = steps_of(epochs=self.epochs, rows=rows, batch_rows=batch)
        else:
            steps = max(
                FEWEST_DEFAULT_STEPS, steps_of(epochs=DEFAULT_EPOCHS, rows=rows, batch_rows=batch)
            )
        return Plan(
            steps=steps,
            batch_rows=batch,
            optimiser=self.optimiser,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            decay_norms=self.decay_norms,
            schedule=self.schedule,
            warmup=in_steps([self.warmup], steps=steps, name="warmup")[0],
            milestones=in_steps(self.milestones, steps=steps, name="milestones"),
            drop=self.drop,
            precision=self.precision,
            accumulate=self.accumulate,
        )


@dataclass(frozen=True)
class Prepared:
    """A recipe's data and method, ready to train."""

    data: Dataset
    objective: Objective
    sampler: Sampler
    recorded: Recorded
    plan: Plan

    @property
    def log_source_prior(self) -> Vector:
        """Log sigma [C] of the model that this trains."""
        return log_source_prior(self.data.class_counts, loss_tau=self.recorded.loss_tau)


@dataclass(frozen=True)
class Calibration:
    """What the validation split decided; without one, temperature 1 and tau 1."""

    temperature: float = 1.0
    tau: float = 1.0
    choice: calibrate.TauChoice | None = None


def run(
    recipe: Recipe,
    *,
    models: Path,
    runs: Path,
    keeping: Keeping,
    processes: Processes,
    samples: int = 12,
) -> dict[str, Any]:
    """Train, calibrate, score, export, check and publish. Returns the contract's object (section 7)."""
    started = time.monotonic()
    ready = prepare(recipe)
    network = fit_network(
        recipe, ready, keeping=with_checkpoint(keeping, recipe, ready, runs), processes=processes
    )
    if not processes.first:
        return {}
    logits = {
        name: logits_of(network, ready.data, split, device=processes.device)
        for name, split in (("val", ready.data.val), ("test", ready.data.test))
        if split is not None
    }
    calibration = calibrate_on_validation(ready, logits.get("val"))
    scores = {name: _score(ready, name, found, calibration) for name, found in logits.items()}
    folder = publish(
        recipe,
        ready,
        network,
        logits=logits,
        calibration=calibration,
        scores=scores,
        models=models,
        samples=samples,
    )
    if keeping.checkpoint is not None:
        keeping.checkpoint.remove()
    return {
        "bundle": str(folder),
        "loss": recipe.loss,
        "loss_tau": ready.recorded.loss_tau,
        "source_prior": ready.recorded.source_prior,
        "temperature": calibration.temperature,
        "tau": tau_object(calibration),
        "validation": scores.get("val"),
        "test": scores.get("test"),
        "seconds": round(time.monotonic() - started, 3),
    }


def prepare(recipe: Recipe) -> Prepared:
    """Load the data, set validation aside, apply the profile, and make the loss and the sampler for what is left."""
    data = prepare_data(recipe)
    counts = data.class_counts
    objective = make_loss(recipe.loss, counts, loss_tau=recipe.loss_tau, **recipe.loss_options)
    sampler = make_sampler(
        recipe.sampler,
        data.train.labels,
        data.num_classes,
        seed=recipe.seed,
        **recipe.sampler_options,
    )
    return Prepared(
        data, objective, sampler, recorded(objective, sampler), recipe.plan(len(data.train))
    )


def prepare_data(recipe: Recipe) -> Dataset:
    """The data that a recipe trains on: validation is set aside before the profile is applied."""
    data = set_aside_validation(
        sources.load(recipe.data, seed=recipe.seed),
        per_class=recipe.validation_per_class,
        seed=recipe.seed,
    )
    if recipe.profile is None:
        return data
    counts = profile_counts(
        recipe.profile,
        max_per_class=recipe.max_per_class or int(data.class_counts.min()),
        imbalance_ratio=recipe.imbalance_ratio,
        num_classes=data.num_classes,
    )
    return data.with_splits(train=long_tailed(data.train, counts, seed=recipe.seed), val=data.val)


def fit_network(
    recipe: Recipe, ready: Prepared, *, keeping: Keeping, processes: Processes
) -> nn.Module:
    """A network trained as the recipe says."""
    torch.manual_seed(recipe.seed)
    network = make_network(recipe, ready).to(processes.device)
    data = ready.data
    feed = ArrayFeed(
        data.train,
        image=data.image,
        augmentation=Augmentation(recipe.augment if data.image else "none", recipe.pad),
        seed=recipe.seed,
        device=processes.device,
        part=processes.part,
    )
    train(
        network,
        feed,
        objective=ready.objective,
        sampler=ready.sampler,
        rows=len(data.train),
        plan=ready.plan,
        keeping=keeping,
        processes=processes,
    )
    return network


def make_network(recipe: Recipe, ready: Prepared) -> nn.Module:
    """The recipe's network for this data, fresh; numbers are standardised inside it."""
    data = ready.data
    inputs = np.asarray(data.train.inputs[:1])
    shape = (data.image.channels, *data.image.size) if data.image else inputs.shape[1:]
    network = build(
        recipe.network, num_classes=data.num_classes, input_shape=shape, head=ready.objective.head
    )
    if data.kind == "tensor":
        return nn.Sequential(Standardise.fitted(np.asarray(data.train.inputs)), network)
    return network


def calibrate_on_validation(ready: Prepared, logits: NDArray[np.float32] | None) -> Calibration:
    """Temperature, then tau for the balanced error. Sees the validation split and nothing else."""
    if logits is None or ready.data.val is None:
        return Calibration()
    labels = ready.data.val.labels
    temperature = calibrate.fit_temperature(
        logits,
        labels,
        log_source_prior=ready.log_source_prior,
        log_validation_prior=calibrate.log_validation_prior_of(labels, ready.data.num_classes),
    )
    choice = calibrate.choose_tau(
        logits, labels, log_source_prior=ready.log_source_prior, temperature=temperature
    )
    return Calibration(temperature, choice.chosen, choice)


def tau_object(calibration: Calibration) -> dict[str, Any]:
    """The `tau` member of fit's answer."""
    choice = calibration.choice
    return {
        "chosen": calibration.tau,
        "validation_curve": [list(point) for point in choice.curve] if choice else [],
        "interval": list(choice.interval) if choice else None,
    }


def with_checkpoint(keeping: Keeping, recipe: Recipe, ready: Prepared, runs: Path) -> Keeping:
    """The keeping with this run's own checkpoint and log, in runs/<name>."""
    folder = runs / recipe.name
    return replace(
        keeping,
        checkpoint=CheckpointFile(folder / "checkpoint.pt", identity(recipe, ready)),
        log=folder / "steps.jsonl",
    )


def identity(recipe: Recipe, ready: Prepared) -> dict[str, Any]:
    """The settings that make a run this run and no other."""
    free = {"name", "recipe", "description", "publish_tau"}
    settings = {key: value for key, value in asdict(recipe).items() if key not in free}
    settings["milestones"] = list(recipe.milestones)
    return settings | {
        "data_sha256": ready.data.origin.get("sha256"),
        "total_steps": ready.plan.steps,
    }


def _score(
    ready: Prepared, name: str, logits: NDArray[np.float32], calibration: Calibration
) -> dict[str, Any]:
    split = ready.data.val if name == "val" else ready.data.test
    assert split is not None
    return score(
        logits,
        split.labels,
        log_source_prior=ready.log_source_prior,
        temperature=calibration.temperature,
        chosen_tau=calibration.tau,
        train_class_counts=ready.data.class_counts,
    )
