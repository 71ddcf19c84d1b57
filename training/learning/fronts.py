"""The first module of a network for table rows: it prepares raw numbers inside the graph.

It standardises numbers, encodes categories and marks missing values, so that a published model
takes rows as they are.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

VARIES = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
"""A column whose standard deviation is a smaller fraction of its mean counts as constant: it varies
by rounding alone, and dividing by that deviation would only amplify noise."""

INTERVALS = 8
"""Intervals per number in the `-pieces` networks; on the data sets of docs/results.md, 16 score no
better than 8."""

MOMENTS_AT_ONCE = 2**20
"""Numbers of which means and deviations are computed at once; float64 copies of them take 32 MiB.
"""


class _Wide(nn.Module):
    """A module whose buffers in `WIDE` keep their dtype when the network changes its precision.

    Its outputs have the network's dtype. Large numbers such as Unix times would lose their
    differences in float32; once the mean is subtracted in float64, float32 holds them.
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
    """Computes (x - mean) / deviation for each number, with both fitted to the training rows.

    It is part of the exported graph, so a published model takes unscaled numbers. A constant column
    has its mean subtracted and is not divided.
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
        """Compute mean and deviation from training rows [N, …]; the result has the rows' dtype."""
        mean, deviation = _moments(rows)
        # float32 rows are standardised in float32, which costs half as much
        return cls(mean.astype(rows.dtype), deviation.astype(rows.dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardise rows [B, …]; the result has the same shape."""
        standardised: Tensor = (inputs - self.mean) / self.deviation
        return standardised.to(self.like.dtype)


class Mixed(_Wide):
    """Turns rows of numbers and categories, some of them missing, into a network's features.

    A number is standardised; a missing one (NaN) becomes 0, the mean. A numeric column with missing
    values in the training rows gets a second output: 1 where the value is missing, else 0. A
    category with K values gets K outputs (one-hot), all 0 for a value unseen in training. With
    `scaled`, each of them is divided by its deviation over the training rows, so that one penalty
    is as mild on rare values, which often mark rare classes, as on frequent ones.

    With `pieces`, a number gets one more output for each interval between quantiles of the training
    rows. The output rises from 0 below the interval to 1 above it, minus its mean over the training
    rows. The network can then bend at the quantiles, and outliers stay bounded.
    """

    mean: Tensor
    deviation: Tensor
    scale: Tensor | None
    WIDE = ("mean", "deviation")

    def __init__(
        self,
        mean: NDArray[np.float64],
        deviation: NDArray[np.float64],
        *,
        sizes: Sequence[int],
        gaps: Sequence[int],
        pieces: "Pieces | None" = None,
        scale: NDArray[np.float64] | None = None,
    ) -> None:
        """mean, deviation: [numbers], of the numeric columns.

        sizes: for each column, its number of category values; 0 for a numeric column. gaps: indices
        among the numeric columns of those with an output for missing values. pieces: adds the
        outputs of the intervals; None adds none. scale: a factor for each value of each category;
        None: 1.
        """
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("deviation", torch.from_numpy(deviation))
        self.register_buffer("scale", None if scale is None else torch.from_numpy(scale).float())
        self._numbers = [place for place, size in enumerate(sizes) if not size]
        self._gaps = list(gaps)
        self._categories = [(place, size) for place, size in enumerate(sizes) if size]
        self._pieces = pieces
        extra = 0 if pieces is None else len(pieces.places)
        self.width = len(self._numbers) + len(self._gaps) + extra + sum(sizes)

    @classmethod
    def fitted(
        cls,
        rows: NDArray[np.floating[Any]],
        sizes: Sequence[int],
        *,
        in_pieces: bool = False,
        scaled: bool = False,
    ) -> "Mixed":
        """Fit to training rows [N, columns].

        sizes: as in the constructor. in_pieces: also fit the intervals of each number. scaled: also
        fit the factors of the categories' values.
        """
        numbers = rows[:, [place for place, size in enumerate(sizes) if not size]]
        gaps = np.flatnonzero(np.isnan(numbers).any(axis=0)).tolist()
        pieces = Pieces.fitted(numbers) if in_pieces else None
        scale = _scale(rows, sizes) if scaled else None
        return cls(*_moments(numbers), sizes=sizes, gaps=gaps, pieces=pieces, scale=scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Turn rows [B, columns] into features [B, width]."""
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
        ends = itertools.accumulate(size for _, size in self._categories)
        for (place, size), end in zip(self._categories, ends, strict=True):
            values = torch.arange(1, size + 1, device=inputs.device)
            there = (inputs[:, place, None] == values).to(self.like.dtype)
            parts.append(there if self.scale is None else there * self.scale[end - size : end])
        return torch.cat(parts, dim=1)


class Pieces(_Wide):
    """Maps numbers [B, numbers] to their positions 0 … 1 in intervals between training quantiles.

    Each position has its mean over the training rows subtracted.
    """

    low: Tensor
    length: Tensor
    mean: Tensor
    WIDE = ("low", "length", "mean")

    def __init__(
        self, places: Sequence[int], intervals: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> None:
        """P intervals over all numbers.

        places: [P] index of the number that each interval belongs to. intervals: [P, 2] its ends.
        mean: [P] its mean position over the training rows.
        """
        super().__init__()
        self.places = list(places)
        self.register_buffer("low", torch.from_numpy(intervals[:, 0].copy()))
        self.register_buffer("length", torch.from_numpy(intervals[:, 1] - intervals[:, 0]))
        self.register_buffer("mean", torch.from_numpy(mean))

    @classmethod
    def fitted(cls, numbers: NDArray[np.floating[Any]]) -> "Pieces":
        """Fit to the numbers [N, numbers] of the training rows; missing ones are NaN."""
        found = [(place, edges(column)) for place, column in enumerate(numbers.T)]
        places = [place for place, ends in found for _ in ends[1:]]
        intervals = np.array(
            [pair for _, ends in found for pair in itertools.pairwise(ends)], np.float64
        ).reshape(-1, 2)
        means = [
            np.nanmean(np.clip((numbers[:, place].astype(np.float64) - low) / (high - low), 0, 1))
            for place, (low, high) in zip(places, intervals, strict=True)
        ]
        return cls(places, intervals, np.array(means, np.float64))

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the positions [B, P] of numbers [B, numbers]; 0, the mean, where missing."""
        risen = (numbers[:, self.places].to(self.low.dtype) - self.low) / self.length
        centred = risen.clamp(0.0, 1.0) - self.mean
        return torch.where(torch.isnan(risen), 0.0, centred)


def edges(column: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the ends of the intervals of a numeric column [N], in ascending order.

    They are the column's distinct values if there are at most INTERVALS + 1, else quantiles. With
    fewer than three values the result is empty: two points show no more than a straight line.
    """
    there = column[np.isfinite(column)].astype(np.float64)
    values = np.unique(there)
    if len(values) > INTERVALS + 1:
        values = np.unique(np.quantile(there, np.linspace(0, 1, INTERVALS + 1)))
    return values if len(values) > 2 else values[:0]


def _scale(rows: NDArray[np.floating[Any]], sizes: Sequence[int]) -> NDArray[np.float64]:
    """1 / deviation of each value's indicator over the rows; 1 where it does not vary."""
    shares = [
        np.bincount(rows[:, place].astype(np.int64), minlength=size + 1)[1:] / len(rows)
        for place, size in enumerate(sizes)
        if size
    ]
    share = np.concatenate(shares)
    deviation = np.sqrt(share * (1 - share))
    return np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 1.0)


def _moments(
    rows: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column, NaN left out; 0 and 1 for a column of NaN.

    Columns are taken some at a time: float64 copies of all rows would need several times the
    memory of the data.
    """
    flat = rows.reshape(len(rows), -1)
    blocks = max(1, min(-(-flat.size // MOMENTS_AT_ONCE), flat.shape[1]))
    found = [_moments_of(block) for block in np.array_split(flat, blocks, axis=1)]
    mean, deviation = (
        np.concatenate(each).reshape(rows.shape[1:]) for each in zip(*found, strict=True)
    )
    return mean, deviation


def _moments_of(
    rows: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    wide = rows.astype(np.float64)
    there = ~np.isnan(wide)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, wide, 0.0).sum(axis=0) / count
    off = np.where(there, wide - mean, 0.0)
    deviation = np.sqrt((off * off).sum(axis=0) / count)
    varies = deviation > VARIES[rows.dtype] * np.maximum(np.abs(mean), 1e-30)
    return mean, np.where(varies, deviation, 1.0)
