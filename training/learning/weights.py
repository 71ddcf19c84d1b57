"""Starting from trained weights, and training only some of the layers."""

import errno
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.faults import WrongUse, instead

WEIGHTS_FILE = "weights.pt"
ALL_BUT_LAST = "all-but-last"
WRAPPERS = ("", "network.", "1.", "1.network.")
"""Prefixes that this package adds to the parameter names of a user's network."""
FOREIGN = ("module.", "_orig_mod.", "model.", "state_dict.")
"""Prefixes that other tools add, such as DataParallel and torch.compile."""
NESTS = ("state", "state_dict", "model", "network")
LISTED = 4


@dataclass(frozen=True)
class Weights:
    """Trained parameters and buffers by name, and the classes of the last layer, if known."""

    state: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None = None


def save(network: nn.Module, class_names: Sequence[str], path: Path) -> None:
    """Write the network's state and its class names to a file that `read` loads.

    Raises OSError when the file cannot be written.
    """
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    try:
        torch.save({"state": state, "class_names": list(class_names)}, path)
    except RuntimeError as error:  # torch's, where the disk is full
        said = "the weights cannot be written: is the disk full?"
        raise OSError(errno.ENOSPC, said, str(path)) from error


def read(path: Path) -> Weights:
    """Load the weights of a published folder, or of a file with a state dict.

    No code in the file runs: it may hold only tensors and plain values, as with
    torch.load(weights_only=True). Raises WrongUse when the file is missing or cannot be read.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        published = (path / "model.json").is_file()
        hint = " (the model was published without it)" if published else ""
        inside = sorted(str(each.parent) for each in path.glob(f"*/{WEIGHTS_FILE}"))
        offered = f"; is {inside[-1]} meant?" if inside else ""
        raise WrongUse(
            f"--init {path}: there is no file {file}{hint}; expected models/M/N or a state dict "
            f"saved by torch.save{offered}"
        )
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of any class for a file of another kind
        # torch.save writes ZIP files too, so that kind explains nothing.
        kind = "" if zipfile.is_zipfile(file) else instead(file)
        raise WrongUse(
            f"--init {file}: cannot be read as a state dict{kind}; expected what "
            "torch.save(network.state_dict(), FILE) writes, which holds tensors and no code"
        ) from error
    names = found.get("class_names") if isinstance(found, dict) else None
    while isinstance(found, dict) and not any(isinstance(v, Tensor) for v in found.values()):
        nest = next((found[key] for key in NESTS if isinstance(found.get(key), dict)), None)
        if nest is None:
            break
        found = nest
    members = found if isinstance(found, dict) else {}
    state = {name: value for name, value in members.items() if isinstance(value, Tensor)}
    if not state:
        raise WrongUse(
            f"--init {file}: holds no tensors by name; expected a state dict saved by torch.save"
        )
    odd = next((n for n, v in state.items() if v.layout != torch.strided or v.is_quantized), None)
    if odd is not None:
        raise WrongUse(
            f"--init {file}: {odd} is sparse or quantised; save dense tensors of real numbers"
        )
    return Weights(state, tuple(names) if isinstance(names, list) else None)


def start_from(
    network: nn.Module,
    weights: Weights,
    last: str,
    class_names: Sequence[str],
    *,
    fitted: Collection[str] = (),
) -> list[str]:
    """Copy the weights into the network, and return a sentence on what keeps its random values.

    last: the name of the last linear layer. Where both class lists are known, its rows are copied
    class by class, so new classes may be added. Otherwise a last layer of another size keeps its
    random values. fitted: the names of tensors that were fitted to the training rows, such as their
    means; where the file has none of them, they stay. Raises WrongUse when any other tensor is
    missing or has another shape.
    """
    own = network.state_dict()
    found = _named_alike(weights.state, own)
    head = {name for name in own if name.startswith(f"{last}.")}
    kept = set(fitted) if found.keys().isdisjoint(fitted) else set()
    missing = [name for name in own if name not in found and name not in head | kept]
    if missing:
        raise WrongUse(
            f"--init: has no {_listed(missing)} ({len(missing)} of {len(own)} tensors are "
            "missing); give weights of the same --network"
        )
    wrong = [n for n in own if n in found and n not in head and found[n].shape != own[n].shape]
    if wrong:
        shapes = f"{list(found[wrong[0]].shape)}; the network's is {list(own[wrong[0]].shape)}"
        raise WrongUse(
            f"--init: {wrong[0]} is {shapes} ({len(wrong)} tensors differ); "
            "give weights of this network"
        )
    new = {name: found[name] for name in own if name in found and name not in head}
    said = []
    if kept:
        said.append("--init: has no means of its inputs, so they are standardised by these data")
    rows = _rows(weights.class_names, class_names)
    if all(name in found and found[name].shape == own[name].shape for name in head) and (
        weights.class_names is None or tuple(weights.class_names) == tuple(class_names)
    ):
        new |= {name: found[name] for name in head}
    elif rows and _is_inner_layer(found.get(f"{last}.weight"), len(weights.class_names or ())):
        raise WrongUse(
            f"--init: {last}.weight is {list(found[f'{last}.weight'].shape)}, which is not a row "
            f"for each of the {len(weights.class_names or ())} classes of that model, so it is "
            "another layer there; give weights of the same --network"
        )
    elif rows and all(
        name in found and found[name].shape[1:] == own[name].shape[1:] for name in head
    ):
        for name in head:
            grown = own[name].clone()
            for here, there in rows:
                grown[here] = found[name][there]
            new[name] = grown
        fresh = len(class_names) - len(rows)
        said.append(
            f"--init: {len(rows)} classes keep their weights, {fresh} start from random ones"
        )
    else:
        said.append(
            f"--init: the last layer starts from random weights, for {len(class_names)} classes"
        )
    network.load_state_dict(new, strict=False)
    return said


def _is_inner_layer(weight: Tensor | None, classes: int) -> bool:
    """Whether a model of that many classes cannot end in the layer with this weight."""
    return weight is not None and weight.shape[:1] != (classes,)


def _rows(before: Sequence[str] | None, now: Sequence[str]) -> list[tuple[int, int]]:
    """(index now, index before) of each class that is in both lists."""
    places = {name: place for place, name in enumerate(before or ())}
    return [(here, places[name]) for here, name in enumerate(now) if name in places]


def _named_alike(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Match the state to the network's parameter names, whatever prefixes wrappers have added."""
    best: dict[str, Tensor] = {}
    for foreign in ("", *FOREIGN):
        cut = {name.removeprefix(foreign): tensor for name, tensor in state.items()}
        for wrapper in WRAPPERS:
            named = {f"{wrapper}{name}": tensor for name, tensor in cut.items()}
            found = {name: tensor for name, tensor in named.items() if name in own}
            if len(found) > len(best):
                best = found
    return best


def freeze(network: nn.Module, prefixes: Sequence[str], last: str) -> None:
    """Freeze the parameters whose names begin with one of the prefixes.

    The prefix `all-but-last` freezes everything but the layer named `last`. Raises WrongUse for a
    prefix that no parameter has, or when every parameter would be frozen.
    """
    parts, parameters = _parts(network), dict(network.named_parameters())
    for prefix in prefixes:
        if prefix == ALL_BUT_LAST:
            named = [p for name, p in parameters.items() if not name.startswith(f"{last}.")]
        else:
            named = [parameters[name] for name, part in parts.items() if _belongs(part, prefix)]
        if not named and prefix == ALL_BUT_LAST:
            raise WrongUse(
                f"--freeze {prefix}, which --features-once does too: the network has no layer with "
                "parameters before its last linear layer; leave the flag out"
            )
        if not named:
            raise WrongUse(f"--freeze {prefix}: {_no_layer(network, prefix)}")
        for parameter in named:
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise WrongUse(
            f"--freeze {','.join(prefixes)}: nothing is left to train; freeze fewer layers"
        )


def factors(network: nn.Module, of_part: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of the learning rate for each parameter, by its name.

    of_part: factors by prefix; the longest prefix that fits decides, and 1 is the default. Raises
    WrongUse for a prefix that no parameter has.
    """
    parts = _parts(network)
    for prefix in of_part:
        if not any(_belongs(part, prefix) for part in parts.values()):
            raise WrongUse(f"--lr-of {prefix}: {_no_layer(network, prefix)}")
    ranked = sorted(of_part, key=len, reverse=True)
    return {
        name: next((of_part[prefix] for prefix in ranked if _belongs(part, prefix)), 1.0)
        for name, part in parts.items()
    }


def hold_still(network: nn.Module) -> None:
    """Put frozen modules into evaluation mode.

    Their batch statistics then stay as they are, and they apply no dropout.
    """
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _parts(network: nn.Module) -> dict[str, str]:
    """Map each parameter's name to its name in the user's own network, without our prefix."""
    names = [name for name, _ in network.named_parameters()]
    wrapper = next(w for w in reversed(WRAPPERS) if all(name.startswith(w) for name in names))
    return {name: name.removeprefix(wrapper) for name in names}


def _belongs(part: str, prefix: str) -> bool:
    return part == prefix or part.startswith(f"{prefix}.")


def _no_layer(network: nn.Module, prefix: str) -> str:
    layers = sorted({part.rpartition(".")[0] for part in _parts(network).values()})
    return f"no parameter is named {prefix}; the layers are {_listed(layers)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
