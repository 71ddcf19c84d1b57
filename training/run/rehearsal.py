"""Tries everything that happens after training on two rows, before the first step.

A network that cannot be trained, exported or published thus fails within seconds, not after the
whole run.
"""

import contextlib
import copy
import re
import shutil
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.data.dataset import Split
from training.data.feed import graph_inputs, in_order
from training.faults import Fault, RunFailed, WrongUse
from training.run.export import check_agreement, export
from training.run.prepare import Prepared
from training.run.recipe import Recipe

ROWS = 2
CPU = torch.device("cpu")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
PROBABILITY_ROUNDING = 1e-4
"""Rows without negative numbers that sum to 1 within this tolerance are probabilities."""


def rehearse(recipe: Recipe, ready: Prepared, network: nn.Module, *, models: Path | None) -> None:
    """Run a copy of the network forward and backward, and export it to `models` unless None.

    The network must be on the CPU and is not changed. Raises WrongUse or RunFailed with the reason.
    """
    rows = ready.data.train.take(np.arange(min(ROWS, len(ready.data.train))))
    tried = copy.deepcopy(network)
    inputs = next(in_order(ready.data, rows, device=CPU))
    _check_outputs(
        _forward(recipe, tried.eval(), inputs), recipe, ready.data.num_classes, len(rows)
    )
    _check_last_module(recipe, tried)
    _try_step(recipe, ready, tried, inputs, rows)
    if models is not None:
        _try_publishing(recipe, ready, tried.eval(), rows, models=models)


def _forward(recipe: Recipe, network: nn.Module, inputs: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            outputs = network(inputs)
    except Exception as error:
        raise WrongUse(
            f"network {recipe.network}: fails on an input of shape {list(inputs.shape)}: "
            f"{_short(error)}"
        ) from error
    return _logits(outputs, recipe)


def _logits(outputs: object, recipe: Recipe, *, when: str = "") -> Tensor:
    if not isinstance(outputs, Tensor):
        raise WrongUse(
            f"network {recipe.network}: returns {_described(outputs)}{when}; expected the logits "
            "alone, a tensor [batch, classes] (wrap the network in a module that returns them)"
        )
    return outputs


def _check_outputs(outputs: Tensor, recipe: Recipe, num_classes: int, rows: int) -> None:
    shape, name = list(outputs.shape), f"network {recipe.network}"
    if shape != [rows, num_classes]:
        cure = "build it for that number of classes"
        if shape in ([rows, 1], [rows]) and num_classes == 2:
            cure = "give it an output for each of the two classes, without a sigmoid"
        raise WrongUse(
            f"{name}: returns shape {shape} for {rows} rows; expected [{rows}, {num_classes}], "
            f"a logit for each class ({cure})"
        )
    if not bool(torch.isfinite(outputs).all()):
        raise WrongUse(
            f"{name}: returns NaN or infinity before it is trained; check its initial weights"
        )
    sums = outputs.double().sum(dim=1)
    if bool((outputs >= 0).all()) and bool((sums - 1).abs().max() < PROBABILITY_ROUNDING):
        raise WrongUse(f"{name}: returns probabilities; expected logits (remove its last softmax)")


def _check_last_module(recipe: Recipe, network: nn.Module) -> None:
    leaves = [module for module in network.modules() if not any(module.children())]
    if leaves and isinstance(leaves[-1], nn.Softmax | nn.Sigmoid):
        kind = type(leaves[-1]).__name__
        raise WrongUse(
            f"network {recipe.network}: ends in {kind}; expected logits (remove the {kind} layer)"
        )


def _try_step(
    recipe: Recipe, ready: Prepared, network: nn.Module, inputs: Tensor, rows: Split
) -> None:
    """One forward and backward pass in training mode, of as few rows as a piece of a batch has."""
    piece = min(len(inputs), max(1, recipe.batch // recipe.accumulate))
    labels = torch.from_numpy(rows.labels[:piece])
    try:
        logits = _logits(network.train()(inputs[:piece]), recipe, when=" while it trains")
        ready.objective(logits, labels).backward()
    except Fault:
        raise
    except Exception as error:
        hint = " (--batch over --accumulate leaves one row at a time)" if piece == 1 else ""
        rows_word = "one row" if piece == 1 else f"{piece} rows"
        raise WrongUse(
            f"network {recipe.network}: a training step of {rows_word} fails: {_short(error)}{hint}"
        ) from error


def _try_publishing(
    recipe: Recipe,
    ready: Prepared,
    network: nn.Module,
    rows: Split,
    *,
    models: Path,
) -> None:
    """Export the network into a folder beside the models, check the file, and remove it."""
    inputs = next(in_order(ready.data, rows, device=CPU))
    home = models / recipe.name
    missing = [place for place in (home, *home.parents) if not place.exists()]
    folder = home / f".tmp-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
        file = folder / "model.onnx"
        with torch.no_grad():
            expected = network(inputs).float().numpy()
        export(
            network,
            inputs,
            file,
            vocabulary=ready.data.vocabulary,
            columns=ready.data.columns,
        )
        check_agreement(file, graph_inputs(rows, ready.data.image), expected)
    except Fault:
        raise
    except OSError as error:
        raise RunFailed(
            f"{models}: the model could not be published here: {error.strerror or error}; "
            "give another --models, or make room"
        ) from error
    except Exception as error:
        raise RunFailed(
            f"network {recipe.network}: cannot be exported to ONNX: {_short(error)}; nothing was "
            "trained. torch.export supports no branches or loops that depend on the data"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # a folder with other files stays
            for place in missing:
                place.rmdir()


def _described(outputs: object) -> str:
    if isinstance(outputs, tuple | list):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    if isinstance(outputs, dict):
        return f"a dict with {', '.join(map(str, outputs)) or 'nothing'}"
    return f"a {type(outputs).__name__}"


def _short(error: BaseException) -> str:
    """Return an error's class and the first informative line of its message."""
    while error.__cause__ is not None:  # exporters wrap the error that states the reason
        error = error.__cause__
    lines = [ANSI.sub("", line).strip() for line in str(error).splitlines()]
    said = next((line for line in lines if line and not line.startswith(("#", "="))), "")
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
