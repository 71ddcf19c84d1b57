"""What validation has measured of a model: the `estimation` block of model.json.

Softmax of a network's logits is never quite a posterior under the source prior that its training
implies. The block holds the difference as measured on a labelled split: a temperature, a bias per
class and the source prior of the split. With them the service adjusts more accurately, and can
estimate the class prior of its traffic with an uncertainty.
"""

from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from service.contract.adjustment import Vector, log_normalise
from service.contract.members.named import SLICE, vector_of
from service.contract.portions import Long
from service.contract.shift.sketch import Moments, Sketch
from service.contract.strict import Strict
from service.contract.values import Count, Positive, Single, Temperature, between, no_boolean

MOST_REPEATED = 0.01
"""The largest share of repeated rows in a split whose rows can be told apart by their logits."""
MAX_CONFUSION_CLASSES = 100
"""A block holds the confusion matrix of up to this many classes."""


class ValidationRows(Strict):
    """The labelled split that the block was measured on."""

    rows: Annotated[int, Field(ge=1, le=10**15)]
    class_counts: Long[Count]
    repeated: Count | None = None
    """How many rows have the same logits as an earlier row; null where nobody counted."""

    @property
    def tells_rows_apart(self) -> bool:
        """Whether rows with the same logits are the same input, seen again.

        They are where the rows of the split, each another input, hardly ever have the same logits.
        """
        return self.repeated is not None and self.repeated <= MOST_REPEATED * self.rows

    @cached_property
    def fewest(self) -> int:
        """The number of rows of the rarest class."""
        counts = self.class_counts
        return min(min(counts[at : at + SLICE]) for at in range(0, len(counts), SLICE))


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


Shares = Long[Annotated[float, Field(ge=0), between(0, 1e100)]]


class ClassExcess(Strict):
    """[C] how far estimates miss beyond their intervals, class by class, at the four mixes.

    The excess of the squared error over the variance that intervals claim, divided by q (1 - q) of
    the class's share q; 0 where there is none, null where a mix was not measured. In `others`,
    another class has 90 %; `dominant` is that class, whichever it is.
    """

    training: Shares | None = None
    uniform: Shares | None = None
    reversed: Shares | None = None
    others: Shares | None = None
    dominant: Annotated[float, Field(ge=0), between(0, 1e100)] = 0.0


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
    class_excess: ClassExcess | None = None


class Replicates(Strict):
    """The calibration measured again on R reweighted copies of the split, to show its uncertainty.

    temperature: [R]; log_source: [R][C], each row as `Estimation.log_source`.
    """

    temperature: Annotated[Long[Temperature], Field(min_length=2)]
    log_source: Long[Long[Single]]


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
    bias: Long[Single]
    source_prior: Long[Positive]
    validation: ValidationRows
    sketch: Annotated[Sketch | Moments, Field(discriminator="statistic")] | None = None
    self_test: SelfTest | None = None
    replicates: Replicates | None = None
    confusion: Long[Long[Count]] | None = None
    """[predicted][class] rows of the split, at tau 0."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        classes = len(self.bias)
        lengths = {
            "source_prior": [len(self.source_prior)],
            "validation.class_counts": [len(self.validation.class_counts)],
        }
        if self.sketch is not None:
            lengths["sketch"] = [self.sketch.num_classes]
        if self.replicates is not None:
            lengths["replicates.log_source"] = [len(row) for row in self.replicates.log_source]
            if len(self.replicates.log_source) != len(self.replicates.temperature):
                raise ValueError(
                    f"replicates.log_source has {len(self.replicates.log_source)} rows; expected "
                    f"{len(self.replicates.temperature)}, one for each temperature"
                )
        if self.self_test is not None and self.self_test.class_excess is not None:
            excess = self.self_test.class_excess
            measured = (excess.training, excess.uniform, excess.reversed, excess.others)
            lengths["self_test.class_excess"] = [len(each) for each in measured if each is not None]
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
        log_prior = log_normalise(np.log(vector_of(self.source_prior)) - vector_of(self.bias))
        log_prior.setflags(write=False)
        return log_prior

    @property
    def calibrates_every_class(self) -> bool:
        """Whether the split has a row of each class."""
        return self.validation.fewest > 0
