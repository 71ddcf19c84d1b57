"""Carries out a training run: recipe → data → network → loop → calibration → published folder."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.data.feed import Place, make_feed
from training.data.problems import problems
from training.faults import Fault, RunFailed, WrongUse, say, short
from training.loop.checkpoint import CheckpointFile, undrawn
from training.loop.interrupt import Interrupted
from training.loop.linear import fit_last_layer
from training.loop.processes import Processes
from training.loop.train import Keeping, check_pieces, logits_of, train
from training.run.afterwards import Changed, change_last_layer, check_afterwards
from training.run.calibration import Calibration, calibrate
from training.run.candidates import Tried, best_of, candidates, described, name_of, tried
from training.run.prepare import Prepared, identity, make_network, prepare
from training.run.publish import publish, served_tau
from training.run.recipe import Recipe
from training.run.refit import FOLDER, HeldOut, all_rows, moved
from training.run.rehearsal import rehearse
from training.scores.evaluate import score


@dataclass(frozen=True)
class Running:
    """How a run is carried out; nothing here affects the trained network.

    models: where to publish; None trains without publishing.
    runs: the folder of checkpoints and logs; None keeps none.
    checkpoint: the checkpoint's file; by default runs/<name>/checkpoint.pt, with a log beside it.
    samples: how many test inputs report.json shows.
    workers: how many processes decode images.
    in_memory: whether images are decoded once and kept; None: if they are small enough.
    cache: the folder of a file with the decoded images, in place of both; None makes none.
    command: the command line, for the report.
    candidate: the name of this network if several are tried; its files go into a folder of that
    name.
    """

    models: Path | None = Path("models")
    runs: Path | None = Path("runs")
    checkpoint: Path | None = None
    samples: int = 12
    workers: int = 2
    in_memory: bool | None = None
    cache: Path | None = None
    command: str = ""
    candidate: str = ""


@dataclass(frozen=True)
class Finished:
    """A trained network with its logits and measurements. Comparisons keep parts of this."""

    recipe: Recipe
    ready: Prepared
    changed: Changed
    logits: Mapping[str, NDArray[np.float32]]
    """Raw logits [n, C] of the `val` and `test` splits, as far as the data has them."""
    started: float
    """time.monotonic() when the run began."""
    calibration: Calibration = field(default_factory=Calibration)
    scores: Mapping[str, Any] = field(default_factory=dict)
    bundle: Path | None = None
    """The folder of the published model; None if it was not published."""
    tried: tuple[Tried, ...] = ()
    """The candidates of network auto."""
    penalty: float | None = None
    """The penalty of a linear layer that L-BFGS fitted."""
    held_out: HeldOut | None = None
    """The validation rows with the logits of the network before, if this one learnt them, too."""

    @property
    def measured(self) -> HeldOut | None:
        """The validation rows, and the logits of the network that did not learn from them."""
        if self.held_out is not None or self.ready.data.val is None:
            return self.held_out
        return HeldOut(self.ready, self.logits["val"])

    @property
    def network(self) -> nn.Module:
        """The trained network."""
        return self.changed.network

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self.started, 3)


def run(
    recipe: Recipe, *, running: Running, keeping: Keeping, processes: Processes
) -> Finished | None:
    """Train, calibrate and publish as the recipe says. Returns None in all processes but the first.

    For network auto, every candidate is trained, and the one that validation chooses is published.
    Few rows, and texts, are first learnt again with the validation rows (training.run.refit).
    """
    started = time.monotonic()
    offered = candidates(recipe)
    runs = []
    found: list[Tried] = []
    for number, candidate in enumerate(offered):
        if len(offered) > 1:
            keeping.stage(f"candidate {number + 1}: {name_of(candidate)}")
        own = _with_folder(running, candidate, several=len(offered) > 1)
        warned = number > 0 or running.models is None
        one = _run_one(
            candidate.resolved(), own, keeping, processes, started=started, warned=warned
        )
        if one is None:
            continue
        finished, kept = one
        runs.append((finished, kept, own))
        found.append(tried(candidate, finished.ready, finished.logits.get("val")))
    if not runs:
        return None
    best = best_of(found)
    finished, kept, own = runs[best]
    again = all_rows(
        recipe,
        offered[best],
        finished.ready,
        penalty=finished.penalty,
        world=processes.world,
    )
    if again is not None:
        own = replace(running, candidate=FOLDER)
        finished, kept = _learnt_again(again, finished, own, keeping, processes)
        runs.append((finished, kept, own))
    if len(offered) > 1:
        finished = replace(finished, tried=tuple(found))
        say(f"network: {described(finished.recipe, found)}")
    if running.models is None:
        return finished
    with _trained(kept):
        finished = _published(finished, own, kept)
    for _, other, _ in runs:
        if other.checkpoint is not None:
            other.checkpoint.remove()
    return finished


def _learnt_again(
    recipe: Recipe, chosen: Finished, running: Running, keeping: Keeping, processes: Processes
) -> tuple[Finished, Keeping]:
    """Train the chosen network on all rows; what validation measured stays with the result."""
    keeping.stage(f"training {name_of(chosen.recipe)} again on all rows")
    one = _run_one(
        recipe.resolved(), running, keeping, processes, started=chosen.started, warned=True
    )
    assert one is not None  # there is one process
    finished, kept = one
    return replace(finished, recipe=chosen.recipe, held_out=chosen.measured), kept


def _run_one(
    recipe: Recipe,
    running: Running,
    keeping: Keeping,
    processes: Processes,
    *,
    started: float,
    warned: bool,
) -> tuple[Finished, Keeping] | None:
    """Train one network and keep its files. Returns None in all processes but the first."""
    ready = prepare(recipe, in_memory=running.in_memory, cache=running.cache, part=processes.part)
    if processes.first and not warned:
        for problem in problems(ready.data):
            say(f"warning: {problem}")
    if ready.plan.optimiser != "lbfgs":
        check_pieces(ready.plan, processes)
    network = make_network(recipe, ready)
    with undrawn():
        check_afterwards(recipe, ready, network)
    keeping = _with_files(keeping, recipe, ready, running)
    with keeping.begun(processes):
        keeping.stage("trying the network, its export and the folders")
        with undrawn():
            models = running.models if processes.first else None
            rehearse(recipe, ready, network, models=models)
        keeping.stage(_work(ready))
        penalty = train_network(recipe, ready, network, keeping, processes, workers=running.workers)
        if not processes.first:
            return None
        with _trained(keeping):
            finished = _finished(recipe, ready, network, processes.device, started)
        return replace(finished, penalty=penalty), keeping


def _with_folder(running: Running, candidate: Recipe, *, several: bool) -> Running:
    """If there are several candidates, give this one its own folder for checkpoint and log."""
    return replace(running, candidate=name_of(candidate)) if several else running


def _work(ready: Prepared) -> str:
    if ready.plan.optimiser == "lbfgs":
        return "fitting the linear layer"
    return f"training {ready.plan.steps:,} steps"


def train_network(
    recipe: Recipe,
    ready: Prepared,
    network: nn.Module,
    keeping: Keeping,
    processes: Processes,
    *,
    workers: int = 2,
) -> float | None:
    """Train the network in place as the recipe says.

    Returns the penalty of a linear layer that L-BFGS fitted, else None.
    """
    network.to(processes.device)
    if ready.plan.optimiser == "lbfgs":
        return _fit_linear(recipe, ready, network, keeping, processes)
    images = ready.data.image is not None
    if images:  # convolutions take half the time in this memory layout
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
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return None


def _fit_linear(
    recipe: Recipe, ready: Prepared, network: nn.Module, keeping: Keeping, processes: Processes
) -> float:
    """Fit the last layer of a network whose other layers are fixed; returns its penalty."""
    if processes.world > 1:
        raise WrongUse("--optimiser lbfgs runs in one process; start it without torchrun")
    found = fit_last_layer(
        network,
        ready.data,
        ready.objective.to(torch.device("cpu")),
        log_source_prior=ready.log_source_prior,
        penalty=recipe.penalty,
        device=processes.device,
    )
    chosen = " (the best of validation)" if found.curve else ""
    keeping.stage(f"penalty {found.penalty:g}{chosen}")
    return found.penalty


def fit_network(
    recipe: Recipe, ready: Prepared, *, keeping: Keeping, processes: Processes, workers: int = 2
) -> nn.Module:
    """Make and train a network as the recipe says, without the checks and files of a run."""
    network = make_network(recipe, ready)
    train_network(recipe, ready, network, keeping, processes, workers=workers)
    return network


def answer(finished: Finished) -> dict[str, Any]:
    """Return the object that `training fit --json` prints."""
    calibration, changed = finished.calibration, finished.changed
    return {
        "bundle": str(finished.bundle),
        "loss": finished.recipe.loss,
        "loss_tau": finished.ready.recorded.loss_tau,
        "source_prior": finished.ready.recorded.source_prior,
        "network": name_of(finished.recipe),
        "tried": [asdict(each) for each in finished.tried],
        "last_layer": {
            "afterwards": finished.recipe.afterwards,
            "norm_tau": changed.norm_tau,
            "validation_curve": [list(point) for point in changed.curve],
        },
        "temperature": calibration.temperature,
        "temperature_interval": calibration.temperature_interval,
        "tau": calibration.tau_object(),
        "validation": finished.scores.get("val"),
        "test": finished.scores.get("test"),
        "refit": finished.held_out is not None,
        "rarest_in_validation": _rarest(finished.measured),
        "seconds": finished.seconds,
    }


def _rarest(measured: HeldOut | None) -> dict[str, Any] | None:
    """Return the class with the fewest validation rows; None without validation rows."""
    if measured is None or not len(measured.logits):
        return None
    data = measured.ready.data
    assert data.val is not None
    counts = np.bincount(data.val.labels, minlength=len(data.class_names))
    return {"class": data.class_names[int(counts.argmin())], "rows": int(counts.min())}


def _with_files(keeping: Keeping, recipe: Recipe, ready: Prepared, running: Running) -> Keeping:
    """Add this run's files to `keeping`: its checkpoint and, except in comparisons, its log."""
    if running.checkpoint is not None:
        return replace(
            keeping,
            checkpoint=CheckpointFile(
                running.checkpoint, identity(recipe, ready), compared=running.models is None
            ),
        )
    if running.runs is None:
        return keeping
    folder = running.runs / recipe.name / running.candidate
    checkpoint = CheckpointFile(folder / "checkpoint.pt", identity(recipe, ready))
    return replace(keeping, checkpoint=checkpoint, log=folder / "steps.jsonl")


def _finished(
    recipe: Recipe, ready: Prepared, network: nn.Module, device: torch.device, started: float
) -> Finished:
    """Change the last layer as the recipe says, and compute the logits of the splits."""
    changed = change_last_layer(recipe, ready, network, device=device)
    ready = replace(ready, recorded=changed.recorded)
    recipe = replace(recipe, norm_tau=changed.norm_tau)
    logits = {
        name: logits_of(changed.network, ready.data, split, device=device)
        for name, split in (("val", ready.data.val), ("test", ready.data.test))
        if split is not None
    }
    for name, found in logits.items():
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
            raise RunFailed(
                f"the trained network gives NaN or infinity for row {row} of {name}: the run has "
                "diverged; lower --lr, lengthen --warmup, or use --precision fp32"
            )
    return Finished(recipe, ready, changed, logits, started)


def calibrated(finished: Finished) -> tuple[Calibration, Calibration]:
    """Calibrate on the validation rows: (for the network that did not learn them, as published)."""
    held = finished.measured
    source = (held or finished).ready
    found = calibrate(
        None if held is None else held.logits,
        None if source.data.val is None else source.data.val.labels,
        log_source_prior=source.log_source_prior,
        class_counts=source.data.class_counts,
        class_names=source.data.class_names,
        source_prior=source.recorded.source_prior,
    )
    if finished.held_out is None or found.estimation is None:
        return found, found
    block = moved(
        found.estimation, before=source.log_source_prior, after=finished.ready.log_source_prior
    )
    return found, replace(found, estimation=block)


def _published(finished: Finished, running: Running, keeping: Keeping) -> Finished:
    """Calibrate, score and publish a trained network."""
    keeping.stage("calibrating and scoring")
    measured, calibration = calibrated(finished)
    tau = served_tau(finished.recipe, calibration)
    held, scores = finished.measured, {}
    if held is not None:
        scores["val"] = _score(held.ready, "val", held.logits, measured, served=tau)
    if "test" in finished.logits:
        scores["test"] = _score(
            finished.ready, "test", finished.logits["test"], calibration, served=tau
        )
    keeping.stage("exporting and checking the ONNX file")
    assert running.models is not None
    bundle = publish(
        finished.recipe,
        finished.ready,
        finished.network,
        logits=finished.logits,
        calibration=calibration,
        scores=scores,
        models=running.models,
        samples=running.samples,
        command=running.command,
        tried=finished.tried,
        learnt_again=0 if finished.held_out is None else len(finished.held_out.logits),
    )
    return replace(finished, calibration=calibration, scores=scores, bundle=bundle)


@contextlib.contextmanager
def _trained(keeping: Keeping) -> Iterator[None]:
    """Add to the message of a failure or of Ctrl-C where the trained network is kept."""
    try:
        yield
    except KeyboardInterrupt:
        if keeping.checkpoint is None or not keeping.checkpoint.path.exists():
            raise
        raise Interrupted(
            f"stopped; the trained network is kept in {keeping.checkpoint.path}, {keeping.going_on}"
        ) from None
    except Exception as error:
        known = isinstance(error, (Fault, OSError, MemoryError))
        said = str(error) if known else f"after the training: {short(error)}"
        if isinstance(error, OSError) and error.filename:
            said = f"{error.filename}: {error.strerror}"
        if keeping.checkpoint is None or not keeping.checkpoint.path.exists():
            if known:
                raise
            raise RunFailed(said) from error
        raise RunFailed(
            f"{said}\nThe trained network is kept in {keeping.checkpoint.path}: once this is "
            "fixed, the same command with --resume continues after the training"
        ) from error


def _score(
    ready: Prepared,
    name: str,
    logits: NDArray[np.float32],
    calibration: Calibration,
    *,
    served: float,
) -> dict[str, Any]:
    split = ready.data.val if name == "val" else ready.data.test
    assert split is not None
    return score(
        logits,
        split.labels,
        log_source_prior=calibration.log_source_prior(ready.log_source_prior),
        temperature=calibration.temperature,
        chosen_tau=calibration.tau,
        served_tau=served,
        train_class_counts=ready.data.class_counts,
    )
