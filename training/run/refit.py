"""Trains a chosen network again on all rows, its validation rows included.

Holding out rows costs small data most: a fifth of all rows, and one of the two rows of a rare
class. It also costs texts, however many there are: a rare class has few words of its own, and each
row adds some. Once validation has chosen the network and its penalty, the final network learns from
all rows. Temperature, bias, source prior and tau stay those that the held-out rows measured on the
network before it.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, log_normalise
from service.contract.shift.estimation import Estimation
from training.data.dataset import Dataset
from training.data.splits import FEW_ROWS
from training.faults import WrongUse
from training.run.prepare import Prepared, prepare_data
from training.run.recipe import AUTO, Recipe

FOLDER = "all-rows"
"""The folder of the second training's checkpoint and log, below the run's own."""


@dataclass(frozen=True)
class HeldOut:
    """The validation rows, with the logits of the earlier network, which did not learn from
    them.
    """

    ready: Prepared
    logits: NDArray[np.float32]
    """[n, C] of the validation rows."""


def all_rows(
    asked: Recipe, chosen: Recipe, ready: Prepared, *, penalty: float | None, world: int
) -> Recipe | None:
    """Return the recipe that trains `chosen` on all rows; None if the network stays as it is.

    asked: the recipe as the user gave it. ready: the data of the network that was chosen. penalty:
    the one chosen on validation. world: how many processes train. Without --refit or --no-refit,
    only few rows and texts of --network auto are learnt again. Raises WrongUse if --refit is asked
    for where it cannot be done.
    """
    rows = len(ready.data.train) + (0 if ready.data.val is None else len(ready.data.val))
    scarce = rows < FEW_ROWS or ready.data.kind == "text"
    if asked.refit is False or (asked.refit is None and not (asked.network == AUTO and scarce)):
        return None
    again = replace(chosen, validation_per_class=0, penalty=penalty)
    reason = _impossible(asked, ready.data, world=world)
    if reason is None and len(prepare_data(again).train) != rows:
        reason = "the validation rows are the data's own, and none were set aside"
    if reason is None:
        return again
    if asked.refit:
        raise WrongUse(f"--refit: {reason}; leave it out")
    return None


def _impossible(asked: Recipe, data: Dataset, *, world: int) -> str | None:
    if data.val is None:
        return "no validation rows were set aside, so all rows are used already"
    if asked.profile is not None:
        return "--profile leaves rows out on purpose"
    if asked.afterwards != "nothing":
        return f"--afterwards {asked.afterwards} changes the last layer by the validation rows"
    return "it runs in one process, without torchrun" if world > 1 else None


def moved(block: Estimation, *, before: Vector, after: Vector) -> Estimation:
    """Return an estimation block for a network whose training rows have another class mix.

    before, after: [C] log source priors that the training of the measured network and of the new
    one imply. What the block measured is the ratio to it, so both priors move by the same factor.
    """
    shift = after - before
    changed: dict[str, Any] = {
        "source_prior": _rounded(np.exp(log_normalise(np.log(block.source_prior) + shift)))
    }
    if block.replicates is not None:
        sources = [
            _rounded(log_normalise(np.asarray(row) + shift)) for row in block.replicates.log_source
        ]
        changed["replicates"] = block.replicates.model_copy(update={"log_source": sources})
    # made anew, because a copy would keep the cached log_source of the block before
    fields = {name: getattr(block, name) for name in Estimation.model_fields}
    return Estimation(**fields | changed)


def _rounded(values: Vector) -> list[float]:
    return [float(f"{value:.9g}") for value in values]
