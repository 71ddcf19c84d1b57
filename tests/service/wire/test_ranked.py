"""A row is written with the same bytes, whether it is alone in its batch or not."""

import json

import numpy as np
import pytest

from service.wire import ranked
from service.wire.ranked import ClassJson, rows_json

NAMES = ['a "quoted" class', "b", "ç", "%b", "e"]


@pytest.mark.parametrize("slice_values", [2, 4, 20_000])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_row_is_written_as_among_others(k, dtype, slice_values, monkeypatch):
    rng = np.random.default_rng(k)
    p = rng.dirichlet(np.ones(5), 40).astype(dtype)
    order = np.argsort(-p, axis=1)[:, :k]
    best, unadjusted = np.take_along_axis(p, order, axis=1), p.argmin(axis=1)
    own = p.min(axis=1)
    classes = ClassJson(NAMES)
    together = rows_json(classes, order, best, unadjusted, own)
    monkeypatch.setattr(ranked, "SLICE_VALUES", slice_values)
    assert rows_json(classes, order, best, unadjusted, own) == together
    alone = [
        rows_json(classes, order[i : i + 1], best[i : i + 1], unadjusted[i : i + 1], own[i : i + 1])
        for i in range(len(p))
    ]
    assert [row for (row,) in alone] == together
    for row, wanted in zip(together, best, strict=True):
        read = [each["probability"] for each in json.loads(row)["top"]]
        assert [dtype(each) for each in read] == wanted.tolist()
