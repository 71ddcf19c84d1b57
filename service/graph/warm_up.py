"""Runs a graph at the batch sizes that will be used, until it is warm: what a call costs, and how the best classes are found sooner."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.graph.providers import first_line
from service.graph.session import Graph, GraphOutputs, UnusableModel

CHOICE_SECONDS = 0.25
"""So long a model may be tried out for the choice; a larger batch than there was time for does as the largest one that was tried."""
_TRIES = 3


@dataclass(frozen=True)
class WarmUp:
    """Seconds a call, by its rows; where there is a choice, also (whole, by blocks) of those sizes that both were tried at."""

    cost_seconds: dict[int, float]
    ways: dict[int, tuple[float, float]]

    @property
    def blocks_from_rows(self) -> int | None:
        """From so many rows on by blocks, as most sizes had it (one that was disturbed has one vote); None: at no size."""
        sizes = sorted(self.ways)

        def contradicted(index: int) -> tuple[int, float]:
            whole = [self.ways[rows] for rows in sizes[:index]]
            by_blocks = [self.ways[rows] for rows in sizes[index:]]
            against = sum(w > b for w, b in whole) + sum(b > w for w, b in by_blocks)
            return against, sum(w for w, _ in whole) + sum(b for _, b in by_blocks)

        best = min(range(len(sizes), -1, -1), key=contradicted)
        return sizes[best] if best < len(sizes) else None

    def told(self) -> str:
        """The choice and its reasons, for the log; empty when there was none."""
        if not self.ways:
            return ""
        first = self.blocks_from_rows
        chosen = "never" if first is None else f"from {first} rows on"
        times = ", ".join(
            f"{rows}: {1e3 * whole:.2f} and {1e3 * by_blocks:.2f}"
            for rows, (whole, by_blocks) in sorted(self.ways.items())
        )
        return f"; best classes found by blocks {chosen} (ms whole and by blocks, by rows: {times})"


def warm_up(graph: Graph, example: NDArray[Any], num_classes: int, batch_rows: list[int]) -> WarmUp:
    """Run the graph at each batch size; where it has a choice, make it.

    Seconds are of the best of a few calls. Raises UnusableModel when it does not run or has not num_classes outputs.
    """
    cost: dict[int, float] = {}
    ways: dict[int, tuple[float, float]] = {}
    left = CHOICE_SECONDS if graph.has_choice else 0.0
    for rows in sorted(batch_rows):
        call = _calls(graph, np.repeat(example, rows, axis=0), num_classes)
        _check_columns(call, rows, num_classes)
        cost[rows] = min(call()[1] for _ in range(2))
        left -= 2 * (_TRIES + 1) * cost[rows]
        if left >= 0:
            ways[rows] = _both_ways(graph, call)
            cost[rows] = min(ways[rows])
    found = WarmUp(cost, ways)
    graph.blocks_from_rows = found.blocks_from_rows
    with graph.returning_memory():
        _calls(graph, example, num_classes)()
    return found


def _check_columns(
    call: Callable[..., tuple[GraphOutputs, float]], rows: int, num_classes: int
) -> None:
    """Here and not in warm_up, so that arrays of all classes are let go of before the next call takes others."""
    logits = call(full=True)[0].logits
    if logits is not None and logits.shape != (rows, num_classes):
        raise UnusableModel(
            f"its output has shape {list(logits.shape)}; expected [{rows}, {num_classes}], one column a class"
        )


def _calls(
    graph: Graph, inputs: NDArray[Any], num_classes: int
) -> Callable[..., tuple[GraphOutputs, float]]:
    """A function that runs the graph once: (its outputs, seconds)."""
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


def _both_ways(
    graph: Graph, call: Callable[..., tuple[GraphOutputs, float]]
) -> tuple[float, float]:
    """Seconds of a call (whole, by blocks); the ways take turns, and the first call of each is not counted."""
    times: dict[int | None, list[float]] = {None: [], 1: []}
    for _ in range(_TRIES + 1):
        for way, taken in times.items():
            graph.blocks_from_rows = way
            taken.append(call()[1])
    graph.blocks_from_rows = None
    return min(times[None][1:]), min(times[1][1:])
