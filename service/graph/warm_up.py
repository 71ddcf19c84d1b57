"""Runs a new graph at every batch size until it is warm, and measures the cost of a call.

For a large class list it also measures which selection of the best classes is faster. From the
costs it derives how large a batch should be.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.graph.reasons import first_line
from service.graph.session import Graph, GraphOutputs, UnusableModel

WORTH_SECONDS = 5e-3
"""Calls shorter than this many seconds are no reason for a smaller batch: the gain would be small,
and the timing of so short a call is inexact.
"""
SELECTION_SECONDS = 0.25
"""Time budget for comparing the two selections, in seconds.

Batch sizes that do not fit in the budget use the choice made for the largest size that did.
"""
_TOLERANCE = 1.05
_TRIES = 3


@dataclass(frozen=True)
class WarmUp:
    """What warm-up measured.

    cost_seconds: seconds of a call, by its rows. selections: seconds (over all classes, by blocks)
    of the batch sizes at which both were timed; empty for a small class list.
    """

    cost_seconds: dict[int, float]
    selections: dict[int, tuple[float, float]]

    @property
    def blocks_from_rows(self) -> int | None:
        """The smallest batch that selects by blocks; None: no batch does.

        Each size has one vote, so that a single disturbed measurement does not decide.
        """
        sizes = sorted(self.selections)

        def contradicted(index: int) -> tuple[int, float]:
            whole = [self.selections[rows] for rows in sizes[:index]]
            by_blocks = [self.selections[rows] for rows in sizes[index:]]
            against = sum(w > b for w, b in whole) + sum(b > w for w, b in by_blocks)
            return against, sum(w for w, _ in whole) + sum(b for _, b in by_blocks)

        best = min(range(len(sizes), -1, -1), key=contradicted)
        return sizes[best] if best < len(sizes) else None

    def selection_note(self) -> str:
        """The chosen selection and its timings, for the log; empty for a small class list."""
        if not self.selections:
            return ""
        first = self.blocks_from_rows
        chosen = "never" if first is None else f"from {first} rows on"
        times = ", ".join(
            f"{rows}: {1e3 * whole:.2f} and {1e3 * by_blocks:.2f}"
            for rows, (whole, by_blocks) in sorted(self.selections.items())
        )
        return f"; best classes found by blocks {chosen} (ms whole and by blocks, by rows: {times})"


def efficient_rows(cost_seconds: Mapping[int, float]) -> int:
    """The smallest batch that takes at least 5 ms and costs at most 5 % more per row than the
    cheapest.

    Without such a batch, the largest one measured. A larger batch would save nothing. It would also
    leave the session idle, because the queue is empty until its answers have reached the callers
    and they have sent their next rows. cost_seconds: seconds of a call, by its rows.
    """
    least = min(seconds / rows for rows, seconds in cost_seconds.items())
    worth = [
        rows
        for rows, seconds in cost_seconds.items()
        if seconds >= WORTH_SECONDS and seconds / rows <= _TOLERANCE * least
    ]
    return min(worth, default=max(cost_seconds))


def warm_up(graph: Graph, example: NDArray[Any], num_classes: int, batch_rows: list[int]) -> WarmUp:
    """Run the graph at each batch size, and choose the selection for a large class list.

    The cost of a size is that of the fastest of a few calls. Raises UnusableModel when a batch does
    not run or the output does not have num_classes columns.
    """
    cost: dict[int, float] = {}
    selections: dict[int, tuple[float, float]] = {}
    left = SELECTION_SECONDS if graph.has_choice else 0.0
    for rows in sorted(batch_rows):
        call = _calls(graph, np.repeat(example, rows, axis=0), num_classes)
        _check_columns(call, rows, num_classes)
        cost[rows] = min(call()[1] for _ in range(2))
        left -= 2 * (_TRIES + 1) * cost[rows]
        if left >= 0:
            selections[rows] = _time_selections(graph, call)
            cost[rows] = min(selections[rows])
    found = WarmUp(cost, selections)
    graph.blocks_from_rows = found.blocks_from_rows
    with graph.returning_memory():
        _calls(graph, example, num_classes)()
    return found


def try_out(graph: Graph, example: NDArray[Any], num_classes: int) -> None:
    """Run the graph on one row that it has scored before. Raises UnusableModel when it cannot."""
    _calls(graph, example, num_classes)()


def _check_columns(
    call: Callable[..., tuple[GraphOutputs, float]], rows: int, num_classes: int
) -> None:
    """Check the shape of the logits. A separate function, so that its arrays are freed on
    return.
    """
    logits = call(full=True)[0].logits
    if logits is not None and logits.shape != (rows, num_classes):
        raise UnusableModel(
            f"its output has shape {list(logits.shape)}; "
            f"expected [{rows}, {num_classes}], one column a class"
        )


def _calls(
    graph: Graph, inputs: NDArray[Any], num_classes: int
) -> Callable[..., tuple[GraphOutputs, float]]:
    """A function that runs the graph once and returns (its outputs, seconds)."""
    rows = len(inputs)
    settings: dict[str, Any] = {
        "tau": np.zeros(rows, np.float32),
        "prior_index": np.zeros(rows, np.int64),
        "prior_table": np.zeros((8, num_classes), np.float32),  # the shape of a fresh PriorTable
        "top_k": min(5, num_classes),
    }

    def call(*, full: bool = False) -> tuple[GraphOutputs, float]:
        begun = time.perf_counter()
        try:
            outputs = graph.run(inputs, full=full, **settings)
        except Exception as error:
            raise UnusableModel(f"a batch of {rows} does not run: {first_line(error)}") from error
        return outputs, time.perf_counter() - begun

    return call


def _time_selections(
    graph: Graph, call: Callable[..., tuple[GraphOutputs, float]]
) -> tuple[float, float]:
    """Seconds of a call with each selection: (over all classes, by blocks).

    The two take turns, and the first call of each is not counted.
    """
    times: dict[int | None, list[float]] = {None: [], 1: []}
    for _ in range(_TRIES + 1):
        for blocks_from_rows, taken in times.items():
            graph.blocks_from_rows = blocks_from_rows
            taken.append(call()[1])
    graph.blocks_from_rows = None
    return min(times[None][1:]), min(times[1][1:])
