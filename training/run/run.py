"""One training run on one screen: data → loss → loop → calibration → scores → export → published folder."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.data.feed import Place, make_feed
from training.learning.networks import Standardise, build
from training.loop.checkpoint import CheckpointFile
from training.loop.processes import Processes
from training.loop.train import Keeping, logits_of, train
from training.run.afterwards import change_last_layer, check_afterwards
from training.run.prepare import Prepared, identity, prepare, prepare_data
from training.run.publish import publish
from training.run.recipe import Recipe
from training.run.tuning import Calibration, tune
from training.scores.evaluate import score

__all__ = ["Prepared", "Recipe", "fit_network", "identity", "prepare", "prepare_data", "run"]


@dataclass(frozen=True)
class Running:
    """How a run is carried out; nothing here changes what is learnt."""

    models: Path = Path("models")
    runs: Path = Path("runs")
    samples: int = 12
    workers: int = 2
    in_memory: bool | None = None


def run(
    recipe: Recipe, *, running: Running, keeping: Keeping, processes: Processes
) -> dict[str, Any]:
    """Train, calibrate, score, export, check and publish. Returns the contract's object (section 7)."""
    started = time.monotonic()
    ready = prepare(recipe, in_memory=running.in_memory, part=processes.part)
    check_afterwards(recipe, ready, make_network(recipe, ready))
    keeping = with_checkpoint(keeping, recipe, ready, running.runs)
    network = fit_network(
        recipe, ready, keeping=keeping, processes=processes, workers=running.workers
    )
    if not processes.first:
        return {}
    changed = change_last_layer(recipe, ready, network, device=processes.device)
    network, ready = changed.network, replace(ready, recorded=changed.recorded)
    recipe = replace(recipe, norm_tau=changed.norm_tau)
    splits = {"val": ready.data.val, "test": ready.data.test}
    logits = {
        name: logits_of(network, ready.data, split, device=processes.device)
        for name, split in splits.items()
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
        models=running.models,
        samples=running.samples,
    )
    if keeping.checkpoint is not None:
        keeping.checkpoint.remove()
    return {
        "bundle": str(folder),
        "loss": recipe.loss,
        "loss_tau": ready.recorded.loss_tau,
        "source_prior": ready.recorded.source_prior,
        "last_layer": {
            "afterwards": recipe.afterwards,
            "norm_tau": changed.norm_tau,
            "validation_curve": [list(point) for point in changed.curve],
        },
        "temperature": calibration.temperature,
        "tau": calibration.tau_object(),
        "validation": scores.get("val"),
        "test": scores.get("test"),
        "seconds": round(time.monotonic() - started, 3),
    }


def fit_network(
    recipe: Recipe, ready: Prepared, *, keeping: Keeping, processes: Processes, workers: int = 2
) -> nn.Module:
    """A network trained as the recipe says."""
    torch.manual_seed(recipe.seed)
    network = make_network(recipe, ready).to(processes.device)
    if ready.data.image is not None:  # convolutions take half the time in this order of the numbers
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    processes.seed(recipe.seed)
    place = Place(processes.device, processes.part, recipe.seed, workers)
    train(
        network,
        make_feed(ready.data, recipe.augmentation, place),
        objective=ready.objective,
        sampler=ready.sampler,
        rows=len(ready.data.train),
        plan=ready.plan,
        keeping=keeping,
        processes=processes,
    )
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[no-any-return, call-overload]


def make_network(recipe: Recipe, ready: Prepared) -> nn.Module:
    """The recipe's network for this data, fresh; numbers are standardised inside it."""
    data = ready.data
    if data.image is not None:
        shape: tuple[int, ...] = (data.image.channels, *data.image.size)
    else:
        shape = np.asarray(data.train.inputs[:1]).shape[1:]
    network = build(
        recipe.network,
        num_classes=data.num_classes,
        input_shape=shape,
        vocabulary_size=data.vocabulary.size if data.vocabulary else None,
        head=ready.objective.head,
    )
    if data.kind == "tensor":
        return nn.Sequential(Standardise.fitted(np.asarray(data.train.inputs)), network)
    return network


def calibrate_on_validation(ready: Prepared, logits: NDArray[np.float32] | None) -> Calibration:
    """What validation decides; without a validation split nothing is tuned."""
    if logits is None or ready.data.val is None:
        return Calibration()
    return tune(logits, ready.data.val.labels, log_source_prior=ready.log_source_prior)


def with_checkpoint(keeping: Keeping, recipe: Recipe, ready: Prepared, runs: Path) -> Keeping:
    """The keeping with this run's own checkpoint and log, in runs/<name>."""
    folder = runs / recipe.name
    checkpoint = CheckpointFile(folder / "checkpoint.pt", identity(recipe, ready))
    return replace(keeping, checkpoint=checkpoint, log=folder / "steps.jsonl")


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
