"""Finds, reads and replaces the last linear layer of a network, and computes its inputs."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data.dataset import Dataset, Split
from training.data.feed import in_order
from training.faults import WrongUse
from training.scores.posthoc import LastLayer


def head_of(network: nn.Module) -> tuple[str, nn.Linear]:
    """Return (dotted path, layer) of the last linear layer.

    Raises WrongUse when there is none; a cosine head is not linear.
    """
    found = [(p, layer) for p, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not found:
        raise WrongUse(
            "the network does not end in a linear layer, which could be read or replaced; use one "
            "that does"
        )
    return found[-1]


def last_layer(network: nn.Module) -> LastLayer:
    """Return the weights and bias of the network's last linear layer, in float64."""
    _, head = head_of(network)
    weight = head.weight.detach().double().cpu().numpy()
    bias = np.zeros(len(weight)) if head.bias is None else head.bias.detach().double().cpu().numpy()
    return LastLayer(weight, bias)


@torch.no_grad()
def features_of(
    network: nn.Module, data: Dataset, split: Split, *, device: torch.device
) -> NDArray[np.float32]:
    """Return the inputs [N, D] of the last linear layer for the N rows of a split.

    The network is put into evaluation mode. Raises WrongUse when it does anything after that layer.
    """
    network.eval()
    _, head = head_of(network)
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    parts = []
    try:
        for inputs in in_order(data, split, device=device):
            seen.clear()
            logits = network(inputs)
            if len(seen) != 1 or not torch.equal(head(seen[0]), logits):
                raise WrongUse(
                    "the network does something after its last linear layer; "
                    "expected that layer to be last"
                )
            parts.append(seen[0].float().cpu().numpy())
    finally:
        hook.remove()
    return np.concatenate(parts)


def with_last_layer(network: nn.Module, layer: LastLayer) -> nn.Module:
    """Return a copy of the network whose last linear layer is `layer`, [C, D]."""
    changed = copy.deepcopy(network)
    path, head = head_of(changed)
    replacement = nn.Linear(head.in_features, head.out_features, device=head.weight.device)
    with torch.no_grad():
        replacement.weight.copy_(torch.from_numpy(layer.weight))
        replacement.bias.copy_(torch.from_numpy(layer.bias))
    parent, _, attribute = path.rpartition(".")
    setattr(changed.get_submodule(parent), attribute, replacement.to(head.weight.dtype))
    return changed
