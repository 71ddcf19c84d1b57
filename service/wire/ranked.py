"""The JSON of ranked rows, many at once: the part of a class is kept, numbers are written an array
at a time.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

_MAX_KEPT = 4096
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
    A number is written as the shortest text that its own type reads as the same number.
    """
    k = indices.shape[1]
    class_part = classes.__getitem__
    begins = list(map(class_part, indices.ravel().tolist()))
    # number_texts, twice and without its call: this runs for every batch
    chances = orjson.dumps(probabilities.ravel(), option=_NUMPY)[1:-1].split(b",")
    columns = [begins[::k], chances[::k]]
    for at in range(k):
        columns += begins[at::k], chances[at::k]
    columns += (
        list(map(class_part, unadjusted.tolist())),
        orjson.dumps(unadjusted_probabilities.ravel(), option=_NUMPY)[1:-1].split(b","),
    )
    return list(map(_form(k).__mod__, zip(*columns, strict=True)))


def number_texts(values: NDArray[Any]) -> list[bytes]:
    """Each number as JSON, in row-major order."""
    return orjson.dumps(values.ravel(), option=_NUMPY)[1:-1].split(b",")


@lru_cache(maxsize=16)  # of 100,000 classes one is half a megabyte
def _form(k: int) -> bytes:
    """A row with k classes, as a bytes format."""
    return b'%b%b,"top":[' + b",".join([b"%b%b}"] * k) + b'],"unadjusted":%b%b}}'
