"""What validation has measured of a model: the `estimation` block of model.json.

Softmax of a network's logits is never quite a posterior under the source prior that its training
implies. The block holds the difference as measured on a labelled split: a temperature, a bias per
class and the source prior of the split. With them the service adjusts more accurately, and can
estimate the class prior of its traffic with an uncertainty.
"""

from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from service.contract.adjustment import Vector, log_normalise, softmax
from service.contract.strict import Strict

ENERGY_BINS = 10
MAX_CONFUSION_CLASSES = 100
"""A block holds the confusion matrix of up to this many classes."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
"""Temperatures beyond these turn float32 logits into infinity, or every answer into a tie."""


def between(low: float, high: float) -> AfterValidator:
    """Refuse numbers outside of [low, high], with a message that is short for 1e-100 too."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"expected {low:g} to {high:g}")
        return value

    return AfterValidator(check)


Positive = Annotated[float, Field(gt=0), between(1e-100, 1e100)]
Temperature = Annotated[float, Field(gt=0), between(MIN_TEMPERATURE, MAX_TEMPERATURE)]
Single = Annotated[float, between(-1e30, 1e30)]
"""A number that stays finite as float32, in which graphs compute."""
Count = Annotated[int, Field(ge=0, le=10**15)]


def no_boolean(value: object) -> object:
    """The value. Raises ValueError for true, which equals 1 and would pass for it."""
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004 - pydantic catches no TypeError
    return value


class ValidationRows(Strict):
    """The labelled split that the block was measured on."""

    rows: Annotated[int, Field(ge=1, le=10**15)]
    class_counts: list[Count]

    @property
    def fewest(self) -> int:
        """The number of rows of the rarest class."""
        return min(self.class_counts)


class Sketch(Strict):
    """One histogram per class of a number computed for each row of the split.

    Comparing traffic with them shows whether it resembles the split.

    `energy` is the log of the sum of the exponentials of the raw logits. `entropy`, for models
    whose output is probabilities, is that of softmax(f / T).
    """

    statistic: Literal["energy", "entropy"]
    edges: Annotated[list[float], Field(min_length=ENERGY_BINS - 1, max_length=ENERGY_BINS - 1)]
    counts: list[Annotated[list[Count], Field(min_length=ENERGY_BINS, max_length=ENERGY_BINS)]]


class SurestRows(Strict):
    """The most labelled rows that an estimate can be worth, at four mixes; null: no limit found.

    Even with unlimited rows, an estimate stays off by more than its interval suggests, because no
    temperature and bias make a network's posteriors exact. The limit is measured on streams drawn
    from the split. In the mix `dominant`, one class has 90 %.
    """

    training: Positive | None = None
    uniform: Positive | None = None
    reversed: Positive | None = None
    dominant: Positive | None = None


class SelfTest(Strict):
    """How wrong estimates are on the split itself: calibrated on one half, tested on the other.

    `training`, `uniform` and `reversed` name the class mix of the test streams, `rows` rows each.
    Their values are the mean L1 distance of the estimate from that mix. `misfit_99` is the 99 %
    quantile of the sketch's misfit (phi^2) over these streams, all of which are true label shift.
    """

    rows: Annotated[int, Field(ge=1, le=10**15)]
    training: Annotated[float, Field(ge=0, le=2)]
    uniform: Annotated[float, Field(ge=0, le=2)]
    reversed: Annotated[float, Field(ge=0, le=2)]
    misfit_99: Annotated[float, Field(ge=0)]
    surest_rows: SurestRows | None = None


class Replicates(Strict):
    """The calibration measured again on R reweighted copies of the split, to show its uncertainty.

    temperature: [R]; log_source: [R][C], each row as `Estimation.log_source`.
    """

    temperature: Annotated[list[Temperature], Field(min_length=2)]
    log_source: list[list[Single]]


class Estimation(Strict):
    """The block. `calibration` names what was fitted: nothing, a temperature, or also a bias.

    temperature: T, the same as the model's own.
    temperature_interval: 95 % likelihood interval of T; null when T was not fitted.
    bias: [C], mean 0, added to logits / T.
    source_prior: [C] measured source prior sigma*, sums to 1.
    """

    version: Annotated[Literal[1], BeforeValidator(no_boolean)] = 1
    calibration: Literal["none", "temperature", "bias"]
    temperature: Temperature
    temperature_interval: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    bias: list[Single]
    source_prior: list[Positive]
    validation: ValidationRows
    sketch: Sketch | None = None
    self_test: SelfTest | None = None
    replicates: Replicates | None = None
    confusion: list[list[Count]] | None = None
    """[predicted][class] rows of the split, at tau 0."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        classes = len(self.bias)
        if self.sketch is not None and sorted(self.sketch.edges) != self.sketch.edges:
            raise ValueError("sketch.edges must ascend")
        lengths = {
            "source_prior": [len(self.source_prior)],
            "validation.class_counts": [len(self.validation.class_counts)],
        }
        if self.sketch is not None:
            lengths["sketch.counts"] = [len(self.sketch.counts)]
        if self.replicates is not None:
            lengths["replicates.log_source"] = [len(row) for row in self.replicates.log_source]
            if len(self.replicates.log_source) != len(self.replicates.temperature):
                raise ValueError(
                    f"replicates.log_source has {len(self.replicates.log_source)} rows; expected "
                    f"{len(self.replicates.temperature)}, one for each temperature"
                )
        if self.confusion is not None:
            lengths["confusion"] = [len(self.confusion), *map(len, self.confusion)]
        for name, found in lengths.items():
            if any(length != classes for length in found):
                raise ValueError(
                    f"{name} has {', '.join(map(str, sorted(set(found))[:5]))} entries; expected "
                    f"{classes}, as many as bias has"
                )
        return self

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.bias)

    @cached_property
    def log_source(self) -> Vector:
        """[C] the source prior to adjust with: log sigma* - bias.

        adjust_logits with it gives logits / T + tau * (log rho - log sigma* + bias), so that
        tau = 0 stays the model's own answer.
        """
        log_prior = log_normalise(np.log(np.asarray(self.source_prior)) - np.asarray(self.bias))
        log_prior.setflags(write=False)
        return log_prior

    @property
    def calibrates_every_class(self) -> bool:
        """Whether the split has a row of each class."""
        return self.validation.fewest > 0


def sketched(
    logits: ArrayLike, *, statistic: Literal["energy", "entropy"], temperature: float
) -> Vector:
    """[n] the number of each row that the sketch's histograms count, from raw logits [n, C]."""
    f = np.asarray(logits, np.float64)
    if statistic == "energy":
        peak = f.max(axis=1)
        energy: Vector = peak + np.log(np.exp(f - peak[:, None]).sum(axis=1))
        return energy
    p = softmax(f / temperature)
    entropy: Vector = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    return entropy


def binned(values: Vector, edges: ArrayLike) -> NDArray[np.intp]:
    """[n] index of each value's bin; a bin holds its lower edge."""
    return np.searchsorted(np.asarray(edges), values, side="right")
