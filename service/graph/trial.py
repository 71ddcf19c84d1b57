"""Makes rows to try a graph with, and tests whether the rows of a batch influence each other.

A batch mixes requests of different callers, so the answer to a row must not depend on other rows.
Graphs that break this rule: dynamic quantisation (one scale for the whole batch),
BatchNormalization in training mode, a mean over the batch. Their rows must run one at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.columns import records
from service.contract.inputs.spec import InputSpec
from service.graph.session import Graph

Array = NDArray[Any]

BATCH_SIZE_TOLERANCE = 1e-2
"""Allowed difference between a row alone and in a batch: other kernels run, and round otherwise."""
NEIGHBOUR_TOLERANCE = 1e-4
"""Allowed difference between a row with one neighbour and with another: the same kernels run."""
_WORDS = ("alpha", "lynx", "stone", "river", "a", "the", "of", "not", "7", "été")


def random_rows(spec: InputSpec, rows: int, *, free: int) -> Iterator[Array]:
    """Yield kinds of rows [rows, …] that a graph may accept, the most likely first.

    Every call yields the same rows. free: the size to use for dimensions that the graph leaves
    free. The last kind is all zeros or empty strings.
    """
    if spec.columns:
        yield from _random_records(spec.columns, rows, free=free)
        return
    rng = np.random.default_rng(0)
    if spec.categories is not None:
        shape = (rows, *(1 if n is None else n for n in spec.shape[1:]))
        dtype = object if spec.dtype == "string" else spec.dtype
        anything: Sequence[Any] = _WORDS if spec.dtype == "string" else range(10)
        columns = [
            rng.choice(np.array(spec.categories_of(at) or anything, dtype), rows)
            for at in range(int(np.prod(shape[1:])))
        ]
        yield np.stack(columns, axis=1).reshape(shape)
        return
    size = 1 if spec.dtype == "string" else free
    shape = (rows, *(size if n is None else n for n in spec.shape[1:]))
    if spec.dtype == "string":
        words = rng.choice(_WORDS, (int(np.prod(shape)), 5))
        yield np.array([" ".join(row) for row in words], object).reshape(shape)
    elif spec.dtype == "bool":
        yield rng.random(shape) < 0.5
    elif spec.dtype.startswith("float"):
        yield rng.normal(size=shape).astype(spec.dtype)
        yield rng.random(shape).astype(spec.dtype)
    else:
        yield rng.integers(0, 256 if spec.dtype == "uint8" else 10, shape).astype(spec.dtype)
    yield np.full(shape, "", object) if spec.dtype == "string" else np.zeros(shape, spec.dtype)


def _random_records(columns: Sequence[InputSpec], rows: int, *, free: int) -> Iterator[Array]:
    """Random records. Columns named as masks are ones; token types and positions are zeros."""
    kinds = [list(random_rows(column, rows, free=free)) for column in columns]
    for at in range(max(map(len, kinds))):
        made = {}
        for column, own in zip(columns, kinds, strict=True):
            values = own[min(at, len(own) - 1)]
            if "mask" in column.name:
                values = np.ones_like(values)
            elif "type" in column.name or "position" in column.name:
                values = np.zeros_like(values)
            made[column.name] = values
        yield records(made)


def influence(graph: Graph, spec: InputSpec, num_classes: int, *, free: int) -> float | None:
    """How much a row's logits depend on its neighbours, as a share of the largest logit.

    0 when they do not; None when the graph accepts none of the rows that were tried.
    """
    for first in random_rows(spec, 1, free=free):
        alone = _logits(graph, [first], num_classes)
        if alone is not None:
            return _influence_on(graph, spec, first, alone[0], num_classes)
    return None


def _influence_on(
    graph: Graph, spec: InputSpec, row: Array, alone: Array, num_classes: int
) -> float:
    beside = [
        answer[0 if batch[0] is row else 1]
        for other in _neighbours(spec, row)
        for batch in ([row, other], [other, row])
        if (answer := _logits(graph, batch, num_classes)) is not None
    ]
    if not beside:
        return 0.0
    scale = max(1.0, float(np.abs(alone).max()))
    by_neighbour = max(float(np.abs(each - beside[i % 2]).max()) for i, each in enumerate(beside))
    by_size = max(float(np.abs(each - alone).max()) for each in beside)
    found = max(
        by_neighbour if by_neighbour > NEIGHBOUR_TOLERANCE * scale else 0.0,
        by_size if by_size > BATCH_SIZE_TOLERANCE * scale else 0.0,
    )
    return found / scale


def _neighbours(spec: InputSpec, row: Array) -> list[Array]:
    """Two neighbours as different from `row` as the type allows: an empty and a large one.

    Where the graph refuses unknown values, these are the first and the last known value.
    """
    if spec.columns:
        of_columns = {each.name: _neighbours(each, row[each.name]) for each in spec.columns}
        return [records({name: n[i] for name, n in of_columns.items()}) for i in range(2)]
    if row.dtype == object:
        made = [np.full(row.shape, "", object), np.full(row.shape, " ".join(_WORDS * 5), object)]
    elif row.dtype == bool:
        made = [np.zeros_like(row), np.ones_like(row)]
    else:
        largest = 255 if row.dtype == np.uint8 else 9
        loud = row * 100 if row.dtype.kind == "f" else np.full_like(row, largest)
        made = [np.zeros_like(row), loud]
    for end, other in zip((0, -1), made, strict=True):
        columns = other.reshape(len(other), -1)
        for at in range(columns.shape[1] if spec.categories is not None else 0):
            if known := spec.categories_of(at):
                columns[:, at] = known[end]
    return made


def _logits(graph: Graph, rows: Sequence[Array], num_classes: int) -> Array | None:
    """Logits [n, C] of the rows as one batch.

    None when the graph does not accept the rows or returns numbers that are not finite.
    """
    inputs = np.concatenate(rows)
    try:
        outputs = graph.run(
            inputs,
            tau=np.zeros(len(inputs), np.float32),
            prior_index=np.zeros(len(inputs), np.int64),
            prior_table=np.zeros((1, num_classes), np.float32),
            top_k=1,
            full=True,
        )
    except Exception:  # noqa: BLE001 - a foreign graph may raise anything for unsuitable rows
        return None
    logits = outputs.logits
    if logits is None or len(logits) != len(inputs) or not np.isfinite(logits).all():
        return None
    return logits.astype(np.float64)
