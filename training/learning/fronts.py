"""The first module of a network for rows: it makes raw numbers fit to learn from, in the graph."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

VARIES = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
"""A column whose deviation is a smaller share of its mean varies by rounding alone: dividing by its
deviation would blow up noise."""


class _Wide(nn.Module):
    """A module that computes with float64 buffers, whatever precision the network is put into.

    Its results are of the network's type. Numbers such as Unix times lose in float32 what
    distinguishes them; less their mean, they do not.
    """

    like: Tensor
    WIDE: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros((), dtype=torch.float32), persistent=False)

    def _apply(
        self,
        fn: Callable[[Tensor], Tensor],
        recurse: bool = True,  # noqa: FBT001, FBT002 - as torch declares it
    ) -> Self:
        kept = {name: getattr(self, name) for name in self.WIDE}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        for name, tensor in kept.items():
            setattr(self, name, tensor.to(self.like.device))
        return self


class Standardise(_Wide):
    """(x - mean) / deviation of each number, fitted to the training rows and kept in the graph.

    A published model therefore takes unscaled numbers. A constant input is only centred.
    """

    mean: Tensor
    deviation: Tensor
    WIDE = ("mean", "deviation")

    def __init__(self, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("deviation", torch.from_numpy(deviation))

    @classmethod
    def fitted(cls, rows: NDArray[np.floating[Any]]) -> "Standardise":
        """Fit to training rows [N, …]."""
        mean, deviation = _moments(rows)
        # float32 rows are standardised in float32, which costs half as much
        return cls(mean.astype(rows.dtype), deviation.astype(rows.dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, …] -> [B, …]."""
        standardised: Tensor = (inputs - self.mean) / self.deviation
        return standardised.to(self.like.dtype)


class Mixed(_Wide):
    """Columns of numbers with gaps, and of category numbers, to what a network learns from.

    A number is standardised, and 0 (the mean) where it is missing. A column in which numbers are
    missing among the training rows has a second output, 1 where they are. A category of K values
    has K outputs, one of which is 1; none is for a value that was not learnt.
    """

    mean: Tensor
    deviation: Tensor
    codes: Tensor
    WIDE = ("mean", "deviation")

    def __init__(
        self,
        mean: NDArray[np.float64],
        deviation: NDArray[np.float64],
        *,
        sizes: Sequence[int],
        gaps: Sequence[int],
    ) -> None:
        """Mean and deviation are [numbers]. sizes: values of each column, 0 for numbers.

        gaps: the places, among the numbers, of those that have an output for being missing.
        """
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("deviation", torch.from_numpy(deviation))
        self._numbers = [place for place, size in enumerate(sizes) if not size]
        self._gaps = list(gaps)
        self._categories = [(place, size) for place, size in enumerate(sizes) if size]
        self.width = len(self._numbers) + len(self._gaps) + sum(sizes)

    @classmethod
    def fitted(cls, rows: NDArray[np.floating[Any]], sizes: Sequence[int]) -> "Mixed":
        """Fit to training rows [N, columns]; sizes as in the constructor."""
        numbers = rows[:, [place for place, size in enumerate(sizes) if not size]]
        gaps = np.flatnonzero(np.isnan(numbers).any(axis=0)).tolist()
        return cls(*_moments(numbers), sizes=sizes, gaps=gaps)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, columns] -> [B, width]."""
        parts = []
        if self._numbers:
            numbers = inputs[:, self._numbers].to(self.mean.dtype)
            missing = torch.isnan(numbers)
            standardised = (numbers - self.mean) / self.deviation
            parts.append(torch.where(missing, 0.0, standardised).to(self.like.dtype))
            if self._gaps:
                parts.append(missing[:, self._gaps].to(self.like.dtype))
        for place, size in self._categories:
            values = torch.arange(1, size + 1, device=inputs.device)
            parts.append((inputs[:, place, None] == values).to(self.like.dtype))
        return torch.cat(parts, dim=1)


def _moments(
    rows: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each column over what is there; 0 and 1 where there is nothing."""
    wide = rows.astype(np.float64)
    there = ~np.isnan(wide)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, wide, 0.0).sum(axis=0) / count
    off = np.where(there, wide - mean, 0.0)
    deviation = np.sqrt((off * off).sum(axis=0) / count)
    varies = deviation > VARIES[rows.dtype] * np.maximum(np.abs(mean), 1e-30)
    return mean, np.where(varies, deviation, 1.0)
