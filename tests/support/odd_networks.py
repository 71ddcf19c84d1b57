"""Factories of networks that cannot be trained or published as they are, and of some that can."""

import sys
import threading
import warnings
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

FEATURES = 6


class Outputs(NamedTuple):
    """As torchvision's networks with auxiliary heads return while they train."""

    logits: torch.Tensor
    aux_logits: torch.Tensor


class Wrapped(nn.Module):
    """A linear layer whose output is put into something else."""

    def __init__(self, outputs, put, width=64):
        super().__init__()
        self.first = nn.Linear(FEATURES, width)
        self.last = nn.Linear(width, outputs)
        self.put = put

    def forward(self, inputs):
        return self.put(self, self.last(torch.relu(self.first(inputs))), inputs)


def plain(num_classes):
    """A hidden layer, and nothing that is drawn while it trains."""
    return Wrapped(num_classes, lambda _net, found, _x: found)


def two(num_classes):
    return Wrapped(num_classes, lambda _net, found, _x: (found, found))


def named(num_classes):
    return Wrapped(num_classes, lambda _net, found, _x: {"scores": found})


def thousand(num_classes):
    return Wrapped(1000, lambda _net, found, _x: found)


def one(num_classes):
    return Wrapped(1, lambda _net, found, _x: found)


def softmaxed(num_classes):
    return Wrapped(num_classes, lambda _net, found, _x: functional.softmax(found, dim=1))


def endless(num_classes):
    return Wrapped(num_classes, lambda _net, found, _x: found / 0)


def branching(num_classes):
    return Wrapped(num_classes, lambda _net, found, x: found if x.sum() > 0 else -found)


def raising(num_classes):
    raise OSError("no route to the weights")


def narrow(num_classes):
    return nn.Linear(FEATURES + 1, num_classes)


def normed(num_classes):
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))


def complex_numbers(num_classes):
    return Wrapped(num_classes, lambda _net, found, _x: found.to(torch.complex64))


def nowhere(num_classes):
    return Wrapped(num_classes, lambda _net, found, _x: found.to("meta"))


def sparse(num_classes):
    return Wrapped(num_classes, lambda _net, found, _x: found.to_sparse())


def detached(num_classes):
    return Wrapped(num_classes, lambda _net, found, _x: found.detach())


def mixing(num_classes):
    """Each row's logits depend on the batch that it is in."""
    return Wrapped(num_classes, lambda _net, found, _x: found - found.mean(dim=0))


def drawing(num_classes):
    """Noise on the logits, also in evaluation mode."""
    return Wrapped(num_classes, lambda _net, found, _x: found + torch.randn(found.shape))


def squashed(num_classes):
    """Ends in a sigmoid that is no module."""
    return Wrapped(num_classes, lambda _net, found, _x: torch.sigmoid(found))


def locked(num_classes):
    network = plain(num_classes)
    network.lock = threading.Lock()
    return network


def scripted(num_classes):
    with warnings.catch_warnings(action="ignore"):  # torch is about to give these up
        return torch.jit.script(nn.Linear(FEATURES, num_classes))


def quantised(num_classes):
    with warnings.catch_warnings(action="ignore"):
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(FEATURES, num_classes)), {nn.Linear}
        )


def halved(num_classes):
    return plain(num_classes).half()


def empty(num_classes):
    return nn.Linear(FEATURES, num_classes, device="meta")


def leaving(num_classes):
    sys.exit(0)


def unspeakable(num_classes):
    class Unspeakable(Exception):
        def __str__(self):
            raise ValueError

    raise Unspeakable


def tiring(num_classes, steps=2):
    """Works in the rehearsal, and fails after some steps of training."""
    done = []

    def put(net, found, inputs):
        if net.training and len(inputs) > 2:
            done.append(1)
            if len(done) > steps:
                raise ValueError("too tired")
        return found

    return Wrapped(num_classes, put)


def fixed(num_classes):
    """Its graph can only take as many rows as it was exported with."""
    return Wrapped(num_classes, lambda _net, found, _x: found.reshape(int(found.shape[0]), -1))


class Uncounted(nn.Linear):
    """A layer with a length of its own, as torch.compile gives every module."""

    def __len__(self):
        raise TypeError("does not support len()")


def uncounted(num_classes):
    return nn.Sequential(Uncounted(FEATURES, 8), nn.ReLU(), nn.Linear(8, num_classes))


def hugging(num_classes):
    """As Hugging Face's models: an object with logits."""
    return Wrapped(num_classes, lambda _net, found, _x: SimpleNamespace(logits=found, loss=None))


def auxiliary(num_classes):
    """As torchvision's: a named tuple while training, a tensor afterwards."""
    return Wrapped(
        num_classes, lambda net, found, _x: Outputs(found, found) if net.training else found
    )


def late(num_classes):
    """A plain tuple, but only while it trains."""
    return Wrapped(num_classes, lambda net, found, _x: (found, found) if net.training else found)
