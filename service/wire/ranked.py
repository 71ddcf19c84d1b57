"""Writes ranked rows as JSON, many at once: the text of a class is cached, and numbers are written
an array at a time.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.contract.members.costs import REJECTED

_MAX_KEPT = 4096
SLICE_VALUES = 20_000
"""Numbers written in one call, which holds the interpreter lock for about two milliseconds."""
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class ClassJson(dict[int, bytes]):
    """Class index → `{"label":…,"index":…,"probability":`, which a number and a brace complete.

    An entry is made when it is first read; at most 4,096 are kept.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self._names = class_names

    def __missing__(self, index: int) -> bytes:
        if len(self) >= _MAX_KEPT:
            self.clear()
        label = orjson.dumps(self._names[index])
        found = self[index] = b'{"label":%b,"index":%d,"probability":' % (label, index)
        return found


def rows_json(
    classes: ClassJson,
    indices: NDArray[np.int64],
    probabilities: NDArray[Any],
    unadjusted: NDArray[np.int64],
    unadjusted_probabilities: NDArray[Any],
) -> list[bytes]:
    """An entry of `predictions` for each row. Both n and k are at least 1.

    classes: the JSON of each class.
    indices, probabilities: the classes of each row [n, k], best first.
    unadjusted, unadjusted_probabilities: the best class of each row at tau = 0 [n].
    A number is written as the shortest text that reads back as the same number of its type.
    """
    n, k = indices.shape
    if k > SLICE_VALUES:
        texts = number_texts(unadjusted_probabilities)
        ends = zip(map(classes.__getitem__, unadjusted.tolist()), texts, strict=True)
        return [
            _long_row(classes, indices[row], probabilities[row], end)
            for row, end in enumerate(ends)
        ]
    if n * k > SLICE_VALUES and n > 1:
        step, found = max(1, SLICE_VALUES // k), []
        for at in range(0, n, step):
            rows = slice(at, at + step)
            found += rows_json(
                classes,
                indices[rows],
                probabilities[rows],
                unadjusted[rows],
                unadjusted_probabilities[rows],
            )
        return found
    class_part = classes.__getitem__
    begins = list(map(class_part, indices.ravel().tolist()))
    # number_texts, twice and without its call: this runs for every batch
    chances = orjson.dumps(probabilities.ravel(), option=_NUMPY)[1:-1].split(b",")
    if n == 1:  # a request alone in its batch
        parts = [part for pair in zip(begins, chances, strict=True) for part in pair]
        own = orjson.dumps(unadjusted_probabilities.ravel(), option=_NUMPY)[1:-1]
        best = class_part(unadjusted.item())
        return [_form(k) % (begins[0], chances[0], *parts, best, own)]
    columns = [begins[::k], chances[::k]]
    for at in range(k):
        columns += begins[at::k], chances[at::k]
    columns += (
        list(map(class_part, unadjusted.tolist())),
        orjson.dumps(unadjusted_probabilities.ravel(), option=_NUMPY)[1:-1].split(b","),
    )
    return list(map(_form(k).__mod__, zip(*columns, strict=True)))


def _long_row(
    classes: ClassJson,
    indices: NDArray[np.int64],
    probabilities: NDArray[Any],
    unadjusted: tuple[bytes, bytes],
) -> bytes:
    """Write one row of very many ranked classes [k] as JSON, a portion at a time.

    bytes.join releases the interpreter lock while it copies long texts, so other threads go on.
    """
    portions: list[bytes] = []
    for at in range(0, len(indices), SLICE_VALUES):
        own = slice(at, at + SLICE_VALUES)
        begins = map(classes.__getitem__, indices[own].tolist())
        pairs = zip(begins, number_texts(probabilities[own]), strict=True)
        portions.append(b",".join([b"%b%b}" % pair for pair in pairs]))
    best = b'%b%b,"top":[' % (classes[int(indices[0])], number_texts(probabilities[:1])[0])
    unadjusted_part = b'],"unadjusted":%b%b}}' % unadjusted
    return b"".join([best, b",".join(portions), unadjusted_part])


def with_decisions(
    rows: list[bytes],
    class_names: Sequence[str],
    decision: NDArray[np.int64],
    expected_cost: NDArray[np.float64],
) -> list[bytes]:
    """Entries of `predictions` with the decision by cost of each row that has one.

    decision: [n] a class, -1 for a rejected row, less for a row without costs.
    """
    found = []
    for row, index, cost in zip(rows, decision.tolist(), expected_cost.tolist(), strict=True):
        if index < REJECTED:
            found.append(row)
            continue
        rejected = index == REJECTED
        shown = {
            "label": None if rejected else class_names[index],
            "index": None if rejected else index,
            "expected_cost": cost,
            "rejected": rejected,
        }
        found.append(b'%b,"decision":%b}' % (row[:-1], orjson.dumps(shown)))
    return found


def number_texts(values: NDArray[Any]) -> list[bytes]:
    """Each number as JSON, in row-major order."""
    flat = values.ravel()
    if len(flat) <= SLICE_VALUES:
        return orjson.dumps(flat, option=_NUMPY)[1:-1].split(b",")
    found: list[bytes] = []
    for at in range(0, len(flat), SLICE_VALUES):
        found += orjson.dumps(flat[at : at + SLICE_VALUES], option=_NUMPY)[1:-1].split(b",")
    return found


def joined_texts(texts: Sequence[bytes]) -> bytes:
    """Texts joined with commas, in portions: one long call would hold the interpreter lock."""
    if len(texts) <= SLICE_VALUES:
        return b",".join(texts)
    return b",".join(
        [b",".join(texts[at : at + SLICE_VALUES]) for at in range(0, len(texts), SLICE_VALUES)]
    )


def list_json(values: Any) -> bytes:
    """A flat array of numbers, or a sequence with lists as slices, as JSON, written in portions."""
    if len(values) <= SLICE_VALUES:
        return orjson.dumps(values[:], option=_NUMPY)
    return b"[%b]" % b",".join(
        [
            orjson.dumps(values[at : at + SLICE_VALUES], option=_NUMPY)[1:-1]
            for at in range(0, len(values), SLICE_VALUES)
        ]
    )


@lru_cache(maxsize=16)  # for 100,000 classes, one entry takes half a megabyte
def _form(k: int) -> bytes:
    """A row with k classes, as a bytes format."""
    return b'%b%b,"top":[' + b",".join([b"%b%b}"] * k) + b'],"unadjusted":%b%b}}'
