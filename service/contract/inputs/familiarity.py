"""Statistics of the training inputs, and whether a row is far from them.

If a client scales a tensor to 0 … 1 but the model was trained on normalised pixels, the tensor is
still valid. Only its level and spread show the mistake. Each number is standardised: its channel's
mean is subtracted, and it is divided by the channel's standard deviation. Then the mean and the
variance over a row are compared.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from service.contract.portions import Long
from service.contract.strict import Strict

Array = NDArray[Any]
Rows = NDArray[np.float64]
MEASURED_ROWS = 2048
"""The most training rows that are measured, taken at equal distances."""
MAX_NUMBERS = 1024
"""The most numbers of a row that are used, taken at equal distances."""
ONE_ROW, SEVERAL_ROWS, ENOUGH_ROWS = 4.0, 2.5, 4
"""Distance from the training mean, in standard deviations, at which a single row is far
(ONE_ROW), or the mean of at least ENOUGH_ROWS rows (SEVERAL_ROWS).
"""
UNKNOWN_LEVEL, UNKNOWN_SPREAD = 3.0, 8.0
"""Limits of level and spread where too few rows of training were seen to tell how they vary."""
_FEW_ROWS = 10
_MOST_OF_IT = 0.8
"""A number with a larger share of a row's squared distance is named in the warning."""
_LEAST_SD = 1e-100
"""A channel with a smaller standard deviation counts as constant."""
_LEAST_VARIANCE = 1e-12
"""A row whose standardised numbers vary less is constant: rounding alone can exceed 0."""


class Spread(Strict):
    """How a statistic of single rows varies over the rows of training."""

    mean: float
    sd: Annotated[float, Field(ge=0)]
    low: float
    high: float


class InputStatistics(Strict):
    """mean and sd: of each channel or column. rows: how many were seen.

    row_level: the mean over a row of its standardised numbers. row_spread: the logarithm of their
    standard deviation; `low` is far below the others where a row was constant. Both are null where
    few rows were seen.
    """

    mean: Annotated[Long[float], Field(min_length=1)]
    sd: Annotated[Long[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    rows: Annotated[int, Field(ge=1, le=10**15)]
    row_level: Spread | None = None
    row_spread: Spread | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.mean) != len(self.sd):
            raise ValueError(
                f"mean has {len(self.mean)} entries and sd {len(self.sd)}; expected equal numbers"
            )
        return self


def channels_of(shape: Sequence[int], *, layout: str | None = None) -> tuple[int, int]:
    """Return (number of channels, the axis of a row that holds them) for rows of this shape.

    The axis is -1 where there is one channel. A row of one axis has a channel per column. For
    images `layout` decides; for other rows, an axis of at most 4 entries counts as the channels.
    """
    if not shape:
        return 1, -1
    if len(shape) == 1:
        return shape[0], 0
    if layout == "NHWC" or (layout is None and shape[0] > 4 and shape[-1] <= 4):
        return shape[-1], len(shape) - 1
    if layout == "NCHW" or shape[0] <= 4:
        return shape[0], 0
    return 1, -1


@lru_cache(maxsize=32)
def _places(shape: tuple[int, ...], layout: str | None) -> tuple[Array | None, Array]:
    """The positions in a flat row that are used (None: all), and the channel of each."""
    count = int(np.prod(shape, dtype=np.int64))
    kept = np.arange(count)
    if count > MAX_NUMBERS:
        kept = np.unique(np.linspace(0, count - 1, MAX_NUMBERS).astype(np.int64))
    _, axis = channels_of(shape, layout=layout)
    channels = np.zeros(len(kept), np.int64) if axis < 0 else np.unravel_index(kept, shape)[axis]
    return (None if count <= MAX_NUMBERS else kept), channels


def _numbers(rows: Array, layout: str | None) -> tuple[Rows, Array]:
    """[n, F] float64 numbers of rows [n, …], and the channel of each."""
    kept, channels = _places(rows.shape[1:], layout)
    flat = rows.reshape(len(rows), -1)
    return (flat if kept is None else flat[:, kept]).astype(np.float64), channels


def measure(rows: Array, *, layout: str | None = None) -> InputStatistics | None:
    """The statistics of rows [n, …] of training; NaN is left out. None where nothing is finite."""
    if not len(rows):
        return None
    numbers, channels = _numbers(rows, layout)
    count, _ = channels_of(rows.shape[1:], layout=layout)
    seen = np.isfinite(numbers)
    held = np.bincount(channels, seen.sum(axis=0), count)
    if not held.all():
        return None
    total = np.where(seen, numbers, 0.0)
    mean = np.bincount(channels, total.sum(axis=0), count) / held
    apart = np.where(seen, numbers - mean[channels], 0.0)
    sd = np.sqrt(np.bincount(channels, (apart**2).sum(axis=0), count) / held)
    whole = seen.all(axis=1)
    found = InputStatistics(mean=mean.tolist(), sd=sd.tolist(), rows=len(rows))
    if int(whole.sum()) < _FEW_ROWS:
        return found
    features = Familiarity(found, layout=layout).features(rows[whole])
    spread = np.log(np.maximum(features[:, 1], _LEAST_VARIANCE)) / 2
    varied = features[:, 1] > _LEAST_VARIANCE
    if int(varied.sum()) < _FEW_ROWS:
        varied[:] = True  # rows of one number
    return found.model_copy(
        update={
            "row_level": _spread(features[:, 0], features[:, 0]),
            "row_spread": _spread(spread, spread[varied]),
        }
    )


def _spread(values: Rows, usual: Rows) -> Spread:
    return Spread(
        mean=float(usual.mean()), sd=float(usual.std()),
        low=float(values.min()), high=float(values.max()),
    )  # fmt: skip


class Familiarity:
    """Decides which rows are far from the training inputs."""

    def __init__(
        self,
        statistics: InputStatistics,
        *,
        layout: str | None = None,
        names: Sequence[str] = (),
    ) -> None:
        """layout: the order of an image tensor's axes; None for other inputs. names: of the columns
        of a table, for warnings.
        """
        self._statistics, self._layout, self._names = statistics, layout, names
        self._mean = np.array(statistics.mean)
        sd = np.array(statistics.sd)
        self._inverse = 1 / np.where(sd < _LEAST_SD, 1.0, sd)  # a constant keeps its own unit
        self._together: tuple[Spread, Spread] | None = None
        self._weights: dict[tuple[int, ...], tuple[Array | None, Rows, Rows, Rows]] = {}
        level, spread = statistics.row_level, statistics.row_spread
        if level is None or spread is None:
            self._low = -UNKNOWN_LEVEL, UNKNOWN_SPREAD**-2 if len(statistics.mean) > 1 else -1.0
            self._high = UNKNOWN_LEVEL, UNKNOWN_SPREAD**2
            return
        (low, high), (least, most) = _edges(level), _edges(spread)
        constant = _square_of(spread.low) <= 2 * _LEAST_VARIANCE
        self._low = low, -1.0 if constant else _square_of(least)
        self._high = high, _square_of(most)
        self._together = (level, spread)

    def features(self, rows: Array) -> Rows:
        """[n, 2] the mean and the variance of the standardised numbers of rows [n, …]."""
        known = self._weights.get(rows.shape[1:])
        kept, means, levels, squares = known or self._learn(rows.shape[1:])
        flat = rows.reshape(len(rows), -1)
        numbers = (flat if kept is None else flat[:, kept]).astype(np.float64)
        numbers -= means
        level = numbers @ levels
        numbers *= numbers
        found = np.empty((len(rows), 2))
        found[:, 0] = level
        found[:, 1] = numbers @ squares - level * level
        return found

    def _learn(self, shape: tuple[int, ...]) -> tuple[Array | None, Rows, Rows, Rows]:
        """Compute the weights that `features` needs for rows of one shape, and cache them."""
        kept, channels = _places(shape, self._layout)
        inverse, count = self._inverse[channels], max(1, len(channels))
        if len(self._weights) >= 32:  # a model with free dimensions gets many shapes
            self._weights.clear()
        found = kept, self._mean[channels], inverse / count, inverse**2 / count
        self._weights[shape] = found
        return found

    def far(self, features: Rows) -> list[int]:
        """Positions of the rows that are far, each judged by itself. A row with NaN never is."""
        (low, least), (high, most) = self._low, self._high
        if len(features) == 1:  # ten times as fast as the general way
            level, variance = features[0].tolist()
            near = low <= level <= high and least <= variance <= most
            return [] if near or math.isnan(level + variance) else [0]
        found = (features < self._low) | (features > self._high)
        return np.flatnonzero(found.any(axis=1)).tolist() if found.any() else []

    def are_far_together(self, features: Rows) -> bool:
        """Whether the mean over the rows of one request is far."""
        if self._together is None or len(features) < ENOUGH_ROWS:
            return False
        logs = np.log(np.maximum(features[:, 1], _LEAST_VARIANCE)) / 2
        means = float(features[:, 0].mean()), float(np.median(logs))
        return any(
            abs(mean - of.mean) > SEVERAL_ROWS * of.sd
            for mean, of in zip(means, self._together, strict=True)
        )

    def _odd_one(self, numbers: Rows, channels: Array) -> int | None:
        """Return the position of the single number that alone puts a row far from training, or
        None.

        Only for rows with a channel for each number, such as those of a table.
        """
        if not 1 < len(numbers) == len(self._mean):
            return None
        squares = ((numbers - self._mean[channels]) * self._inverse[channels]) ** 2
        at = int(squares.argmax())
        return at if squares[at] > _MOST_OF_IT * squares.sum() else None

    def warning(self, rows: Array, features: Rows) -> str | None:
        """The warning for the rows of one request; None when they resemble those of training.

        It names the rows that are far, unless the others are far together: then all are at fault.
        """
        far = self.far(features)
        others = np.delete(features, far, axis=0) if far else features
        together = self.are_far_together(others)
        if not far and not together:
            return None
        if not together:
            at = far[0]
            more = f" and {len(far) - 1} more" if len(far) > 1 else ""
            subject = f"instance {at}{more}: the numbers are"
            numbers, channels = _numbers(rows[at : at + 1], self._layout)
            odd = self._odd_one(numbers[0], channels)
            if odd is not None:
                named = len(self._names) == len(self._mean)
                what = f"column '{self._names[odd]}'" if named else f"value {odd + 1}"
                return (
                    f"instance {at}{more}: {what} is {numbers[0, odd]:.4g}, far from those "
                    f"that the model was trained on: in training mean {self._mean[odd]:.3g}, sd "
                    f"{self._statistics.sd[odd]:.3g}; check its scaling and unit"
                )
        else:
            subject = "the instances together are"
            numbers, channels = _numbers(rows, self._layout)
        trained_mean = float(self._mean[channels].mean())
        inner = np.array(self._statistics.sd)[channels] ** 2
        trained_sd = float(np.sqrt(inner.mean() + self._mean[channels].var()))
        return (
            f"{subject} far from those that the model was trained on: mean {numbers.mean():.3g}, "
            f"sd {numbers.std():.3g}; in training mean {trained_mean:.3g}, sd {trained_sd:.3g}; "
            "check scaling and normalisation"
        )


def _square_of(logarithm: float) -> float:
    """exp(2 * logarithm), cut to about 1e304 so that it cannot overflow."""
    return math.exp(min(2 * logarithm, 700.0))


def _edges(of: Spread) -> tuple[float, float]:
    """The lower and upper limit outside of which a single row is far."""
    return (
        min(of.mean - ONE_ROW * of.sd, of.low - (of.mean - of.low) / 4),
        max(of.mean + ONE_ROW * of.sd, of.high + (of.high - of.mean) / 4),
    )
