"""The first module of a network for rows: it makes raw numbers fit to learn from, in the graph."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

VARIES = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
"""A column whose deviation is a smaller share of its mean varies by rounding alone: dividing by its
deviation would blow up noise."""

INTERVALS = 8
"""Of a number in pieces: 8 and 16 do equally well on the sets of docs/results.md."""


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

    With pieces, a number has an output more for each interval between quantiles of the training
    rows: 0 below the interval, 1 above, rising in it, less its mean. What follows can then bend at
    the quantiles, and a number far out, which standardising would leave large, is bounded.
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
        pieces: "Pieces | None" = None,
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
        self._pieces = pieces
        extra = 0 if pieces is None else len(pieces.places)
        self.width = len(self._numbers) + len(self._gaps) + extra + sum(sizes)

    @classmethod
    def fitted(
        cls, rows: NDArray[np.floating[Any]], sizes: Sequence[int], *, in_pieces: bool = False
    ) -> "Mixed":
        """Fit to training rows [N, columns]; sizes as in the constructor."""
        numbers = rows[:, [place for place, size in enumerate(sizes) if not size]]
        gaps = np.flatnonzero(np.isnan(numbers).any(axis=0)).tolist()
        pieces = Pieces.fitted(numbers) if in_pieces else None
        return cls(*_moments(numbers), sizes=sizes, gaps=gaps, pieces=pieces)

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
            if self._pieces is not None and self._pieces.places:
                parts.append(self._pieces(numbers).to(self.like.dtype))
        for place, size in self._categories:
            values = torch.arange(1, size + 1, device=inputs.device)
            parts.append((inputs[:, place, None] == values).to(self.like.dtype))
        return torch.cat(parts, dim=1)


class Pieces(_Wide):
    """Numbers [B, numbers] to their place in each interval between quantiles, less the mean."""

    low: Tensor
    length: Tensor
    mean: Tensor
    WIDE = ("low", "length", "mean")

    def __init__(
        self, places: Sequence[int], intervals: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> None:
        """places [P]: the number that each interval [P, 2], with its mean output [P], is of."""
        super().__init__()
        self.places = list(places)
        self.register_buffer("low", torch.from_numpy(intervals[:, 0].copy()))
        self.register_buffer("length", torch.from_numpy(intervals[:, 1] - intervals[:, 0]))
        self.register_buffer("mean", torch.from_numpy(mean))

    @classmethod
    def fitted(cls, numbers: NDArray[np.floating[Any]]) -> "Pieces":
        """Fit to the numbers [N, numbers] of the training rows, of which some may be missing."""
        wide = numbers.astype(np.float64)
        found = [(place, edges(column)) for place, column in enumerate(wide.T)]
        places = [place for place, ends in found for _ in ends[1:]]
        intervals = np.array(
            [pair for _, ends in found for pair in itertools.pairwise(ends)], np.float64
        ).reshape(-1, 2)
        means = [
            np.nanmean(np.clip((wide[:, place] - low) / (high - low), 0, 1))
            for place, (low, high) in zip(places, intervals, strict=True)
        ]
        return cls(places, intervals, np.array(means, np.float64))

    def forward(self, numbers: Tensor) -> Tensor:
        """[B, numbers] -> [B, P]; 0, the mean, where the number is missing."""
        risen = (numbers[:, self.places].to(self.low.dtype) - self.low) / self.length
        centred = risen.clamp(0.0, 1.0) - self.mean
        return torch.where(torch.isnan(risen), 0.0, centred)


def edges(column: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The ends of a number's intervals: its values if they are few, else quantiles.

    None where a straight line is all that the values can show: with fewer than three.
    """
    there = column[np.isfinite(column)].astype(np.float64)
    values = np.unique(there)
    if len(values) > INTERVALS + 1:
        values = np.unique(np.quantile(there, np.linspace(0, 1, INTERVALS + 1)))
    return values if len(values) > 2 else values[:0]


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
