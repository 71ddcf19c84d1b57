"""The training loop: forward pass, backward pass, optimiser step, from a checkpoint if any."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data.dataset import Dataset, Split
from training.data.feed import Feed, in_order
from training.data.order import EpochIndices, batches
from training.faults import Fault, RunFailed, WrongUse, short
from training.learning.losses import Objective
from training.learning.weights import factors, hold_still
from training.loop.checkpoint import CheckpointFile, RunState, random_state
from training.loop.interrupt import Interrupted, StopSignal
from training.loop.processes import Processes
from training.loop.progress import Progress, stage
from training.loop.schedule import learning_rate

OPTIMISERS = ("sgd", "adamw")
ADAM_BETA1 = 0.9
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "fp64", *AUTOCAST)
"""The values of --precision; the first is the default."""


@dataclass(frozen=True)
class Plan:
    """How a network is optimised.

    steps, warmup and milestones count optimiser steps. A step takes batch_rows rows over all
    processes, in `accumulate` pieces each.
    """

    steps: int
    batch_rows: int
    optimiser: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    adam_beta2: float = 0.999
    weight_decay: float = 5e-4
    decay_norms: bool = True
    schedule: str = "steps"
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    drop: float = 0.1
    precision: str = "fp32"
    accumulate: int = 1
    lr_of: Mapping[str, float] = field(default_factory=dict)
    """Factors of the learning rate, by prefix of the parameters' names."""

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, 0 … steps - 1."""
        return learning_rate(
            step,
            base=self.lr,
            steps=self.steps,
            schedule=self.schedule,
            warmup=self.warmup,
            milestones=self.milestones,
            drop=self.drop,
        )


@dataclass(frozen=True)
class Keeping:
    """The files that a run writes while it trains, and how it treats an earlier run's checkpoint.

    checkpoint: where checkpoints are written; None writes none. resume: continue from the
    checkpoint if there is one. restart: overwrite it. checkpoint_seconds: time between checkpoints.
    checkpoint_steps: steps between checkpoints; takes precedence. log: the file that gets a line
    per step. tensorboard: the folder for TensorBoard's files. quiet: show no progress. label: the
    name of one of several runs at the same time, whose progress is shown in lines, never in a bar.
    going_on: the end of an interrupted run's message, which says how to continue.
    """

    checkpoint: CheckpointFile | None = None
    resume: bool = False
    restart: bool = False
    checkpoint_seconds: float = 20.0
    checkpoint_steps: int | None = None
    log: Path | None = None
    tensorboard: Path | None = None
    quiet: bool = False
    label: str = ""
    going_on: str = "--resume continues from it"

    @contextmanager
    def begun(self, processes: Processes) -> Iterator[None]:
        """Hold the checkpoint's lock for the length of a run.

        Raises WrongUse when another process trains this run, or when a checkpoint exists and
        neither resume nor restart was given.
        """
        if self.checkpoint is None:
            yield
            return
        with self.checkpoint.locked() if processes.first else nullcontext():
            if self.checkpoint.path.exists() and not (self.resume or self.restart):
                raise WrongUse(
                    f"{self.checkpoint.path} holds an unfinished run. Give --resume to continue "
                    "from it, --restart to discard it, or another --name to keep both"
                )
            yield

    def stage(self, text: str) -> None:
        """Print the name of the run's next stage, unless it is quiet or one of several runs."""
        stage(text, quiet=self.quiet or bool(self.label))

    def due(self, done: int, *, seconds: float) -> bool:
        """Return whether to write a checkpoint after `done` steps, `seconds` after the last one."""
        if self.checkpoint_steps is not None:
            return done % self.checkpoint_steps == 0
        return seconds > self.checkpoint_seconds


def check_pieces(plan: Plan, processes: Processes) -> None:
    """Raise WrongUse when the batch cannot be divided evenly into the pieces of a step."""
    if plan.batch_rows % (processes.world * plan.accumulate):
        raise WrongUse(
            f"--batch {plan.batch_rows} cannot be divided by {processes.world} processes × "
            f"--accumulate {plan.accumulate}; give a multiple of "
            f"{processes.world * plan.accumulate}"
        )


def train(
    network: nn.Module,
    feed: Feed,
    *,
    objective: Objective,
    sampler: EpochIndices,
    rows: int,
    plan: Plan,
    keeping: Keeping,
    processes: Processes,
) -> None:
    """Train the network in place, on its device.

    rows: the number of rows in the training split. Raises Interrupted when a signal stops the run
    (its checkpoint is then written), RunFailed when the loss is not finite, and WrongUse when the
    batch cannot be divided evenly.
    """
    device = processes.device
    check_pieces(plan, processes)
    network.train()
    hold_still(network)
    if plan.precision == "fp64":
        network.double()
    spread = processes.spread(network)
    optimiser = make_optimiser(network, plan)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
    state = RunState(network, optimiser, scaler)
    first = 0
    if keeping.checkpoint is not None and keeping.resume:
        first = keeping.checkpoint.load(state, device=device, rank=processes.rank)
    order = batches(
        sampler, rows=rows, batch_rows=plan.batch_rows, steps=plan.steps, first_step=first
    )
    objective = objective.to(device)
    done = first
    with StopSignal() as stop, _progress(plan, keeping, processes, first) as progress:
        saved = time.monotonic()
        for step, (inputs, labels) in enumerate(feed.batches(order), first):
            rate = plan.rate(step)
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            now = objective.at(step / plan.steps)
            with _named(step, inputs, keeping):
                loss = training_step(spread, inputs, labels, objective=now, state=state, plan=plan)
            done = step + 1
            due = keeping.due(done, seconds=time.monotonic() - saved)
            loss, stopping, due = _agree(loss, processes, stopping=stop.requested, due=due)
            progress.step(step, loss=loss, rate=rate)
            if due or stopping or done == plan.steps:
                progress.flush()
                _save(keeping, state, processes, done)
                saved = time.monotonic()
            if stopping:
                break
    # Check again after the loop: a signal during the last step would otherwise be lost.
    _, stopping, _ = _agree(
        torch.zeros((), device=device), processes, stopping=stop.requested, due=False
    )
    if stopping:
        raise Interrupted(_how_to_go_on(keeping, done, plan.steps))
    network.float()


def training_step(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    objective: Objective,
    state: RunState,
    plan: Plan,
) -> Tensor:
    """Take one optimiser step over a batch: inputs [B, …] and labels [B].

    The batch is processed in `accumulate` pieces. Returns the mean loss, a float64 scalar.
    """
    if plan.precision == "fp64" and inputs.is_floating_point():
        inputs = inputs.double()
    state.optimiser.zero_grad(set_to_none=True)
    pieces = list(zip(inputs.chunk(plan.accumulate), labels.chunk(plan.accumulate), strict=True))
    total = torch.zeros((), device=inputs.device, dtype=torch.float64)
    for index, (piece, targets) in enumerate(pieces):
        last = index == len(pieces) - 1
        with _gathering(network, last=last), _autocast(inputs.device, plan.precision):
            loss = objective(network(piece), targets) / len(pieces)
            state.scaler.scale(loss).backward()
        total += loss.detach()
    state.scaler.step(state.optimiser)
    state.scaler.update()
    return total


@torch.no_grad()
def logits_of(
    network: nn.Module, data: Dataset, split: Split, *, device: torch.device
) -> NDArray[np.float32]:
    """Return the float32 logits [N, C] of a split's rows; sets the network to evaluation mode."""
    network.eval()
    parts = []
    for inputs in in_order(data, split, device=device):
        try:
            logits = network(inputs).float().cpu().numpy()
        except Exception as error:
            raise RunFailed(
                f"the network fails on an input of shape {list(inputs.shape)}: {short(error)}; try "
                "it on one such batch in Python"
            ) from error
        parts.append(logits)
    return np.concatenate(parts)


def make_optimiser(network: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Return the plan's optimiser: SGD with momentum, or AdamW.

    Unless decay_norms is set, biases and normalisation layers get no weight decay. Raises WrongUse
    for another optimiser, or a network without parameters to train.
    """
    factor = factors(network, plan.lr_of)
    groups = [
        {"params": parameters, "weight_decay": plan.weight_decay * decays, "factor": of_rate}
        for of_rate in sorted(set(factor.values()))
        for decays in (1.0, 0.0)
        if (parameters := _parameters(network, plan, factor, of_rate, decayed=decays == 1.0))
    ]
    if not groups:
        raise WrongUse("the network has no parameters to train; choose another --network")
    if plan.optimiser == "sgd":
        return torch.optim.SGD(
            groups, lr=plan.lr, momentum=plan.momentum, nesterov=plan.nesterov and plan.momentum > 0
        )
    if plan.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=plan.lr, betas=(ADAM_BETA1, plan.adam_beta2))
    raise WrongUse(f"unknown optimiser '{plan.optimiser}'; expected {', '.join(OPTIMISERS)}")


def _parameters(
    network: nn.Module, plan: Plan, factor: Mapping[str, float], of_rate: float, *, decayed: bool
) -> list[nn.Parameter]:
    # vectors are biases and the scales of normalisations; everything else is a weight
    return [
        p
        for name, p in network.named_parameters()
        if p.requires_grad
        and factor[name] == of_rate
        and (plan.decay_norms or p.ndim > 1) == decayed
    ]


def _gathering(network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Return a context in which processes exchange gradients only for a batch's last piece."""
    if last or not isinstance(network, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


def _agree(
    loss: Tensor, processes: Processes, *, stopping: bool, due: bool
) -> tuple[Tensor, bool, bool]:
    """Agree with the other processes after a step.

    Returns (mean loss over all processes, whether any was asked to stop, whether a checkpoint is
    due in any). All processes therefore stop and save after the same step.
    """
    if processes.world == 1:
        return loss, stopping, due
    flags = torch.tensor([float(stopping), float(due)], device=loss.device)
    shared = processes.mean(torch.cat([loss[None], flags]))
    return shared[0], bool(shared[1] > 0), bool(shared[2] > 0)


def _save(keeping: Keeping, state: RunState, processes: Processes, step: int) -> None:
    if keeping.checkpoint is None:
        return
    # each process draws its own random numbers, for example for dropout
    drawn = processes.gather(random_state())
    if processes.first:
        keeping.checkpoint.save(state, step=step, random_states=drawn)


def _progress(plan: Plan, keeping: Keeping, processes: Processes, first: int) -> Progress:
    return Progress(
        steps=plan.steps,
        first_step=first,
        batch_rows=plan.batch_rows,
        log=keeping.log if processes.first else None,
        tensorboard=keeping.tensorboard if processes.first else None,
        flush_steps=1 if processes.device.type == "cpu" else 20,
        quiet=keeping.quiet or not processes.first,
        label=keeping.label,
    )


@contextmanager
def _named(step: int, inputs: Tensor, keeping: Keeping) -> Iterator[None]:
    """Raise RunFailed for an error of the network or of torch, with the step and what is kept."""
    try:
        yield
    except Fault:
        raise
    except Exception as error:
        kept = ""
        if keeping.checkpoint is not None and keeping.checkpoint.path.exists():
            kept = f"; {keeping.checkpoint.path} holds an earlier step, {keeping.going_on}"
        raise RunFailed(
            f"step {step} failed on a batch of shape {list(inputs.shape)}: {short(error)}; try the "
            f"network on such a batch in Python{kept}"
        ) from error


def _how_to_go_on(keeping: Keeping, done: int, steps: int) -> str:
    if keeping.checkpoint is None:
        return f"stopped after {done} of {steps} steps"
    return (
        f"stopped after {done} of {steps} steps; {keeping.checkpoint.path} is written, "
        f"{keeping.going_on}"
    )
