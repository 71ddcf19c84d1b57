"""Batch normalisation over a batch that several processes share, on any device.

torch's own SyncBatchNorm supports GPUs only. This one also works on CPUs (over gloo), so that two
processes compute what one process computes.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all processes.

    Each process's loss depends on it, so their gradients are summed on the way back.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


class SharedBatchNorm(_BatchNorm):
    """Replaces a BatchNorm layer, using the same parameter and statistics tensors.

    world: the number of processes; each must have equally many rows.
    """

    def __init__(self, own: _BatchNorm, world: int) -> None:
        super().__init__(
            own.num_features,
            eps=own.eps,
            momentum=own.momentum,
            affine=own.affine,
            track_running_stats=own.track_running_stats,
        )
        self.weight, self.bias = own.weight, own.bias
        self.running_mean, self.running_var = own.running_mean, own.running_var
        self.num_batches_tracked = own.num_batches_tracked
        self._world = world
        self.train(own.training)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        del input

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise inputs [B, channels, …]; in training, by the statistics of all processes."""
        if not self.training and self.running_mean is not None:
            return functional.batch_norm(
                inputs,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=False,
                eps=self.eps,
            )
        axes = [0, *range(2, inputs.ndim)]
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        # statistics of a bf16 or fp16 forward pass are float32, as in torch's own layer
        wide = inputs if inputs.dtype == torch.float64 else inputs.float()
        # every process has equally many rows, so the mean of their means is the overall mean
        mean = self._over_all(wide.mean(axes))
        centred = wide - mean.view(shape)
        variance = self._over_all(centred.square().mean(axes))
        self._remember(
            mean.detach(), variance.detach(), count=inputs.numel() // inputs.shape[1] * self._world
        )
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(inputs.dtype)

    def _over_all(self, values: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return total / self._world

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, *, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), share)


def share_batch_norms(network: nn.Module, *, world: int) -> nn.Module:
    """Replace every batch normalisation by a SharedBatchNorm, and return the network."""
    if isinstance(network, _BatchNorm) and not isinstance(network, SharedBatchNorm):
        return SharedBatchNorm(network, world)
    for name, child in network.named_children():
        setattr(network, name, share_batch_norms(child, world=world))
    return network
