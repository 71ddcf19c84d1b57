"""Decides by cost the rows of a batch whose priors have costs, once the graph has scored them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.batching.queue import Piece
from service.contract.members.costs import Costs
from service.graph.session import GraphOutputs

NO_COSTS = -2
"""The decision of a row whose prior has no costs; its expected cost is NaN."""


def decided(outputs: GraphOutputs, pieces: Sequence[Piece]) -> GraphOutputs:
    """The outputs with the decision and the expected cost of each row whose prior has costs.

    Rows with the same costs are decided together. The outputs are returned as they are when no
    prior of the batch has costs.
    """
    rows_of: dict[int, tuple[Costs, list[NDArray[np.int64]]]] = {}
    for costs, rows in _priced(pieces):
        rows_of.setdefault(id(costs), (costs, []))[1].append(rows)
    if not rows_of:
        return outputs
    assert outputs.probabilities is not None
    decision = np.full(len(outputs.top_index), NO_COSTS, np.int64)
    expected = np.full(len(decision), np.nan)
    for costs, found in rows_of.values():
        rows = np.concatenate(found)
        with np.errstate(invalid="ignore"):  # a row of NaN is refused afterwards
            cheapest = costs.decide(outputs.probabilities[rows])
        decision[rows], expected[rows] = cheapest.index, cheapest.expected_cost
    return replace(outputs, decision=decision, expected_cost=expected)


def _priced(pieces: Sequence[Piece]) -> Iterator[tuple[Costs, NDArray[np.int64]]]:
    """Yield costs and the rows of the batch that have them."""
    first = 0
    for piece in pieces:
        work = piece.entry.work
        of_row = work.prior_of_row
        for number, revision in enumerate(work.priors):
            costs = revision.prior.costs
            if costs is None:
                continue
            if of_row is None:
                yield costs, np.arange(first, first + piece.rows)
                break
            own = of_row[piece.start : piece.start + piece.rows]
            yield costs, first + np.flatnonzero(own == number)
        first += piece.rows
