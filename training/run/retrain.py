"""Trains the classifier again on frozen features, with class-balanced sampling (Kang 2020)."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.learning.samplers import make_sampler
from training.loop.schedule import learning_rate
from training.scores.posthoc import Labels, LastLayer

BATCH = 128
FEWEST_STEPS = 500  # so small data get more than `epochs` epochs


def retrain_classifier(
    features: NDArray[np.floating],
    labels: Labels,
    num_classes: int,
    *,
    seed: int,
    epochs: int = 10,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
) -> LastLayer:
    """Train a new linear layer (cRT) by SGD with momentum and a cosine schedule.

    features: [N, D], frozen; labels: [N]. Sampling is class-balanced, so the loss_tau to record
    is 1.
    """
    generator = torch.Generator().manual_seed(seed)
    size = features.shape[1]
    bound = size**-0.5  # the initial weights of torch's own Linear
    weight = (torch.rand(num_classes, size, generator=generator) * 2 - 1) * bound
    bias = torch.zeros(num_classes)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    _descend(
        parameters,
        lambda x: F.linear(x, weight, bias),
        (features, labels, num_classes),
        seed=seed,
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
    )
    return LastLayer(weight.detach().double().numpy(), bias.detach().double().numpy())


def learn_scales(
    layer: LastLayer,
    features: NDArray[np.floating],
    labels: Labels,
    *,
    seed: int,
    epochs: int = 10,
    lr: float = 0.1,
) -> LastLayer:
    """Train the scales s of s_y * (w_y . x + b_y) alone, from 1 on (LWS).

    features: [N, D], frozen; labels: [N]. The loss_tau to record is 1, but approximate: scales
    alone cannot make the logits a posterior under a uniform prior.
    """
    weight = torch.from_numpy(layer.weight).float()
    bias = torch.from_numpy(layer.bias).float()
    scales = torch.ones(len(bias), requires_grad=True)
    _descend(
        [scales],
        lambda x: scales * F.linear(x, weight, bias),
        (features, labels, len(bias)),
        seed=seed,
        epochs=epochs,
        lr=lr,
        weight_decay=0.0,
    )
    return layer.scaled(scales.detach().double().numpy())


def _descend(
    parameters: list[Tensor],
    forward: Callable[[Tensor], Tensor],
    data: tuple[NDArray[np.floating], Labels, int],
    *,
    seed: int,
    epochs: int,
    lr: float,
    weight_decay: float,
) -> None:
    features, labels, num_classes = data
    inputs = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    targets = torch.from_numpy(np.asarray(labels, np.int64))
    sampler = make_sampler("balanced", labels, num_classes, seed=seed)
    per_epoch = -(-len(targets) // BATCH)
    rounds = max(epochs, -(-FEWEST_STEPS // per_epoch))
    optimiser = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
    step = 0
    for epoch in range(rounds):
        for rows in torch.split(torch.from_numpy(sampler.epoch_indices(epoch, rounds)), BATCH):
            rate = learning_rate(step, base=lr, steps=rounds * per_epoch, schedule="cosine")
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad()
            loss = F.cross_entropy(forward(inputs[rows]), targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            step += 1
