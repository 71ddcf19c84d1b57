"""Tries everything that happens after training on two rows, before the first step.

A network that cannot be trained, exported or published thus fails within seconds, not after the
whole run.
"""

import contextlib
import copy
import shutil
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from service.contract.resources import available_memory
from training.data.dataset import Split
from training.data.feed import graph_feeds, in_order
from training.faults import Fault, RunFailed, WrongUse, say, short
from training.learning.networks import NAMES
from training.run.export import check_agreement, export
from training.run.prepare import Prepared
from training.run.recipe import Recipe

ROWS = 2
OTHER_ROWS = (1, 3)
"""Rows of the batches with which the exported file is tried too."""
BYTES_A_LOGIT = 4 + 8 + 8
"""A split's logits are held in float32, and in float64 before and after the adjustment."""
CPU = torch.device("cpu")
ALONE_ROUNDING = 1e-3
"""How far a row's logits may change when it is scored alone, as a share of the largest logit or of
1. Sums are then computed in another order.
"""
SIGMOID_ROWS = 32
PROBABILITY_ROUNDING = 1e-4
"""Rows without negative numbers that sum to 1 within this tolerance are probabilities."""


def rehearse(recipe: Recipe, ready: Prepared, network: nn.Module, *, models: Path | None) -> None:
    """Run a copy of the network forward and backward, and export it to `models` unless None.

    The network must be on the CPU and is not changed. Raises WrongUse or RunFailed with the reason.
    """
    _check_memory(ready)
    _check_modules(recipe, network)
    rows = ready.data.train.take(np.arange(min(ROWS, len(ready.data.train))))
    tried = _copy(recipe, network)
    inputs = next(in_order(ready.data, rows, device=CPU))
    outputs = _forward(recipe, tried.eval(), inputs)
    _check_outputs(outputs, recipe, ready.data.num_classes, len(rows))
    _check_alone(recipe, tried, inputs, outputs)
    _warn_of_sigmoid(recipe, ready, tried, outputs)
    _check_last_module(recipe, tried)
    _try_step(recipe, ready, tried, inputs, rows)
    if models is not None:
        _try_publishing(recipe, ready, tried.eval(), rows, models=models)


def _check_memory(ready: Prepared) -> None:
    """Raise RunFailed if the logits of a split that is scored at once take more than the memory.

    The system would end the process without a message, after the whole training.
    """
    splits = {"validation": ready.data.val, "test": ready.data.test}
    if ready.plan.optimiser == "lbfgs":
        splits["training"] = ready.data.train
    for name, split in splits.items():
        needed = 0 if split is None else len(split) * ready.data.num_classes * BYTES_A_LOGIT
        if split is not None and needed > available_memory():
            raise RunFailed(
                f"the logits of {len(split):,} {name} rows for {ready.data.num_classes:,} classes "
                f"take {needed / 2**30:,.0f} GB of memory, and there are "
                f"{available_memory() / 2**30:,.0f}: give fewer rows to that split, or leave rare "
                "classes out"
            )


def _check_modules(recipe: Recipe, network: nn.Module) -> None:
    """Raise WrongUse for modules that no run can train and export, whatever they compute."""
    for each in network.modules():
        kind = type(each)
        if isinstance(each, torch.jit.ScriptModule):
            raise WrongUse(
                f"network {recipe.network}: holds TorchScript ({kind.__name__}), which cannot be "
                "exported to ONNX; give the torch.nn.Module that it was made from"
            )
        if ".quantized" in kind.__module__:
            raise WrongUse(
                f"network {recipe.network}: holds a quantised layer ({kind.__name__}), which "
                "cannot be trained; give the network as it was before quantisation"
            )
    for weights in network.parameters():
        if weights.is_meta:
            raise WrongUse(
                f"network {recipe.network}: its weights have no numbers (device meta); draw or "
                "load them first"
            )
        if weights.is_floating_point() and weights.dtype != torch.float32:
            dtype = str(weights.dtype).removeprefix("torch.")
            raise WrongUse(
                f"network {recipe.network}: its weights are {dtype}; give it in float32, as "
                ".float() does, and choose the precision of the run with --precision"
            )


def _copy(recipe: Recipe, network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise WrongUse(
            f"network {recipe.network}: cannot be copied: {short(error)}; keep locks, files and "
            "connections out of the network's attributes"
        ) from error


def _forward(recipe: Recipe, network: nn.Module, inputs: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            outputs = network(inputs)
    except Exception as error:
        raise WrongUse(
            f"network {recipe.network}: fails on an input of shape {list(inputs.shape)}: "
            f"{short(error)}; choose a network for such inputs"
        ) from error
    return _logits(outputs, recipe)


def _logits(outputs: object, recipe: Recipe, *, when: str = "") -> Tensor:
    if not isinstance(outputs, Tensor):
        raise WrongUse(
            f"network {recipe.network}: returns {_described(outputs)}{when}; expected the logits "
            "alone, a tensor [batch, classes] (wrap the network in a module that returns them)"
        )
    plain = outputs.is_floating_point() and outputs.layout is torch.strided
    if not plain or outputs.device != CPU:
        raise WrongUse(
            f"network {recipe.network}: returns {_kind(outputs)}{when}; expected real numbers in a "
            "dense tensor, on the device of the input"
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


def _check_alone(recipe: Recipe, network: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Raise WrongUse unless a row has the same logits alone: the service mixes rows in batches."""
    alone = _forward(recipe, network, inputs[:1])
    limit = ALONE_ROUNDING * max(1.0, float(outputs.abs().max()))
    if alone.shape != outputs[:1].shape or not float((alone - outputs[:1]).abs().max()) <= limit:
        raise WrongUse(
            f"network {recipe.network}: a row alone gets other logits than next to another row; "
            "expected logits that depend on the row only, and not on chance (in evaluation mode)"
        )


def _warn_of_sigmoid(recipe: Recipe, ready: Prepared, network: nn.Module, outputs: Tensor) -> None:
    """Warn if every output of a user's network lies between 0 and 1, as logits hardly ever do.

    With few classes, the first logits of a built-in network may lie there by chance.
    """
    if recipe.network in NAMES or not _within_one(outputs):
        return
    rows = ready.data.train.take(np.arange(min(SIGMOID_ROWS, len(ready.data.train))))
    if _within_one(_forward(recipe, network, next(in_order(ready.data, rows, device=CPU)))):
        say(
            f"warning: network {recipe.network}: every output of {len(rows)} rows lies between 0 "
            "and 1, as after a sigmoid; logits are expected (remove it)"
        )


def _within_one(outputs: Tensor) -> bool:
    return bool(((outputs >= 0) & (outputs <= 1)).all())


def _check_last_module(recipe: Recipe, network: nn.Module) -> None:
    # not `any(children)`: a child with `__len__` may count as false
    leaves = [each for each in network.modules() if next(each.children(), None) is None]
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
        if not logits.requires_grad:
            raise WrongUse(
                f"network {recipe.network}: no parameter that can be trained leads to its logits "
                "(all are frozen, or the outputs are detached, rounded or constant); leave a layer "
                "before the logits trainable"
            )
        ready.objective(logits, labels).backward()
    except Fault:
        raise
    except Exception as error:
        hint = " (--batch over --accumulate leaves one row at a time)" if piece == 1 else ""
        rows_word = "one row" if piece == 1 else f"{piece} rows"
        raise WrongUse(
            f"network {recipe.network}: a training step of {rows_word} fails: {short(error)}{hint}"
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
        check_agreement(file, graph_feeds(ready.data, rows), expected)
        _try_other_batches(recipe, ready, network, file)
    except Fault:
        raise
    except OSError as error:
        raise RunFailed(
            f"{models}: the model could not be published here: {error.strerror or error}; "
            "give another --models, or make room"
        ) from error
    except Exception as error:
        raise RunFailed(
            f"network {recipe.network}: cannot be exported to ONNX: {short(error)}; nothing was "
            "trained. Remove branches and loops that depend on the data"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # a folder with other files stays
            for place in missing:
                place.rmdir()


def _try_other_batches(recipe: Recipe, ready: Prepared, network: nn.Module, file: Path) -> None:
    """Raise RunFailed unless the file answers batches of other sizes than it was exported with."""
    for count in OTHER_ROWS:
        rows = ready.data.train.take(np.arange(count) % len(ready.data.train))
        with torch.no_grad():
            expected = network(next(in_order(ready.data, rows, device=CPU))).float().numpy()
        try:
            check_agreement(file, graph_feeds(ready.data, rows), expected)
        except RunFailed as error:
            raise RunFailed(
                f"network {recipe.network}: its ONNX file takes {ROWS} rows at a time, but not "
                f"{count}; nothing was trained. In its method forward, write x.flatten(1), or -1 "
                f"for the number of rows, instead of int(x.shape[0]) or len(x): {error}"
            ) from error


def _described(outputs: object) -> str:
    if isinstance(outputs, tuple | list):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    if isinstance(outputs, dict):
        return f"a dict with {', '.join(map(str, outputs)) or 'nothing'}"
    return f"a {type(outputs).__name__}"


def _kind(outputs: Tensor) -> str:
    """Describe what is odd about a tensor: its numbers, how they are stored, and on which
    device.
    """
    dtype = str(outputs.dtype).removeprefix("torch.")
    layout = "" if outputs.layout is torch.strided else " in a sparse tensor"
    return f"{dtype}{layout} on {outputs.device}"
