"""Tables of numbers and categories: what is learnt of a column, and what comes out of a row."""

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from pyarrow import parquet

from service.contract.inputs.columns import fields, records
from training.commands.data import describe
from training.commands.tables import table
from training.data.columns import Columns, float_type
from training.data.problems import problems
from training.data.sources import load as sources
from training.faults import BadData
from training.run.export import IR_VERSION, OPSET, take_columns
from training.run.recipe import Recipe


def rows_of(**columns):
    return records({name: np.array(values)[:, None] for name, values in columns.items()})


def strings(*values):
    return np.array(values, dtype=object)


def test_a_category_becomes_its_number_and_an_unknown_one_0():
    train = rows_of(city=strings("Rome", "Oslo", "Rome", ""), age=[1.0, 2.0, np.nan, 4.0])
    columns = Columns.learnt(train)
    new = rows_of(city=strings("Oslo", "Lima", ""), age=[9.0, np.nan, 7.0])
    assert columns.columns[0].values == ("Rome", "", "Oslo")
    assert np.array_equal(columns.encode(new), [[3, 9], [0, np.nan], [2, 7]], equal_nan=True)
    assert [column.missing for column in columns.columns] == [False, True]


def test_a_number_that_is_missing_only_in_the_held_out_rows_may_be_missing():
    train, test = rows_of(a=[1.0, 2.0], b=[1.0, 2.0]), rows_of(a=[np.nan], b=[3.0])
    assert [column.missing for column in Columns.learnt(train, test).columns] == [True, False]


def test_of_a_column_with_many_values_those_of_a_single_row_are_not_learnt():
    values = [f"v{i}" for i in range(40)] + ["v0", "v1"]
    columns = Columns.learnt(rows_of(a=strings(*values)))
    assert columns.columns[0].values == ("v0", "v1")


def test_a_column_of_which_no_value_is_learnt_is_exported_as_unknown():
    """Ids, say: each value stands in one row."""
    rows = rows_of(a=[1.0, 2.0] * 20, b=strings(*(f"id{i}" for i in range(40))))
    columns = Columns.learnt(rows)
    assert columns.columns[1].values == ()
    whole = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["batch", 2])
        for name in ("input", "logits")
    ]
    node = helper.make_node("Identity", ["input"], ["logits"])
    graph = helper.make_graph([node], "own", whole[:1], whole[1:])
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    take_columns(model, columns)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, fields(rows[:2]))
    assert found.tolist() == [[1, 0], [2, 0]] == columns.encode(rows[:2]).tolist()


def test_numbers_that_float32_would_merge_stay_float64():
    times = 1_700_000_000 + np.arange(1000.0)
    assert float_type(times) is np.float64
    assert float_type(times - times[0]) is np.float32
    assert float_type(np.array([np.nan, 1.0])) is np.float32


def load(spec):
    return sources.load(spec, seed=0)


def write(path, **columns):
    parquet.write_table(pa.table(columns), path)
    return f"table:{path}?label=kind"


KINDS = ["a", "b", "c"] * 20


def test_strings_booleans_and_categories_of_pandas_are_taken(tmp_path):
    spec = write(
        tmp_path / "t.parquet",
        kind=KINDS,
        city=["x", None, "y"] * 20,
        code=pa.array(["1", "2", "2"] * 20).dictionary_encode(),
        member=[True, False, True] * 20,
        size=[1.5, None, 2.5] * 20,
    )
    data = load(spec)
    assert data.kind == "columns"
    inputs = data.train.inputs
    assert {n: inputs.dtype[n].base.kind for n in inputs.dtype.names} == {
        "city": "O", "code": "O", "member": "b", "size": "f",
    }  # fmt: skip
    assert set(inputs["city"].ravel()) == {"x", "", "y"}


def test_booleans_beside_numbers_stay_booleans_for_the_service(tmp_path):
    truths = [True, False, False] * 20
    data = load(write(tmp_path / "t.parquet", kind=KINDS, a=[0.5, 1, 3] * 20, member=truths))
    assert data.kind == "columns"
    dtype = data.train.inputs.dtype
    assert {name: dtype[name].base.kind for name in dtype.names} == {"a": "f", "member": "b"}
    assert not data.notes


@pytest.mark.parametrize(
    ("members", "others"),
    [([True, None, False] * 20, {}), ([True, False] * 30, {"v": [[0.5, 1.5]] * 60})],
)
def test_booleans_that_become_numbers_are_told(tmp_path, members, others):
    spec = write(tmp_path / "t.parquet", kind=KINDS, a=[0.5, 1, 3] * 20, member=members, **others)
    data = load(spec)
    assert (data.kind, data.train.inputs.dtype) == ("tensor", np.float32)
    assert "column 'member': true and false are taken as the numbers 1 and 0" in data.notes[0]


def test_a_table_of_numbers_with_gaps_stays_an_array(tmp_path):
    data = load(write(tmp_path / "t.parquet", kind=KINDS, a=[1, None, 3] * 20, b=[0.5] * 60))
    assert (data.kind, data.train.inputs.dtype) == ("tensor", np.float32)
    assert np.isnan(data.train.inputs[:, 0]).any()


def test_one_word_among_numbers_is_a_damaged_number_unless_it_is_called_a_category(tmp_path):
    cells = [str(i) for i in range(59)] + ["tall"]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a,kind", *map(",".join, zip(cells, KINDS, strict=True))]) + "\n")
    with pytest.raises(BadData, match=r"column 'a': 'tall' is not a number; .*&category=a"):
        load(f"table:{path}?label=kind")
    assert load(f"table:{path}?label=kind&category=a").kind == "columns"


def test_numbers_may_be_called_categories(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("zip,b,kind\n" + "".join(f"0{i % 4},{i},{k}\n" for i, k in enumerate(KINDS)))
    data = load(f"table:{path}?label=kind&category=zip")
    assert set(data.train.inputs["zip"].ravel()) == {"00", "01", "02", "03"}


def test_free_text_and_ids_among_the_columns_are_told(tmp_path):
    names = [f"no {i}" for i in range(120)]
    path = write(tmp_path / "t.parquet", kind=KINDS * 2, id=names, b=[1, 2, 3] * 40)
    (note,) = load(path).notes
    assert "column 'id': 120 different strings in 120 rows" in note
    assert "&text=id" in note


def test_lists_beside_strings_are_refused_with_the_cure(tmp_path):
    path = write(tmp_path / "t.parquet", kind=KINDS, a=["x", "y"] * 30, v=[[1.0, 2.0]] * 60)
    with pytest.raises(BadData, match="column 'v': lists of numbers cannot be combined"):
        load(path)


def test_constant_equal_and_telling_columns_of_strings_are_told(tmp_path):
    spec = write(
        tmp_path / "t.parquet",
        kind=KINDS,
        flat=["x"] * 60,
        tells=[{"a": "p", "b": "q", "c": "r"}[kind] for kind in KINDS],
        one=["u", "v"] * 30,
        same=["u", "v"] * 30,
    )
    reported = "\n".join(problems(load(spec)))
    assert "one value in all training rows: 'flat'" in reported
    assert "columns 'one' and 'same' are equal" in reported
    assert "alone determine the class of every training row: 'tells'" in reported


def test_training_data_shows_what_is_in_each_column(tmp_path):
    spec = write(
        tmp_path / "t.parquet", kind=KINDS, city=["x", None, "y"] * 20, a=[1, None, 3] * 20
    )
    city, number = describe(Recipe(data=spec))["columns"]
    assert (city["kind"], city["distinct"], city["missing"]) == ("category", 3, 16)
    assert sorted(city["values"]) == ["", "x", "y"]
    assert (number["min"], number["max"], number["distinct"], number["missing"]) == (1, 3, 2, 16)


def test_people_read_the_values_of_a_category_and_the_range_of_a_number(tmp_path):
    spec = write(
        tmp_path / "t.parquet",
        kind=KINDS, city=["Rome", "Oslo", "Oslo"] * 20, a=[1.0, 2.0, 3.0] * 20,
    )  # fmt: skip
    city, number = [
        line for line in table(describe(Recipe(data=spec))).splitlines() if "column " in line
    ]
    assert city.split() == ["column", "city", "Oslo,", "Rome", "2", "distinct"]
    assert number.split() == ["column", "a", "1", "…", "3", "3", "distinct"]
