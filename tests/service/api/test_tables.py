"""CSV, .npz, Arrow and Parquet bodies are read by the names of their columns, within bounds."""

import io
import json
import tracemalloc
import zipfile
from decimal import Decimal

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.__main__ import main
from service.wire.faults import Malformed, TooLarge
from service.wire.tables.npz import read_npz
from service.wire.tables.parquet import read_parquet
from service.wire.tables.reader import ARROW, ARROW_FILE, CSV, NPZ, PARQUET
from tests.support.foreign_models import named, save
from tests.support.server import running
from tests.support.small_models import linear_model, text_model
from tests.support.table_models import (
    CLASSES,
    ROWS,
    missing_model,
    table_model,
    table_probabilities,
)

COLUMNS = {name: [row[name] for row in ROWS] for name in ("sex", "fare", "age")}  # another order
TABLE = pa.table(COLUMNS)
NUMBERS = np.random.default_rng(0).normal(size=(5, 4)).round(3)
NAMES = ["width", "height", "depth", "weight"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    home = tmp_path_factory.mktemp("tables")
    classes = named(home, CLASSES)
    (home / "columns.txt").write_text("\n".join(NAMES), encoding="utf-8")
    rng = np.random.default_rng(5)
    np.savez(home / "rows.npz", x=rng.normal(size=(200, 4)))
    ages = {"age": rng.normal(30, 12, (200, 1)), "fare": rng.normal(30, 20, (200, 1))}
    np.savez(home / "ages.npz", **ages, sex=np.array(["f", "m"] * 100))
    (home / "two.txt").write_text("left\nright", encoding="utf-8")
    gaps = ["--column-names", str(home / "two.txt")]
    columns = ["--column-names", str(home / "columns.txt")]
    columns += ["--example-rows", str(home / "rows.npz")]
    of_table = ["--example-rows", str(home / "ages.npz")]
    for name, model, more in (
        ("table", table_model(), of_table),
        ("missing", missing_model(), []),
        ("gaps", missing_model(), gaps),
        ("named", linear_model(features=4, classes=3), columns),
        ("unnamed", linear_model(features=4, classes=3), []),
        ("text", text_model(), ["--output-kind", "logits"]),
    ):
        (home / name).mkdir()
        path = save(home / name, model)
        arguments = ["import", str(path), "--name", name, "--models", str(home / "models")]
        assert main([*arguments, *classes, *more]) == 0
    with running(home / "models", start_seconds=100) as server:
        yield server.url


def ask(url, model, content, kind, **parameters):
    return httpx.post(
        f"{url}/models/{model}/predict",
        params={"tau": 0, "top_k": 3, **parameters},
        content=content,
        headers={"content-type": kind},
        timeout=60,
    )


def probabilities(answer, names=CLASSES):
    assert answer.status_code == 200, answer.text
    found = []
    for each in answer.json()["predictions"]:
        by_name = {top["label"]: top["probability"] for top in each["top"]}
        found.append([by_name[name] for name in names])
    return np.array(found)


def as_csv(columns):
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    return "\r\n".join(lines).encode()


def as_npz(columns, **more):
    held = io.BytesIO()
    np.savez_compressed(held, **columns, **more)
    return held.getvalue()


def as_arrow(table, make=pa.ipc.new_stream, **options):
    sink = pa.BufferOutputStream()
    with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def as_parquet(table, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


DICTIONARY = TABLE.set_column(0, "sex", TABLE["sex"].dictionary_encode())
EXACT = {"sex": COLUMNS["sex"], "fare": pa.array(COLUMNS["fare"], pa.float64())}
HALVES = pa.table({**EXACT, "age": pa.array(COLUMNS["age"], pa.float64()).cast(pa.float16())})


def with_decimals(kind):
    """The table with fares of a decimal type."""
    fares = [Decimal(str(fare)) for fare in COLUMNS["fare"]]
    return TABLE.set_column(1, "fare", pa.array(fares, kind))


SEXES = pa.array(sorted(set(COLUMNS["sex"])), pa.string_view())
NUMBERED = pa.array([SEXES.to_pylist().index(sex) for sex in COLUMNS["sex"]], pa.uint8())
CATEGORIES = TABLE.set_column(0, "sex", pa.DictionaryArray.from_arrays(NUMBERED, SEXES))
"""As polars writes categories."""
OWN_HEAD = b"ARROW1\0\0" + bytes(8)
"""polars writes the schema without a size before it; the footer has it again."""
VIEWS = TABLE.set_column(0, "sex", TABLE["sex"].cast(pa.string_view()))
BODIES = {
    "csv": (CSV, as_csv(COLUMNS)),
    "csv with a byte order mark": (f"{CSV}; charset=UTF-8", b"\xef\xbb\xbf" + as_csv(COLUMNS)),
    "csv in quotes": (CSV, b'"age","sex","fare"\n"41","f","7.25"\n22.5,m,71\n\n3,x,8\n'),
    "csv without names": (f"{CSV};header=absent", b"41,7.25,f\n22.5,71,m\n3,8,x\n"),
    "npz": (NPZ, as_npz({name: np.array(held) for name, held in COLUMNS.items()})),
    "arrow stream": (ARROW, as_arrow(TABLE)),
    "arrow stream, compressed": (ARROW, as_arrow(TABLE, compression="zstd")),
    "arrow stream with a dictionary": (ARROW, as_arrow(DICTIONARY)),
    "arrow stream of views": (ARROW, as_arrow(VIEWS)),
    "arrow file": (ARROW_FILE, as_arrow(TABLE, pa.ipc.new_file)),
    "parquet": (PARQUET, as_parquet(TABLE)),
    "parquet, other pages": (
        PARQUET,
        as_parquet(TABLE, compression="gzip", data_page_version="2.0", row_group_size=2),
    ),
    "arrow stream of decimals of 32 bits": (ARROW, as_arrow(with_decimals(pa.decimal32(5, 2)))),
    "arrow stream of decimals of 256 bits": (ARROW, as_arrow(with_decimals(pa.decimal256(50, 2)))),
    "arrow stream of half precision": (ARROW, as_arrow(HALVES)),
    "parquet with values of two bytes": (PARQUET, as_parquet(HALVES)),
    "parquet with values of three bytes": (PARQUET, as_parquet(with_decimals(pa.decimal128(5, 2)))),
    "parquet with the lengths of texts first": (
        PARQUET,
        as_parquet(TABLE, use_dictionary=False, column_encoding={"sex": "DELTA_LENGTH_BYTE_ARRAY"}),
    ),
    "arrow stream with a dictionary of views": (ARROW, as_arrow(CATEGORIES)),
    "arrow file with a dictionary of views": (ARROW_FILE, as_arrow(CATEGORIES, pa.ipc.new_file)),
    "arrow file that begins in a form of its own": (
        ARROW_FILE,
        OWN_HEAD + as_arrow(TABLE, pa.ipc.new_file)[len(OWN_HEAD) :],
    ),
    "parquet without dictionaries": (PARQUET, as_parquet(TABLE, use_dictionary=False)),
}


@pytest.mark.parametrize("form", BODIES)
def test_columns_reach_the_model_by_their_names_in_every_form(url, form):
    kind, body = BODIES[form]
    found = probabilities(ask(url, "table", body, kind))
    np.testing.assert_allclose(found, table_probabilities(), atol=1e-6)


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]])
def test_a_model_of_one_tensor_takes_its_named_columns_in_any_order(url, order):
    by_name = dict(zip(NAMES, NUMBERS.T.tolist(), strict=True))
    columns = {name: by_name[name] for name in order}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    wanted = probabilities(
        ask(url, "unnamed", json.dumps({"instances": NUMBERS.tolist()}), "application/json")
    )
    for kind, body in (
        (CSV, as_csv(columns)),
        (PARQUET, as_parquet(pa.table(columns))),
        (ARROW, as_arrow(pa.table(columns))),
        (NPZ, as_npz({name: np.array(held) for name, held in columns.items()})),
        (NPZ, as_npz({"x": NUMBERS})),
        (f"{CSV};header=absent", "\n".join(",".join(map(str, row)) for row in NUMBERS.tolist())),
        ("application/json", json.dumps({"instances": rows})),
        ("application/json", json.dumps({"inputs": columns})),
    ):
        np.testing.assert_allclose(probabilities(ask(url, "named", body, kind)), wanted, atol=1e-7)


def test_a_model_of_texts_takes_a_table_of_one_column(url):
    texts = ["a", "ö", 'bad, "very" bad\nfilm', "b"]
    wanted = ask(url, "text", json.dumps({"instances": texts}), "application/json").json()
    quoted = "text\n" + "\n".join('"' + text.replace('"', '""') + '"' for text in texts)
    for kind, body in (
        (CSV, quoted),
        (PARQUET, as_parquet(pa.table({"any name": texts}))),
        (NPZ, as_npz({"x": np.array(texts)})),
    ):
        assert ask(url, "text", body, kind).json() == wanted


def test_empty_cells_and_nulls_are_missing_values_where_the_model_takes_them(url):
    rows = [[1.5, None], [None, 2.0]]
    wanted = probabilities(ask(url, "missing", json.dumps({"instances": rows}), "application/json"))
    body = b"1.5,\n,2\n"
    found = probabilities(ask(url, "missing", body, f"{CSV};header=absent"))
    np.testing.assert_array_equal(found, wanted)
    held = np.array(rows, float)
    found = probabilities(ask(url, "missing", as_npz({"x": held}), NPZ))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("form", [ARROW, PARQUET])
def test_a_column_without_any_value_is_missing_where_the_model_takes_that(url, form):
    """pandas writes a column of None only, as a frame of one row may have, as the type null."""
    write = as_arrow if form == ARROW else as_parquet
    empty = [pa.nulls(2)]
    if form == ARROW:  # Parquet has no categories without a value
        empty.append(pa.nulls(2).dictionary_encode())
    bodies = [write(pa.table({"left": left, "right": [1.0, 2.0]})) for left in empty]
    rows = json.dumps({"instances": [[None, 1.0], [None, 2.0]]})
    wanted = probabilities(ask(url, "gaps", rows, "application/json"))
    for body in bodies:
        np.testing.assert_array_equal(probabilities(ask(url, "gaps", body, form)), wanted)
    body = write(TABLE.set_column(1, "fare", pa.nulls(len(TABLE))))
    answer = ask(url, "table", body, form)
    assert answer.status_code == 422, answer.text
    assert "'fare', instance 0 is empty; expected a number" in answer.json()["detail"]


def warnings_of(answer):
    assert answer.status_code == 200, answer.text
    found = answer.json()
    if "results" in found:
        return found["results"][0].get("warnings", [])
    if "parameters" in found:
        return [found["parameters"].get("warnings", "")]
    return found.get("warnings", [])


@pytest.mark.parametrize("rows", [1, 3])
def test_inputs_far_from_those_of_training_are_answered_with_a_warning(url, rows):
    usual, far = NUMBERS[:rows], NUMBERS[:rows] * 255
    for values, reported in ((usual, False), (far, True)):
        data = {
            "name": "x",
            "datatype": "FP32",
            "shape": [rows, 4],
            "data": values.ravel().tolist(),
        }
        adjust = {"instances": values.tolist(), "settings": [{"tau": 0}]}
        for path, body in (
            ("/models/named/predict", {"instances": values.tolist()}),
            ("/models/named/adjust", adjust),
            ("/v2/models/named/infer", {"inputs": [data]}),
        ):
            found = warnings_of(httpx.post(url + path, json=body))
            assert any("far from those" in each for each in found) == reported, (path, found)


def test_a_column_in_another_unit_is_answered_with_a_warning(url):
    cents = as_csv({**COLUMNS, "fare": [3000.0, 4500.0, 8000.0]})
    assert warnings_of(ask(url, "table", as_csv(COLUMNS), CSV)) == []
    (reported,) = warnings_of(ask(url, "table", cents, CSV))
    assert "far from those that the model was trained on" in reported


@pytest.mark.parametrize(
    ("model", "kind", "body", "fault"),
    [
        ("table", CSV, b"age,fare\n1,2\n", (422, "lacks column 'sex'")),
        ("table", CSV, b"age,fair,sex\n1,2,f\n", (422, "'fair'; did you mean 'fare'?")),
        ("table", CSV, b"age,fare,sex,label\n1,2,f,0\n", (422, "unknown column 'label'")),
        ("table", CSV, b",age,fare,sex\n0,1,2,f\n", (422, "column without a name")),
        ("table", CSV, b"age,age,fare,sex\n1,1,2,f\n", (422, "the column 'age' twice")),
        ("table", CSV, b"age;fare;sex\n1;2;f\n", (422, "separated by commas")),
        ("table", CSV, b"age\tfare\tsex\n1\t2\tf\n", (422, "separated by commas")),
        ("table", CSV, b"41,7.25,9\n22.5,71,8\n", (422, "text/csv;header=absent")),
        ("table", CSV, b"age,fare,sex\n1,2,f\nold,2,f\n", (422, "'age', instance 1 is 'old'")),
        ("table", CSV, b"age,fare,sex\n1,,f\n", (422, "'fare', instance 0 is empty")),
        ("table", CSV, "age,fare,sex\n٧,2,f\n".encode(), (422, "'age', instance 0 is '٧'")),
        ("table", CSV, "age,fare,sex\n1\u00a0,2,f\n".encode(), (422, "'age', instance 0 is '1")),
        ("table", CSV, b"age,fare,sex\n" + b"\n" * 100_001, (413, "100,000 lines are empty")),
        ("table", CSV, b"age,fare,sex\n1,inf,f\n", (422, "'fare', instance 0 is infinite")),
        ("table", CSV, b"age,fare,sex\n1,2\n", (422, "up to line 2, has 2 cells; expected 3")),
        ("table", CSV, b'age,fare,sex\n1,2,"f\n', (400, "line 2")),
        ("table", CSV, b"age,fare,sex\n1,2,\xff\n", (400, "not UTF-8")),
        ("table", CSV, b"age,fare,sex\n", (422, "no rows")),
        ("table", f"{CSV};charset=utf-16", b"age", (415, "charset")),
        ("unnamed", CSV, b"a,b,c,d\n1,2,3,4\n", (422, "--column-names")),
        ("table", NPZ, as_npz({"age": np.ones(2), "fare": [1.0]}, sex=["f"]), (422, "numbers")),
        ("table", NPZ, b"PK\3\4", (400, "not a .npz file")),
        ("table", NPZ, as_npz({"age": np.array([None])}), (400, "refused")),
        ("table", ARROW, b"ARROW", (400, "not an Arrow stream")),
        ("table", ARROW, as_arrow(TABLE)[:-400], (400, "not an Arrow stream")),
        ("table", PARQUET, as_parquet(TABLE)[:-1], (400, "not a whole Parquet file")),
        (
            "table",
            PARQUET,
            as_parquet(pa.table({**COLUMNS, "age": [1.0, None, 2.0]})),
            (422, "'age', instance 1 is empty; expected a number: the model takes no missing"),
        ),
        (
            "table",
            PARQUET,
            as_parquet(pa.table({**COLUMNS, "sex": ["f", None, "m"]})),
            (422, "'sex', instance 1 is empty"),
        ),
        (
            "table",
            ARROW,
            as_arrow(pa.table({**COLUMNS, "age": [[1.0], [2.0], [3.0]]})),
            (422, "column 'age': holds list<item: double>; expected numbers or texts"),
        ),
        ("table", "text/tab-separated-values", b"age", (415, PARQUET)),
    ],
)  # fmt: skip
def test_a_table_at_fault_is_refused_by_column_and_row(url, model, kind, body, fault):
    status, reported = fault
    answer = ask(url, model, body, kind)
    assert answer.status_code == status, answer.text
    assert reported in answer.json()["detail"]


def test_more_rows_than_may_wait_are_refused(url):
    column = np.zeros(3000)
    table = pa.table({"age": column, "fare": column, "sex": ["f"] * 3000})
    lines = b"age,fare,sex\n" + b"0,0,f\n" * 3000
    for kind, body in ((CSV, lines), (ARROW, as_arrow(table)), (PARQUET, as_parquet(table))):
        answer = ask(url, "table", body, kind)
        assert answer.status_code == 413, answer.text
        assert "2048" in answer.json()["detail"]


@pytest.mark.parametrize("form", [ARROW, PARQUET])
def test_the_index_that_pandas_writes_beside_the_columns_is_left_out(url, form):
    """A filtered frame has one; pandas names it __index_level_0__."""
    write = as_arrow if form == ARROW else as_parquet
    indexed = TABLE.append_column("__index_level_0__", [list(range(TABLE.num_rows))])
    answers = [
        httpx.post(f"{url}/models/table/predict", content=write(t), headers={"content-type": form})
        for t in (TABLE, indexed, indexed.rename_columns([*COLUMNS, "__index_level_x__"]))
    ]
    assert [a.status_code for a in answers] == [200, 200, 422]
    assert answers[0].json() == answers[1].json()
    assert "unknown column '__index_level_x__'" in answers[2].json()["detail"]


LONG = "f" * 40_000_000
BOMBS = {
    "parquet page": (
        PARQUET,
        as_parquet(pa.table({**COLUMNS, "sex": [LONG, LONG + "a", "m"]}), compression="zstd"),
    ),
    "parquet dictionary": (
        PARQUET,
        as_parquet(pa.table({**COLUMNS, "sex": [LONG] * 3}), compression="zstd"),
    ),
    "parquet prefixes": (
        PARQUET,
        as_parquet(
            pa.table({**COLUMNS, "sex": [LONG] * 3}),
            use_dictionary=False,
            compression="zstd",
            column_encoding={"sex": "DELTA_BYTE_ARRAY"},
        ),
    ),
    "arrow buffers": (
        ARROW,
        as_arrow(pa.table({**COLUMNS, "sex": [LONG, LONG, "m"]}), compression="zstd"),
    ),
    "arrow dictionary": (
        ARROW,
        as_arrow(
            pa.table({**COLUMNS, "sex": pa.array([LONG] * 3).dictionary_encode()}),
            compression="zstd",
        ),
    ),
    "npz": (NPZ, as_npz({"age": np.zeros(20_000_000)})),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_short_body_that_would_become_long_is_refused(url, bomb):
    kind, body = BOMBS[bomb]
    assert len(body) < 2**20
    answer = ask(url, "table", body, kind)
    assert answer.status_code in {413, 422}, answer.text
    reported = answer.json()["detail"]
    assert any(word in reported for word in ("is accepted", "at most", "send fewer", "encoding"))


def test_what_a_file_declares_is_refused_before_memory_is_taken():
    parquet = bytearray(as_parquet(pa.table({"a": [1.0, 2.0]}), compression="gzip"))
    at = pq.ParquetFile(io.BytesIO(parquet)).metadata.row_group(0).column(0).dictionary_page_offset
    size = at + 3  # the header's type, then the size when decompressed
    parquet[size : size + 1] = b"\xfe\xff\xff\xff\x0f"  # 2 GiB, four bytes longer
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(2_000):
            file.writestr(f"{number:050}.npy", b"")
    tracemalloc.start()
    try:
        for fault, call in (
            (
                (TooLarge, Malformed),
                lambda: read_parquet(parquet, ["a"], max_rows=9, max_bytes=2**26),
            ),
            (TooLarge, lambda: read_npz(archive.getvalue(), max_bytes=2**26)),
        ):
            with pytest.raises(fault):
                call()
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_an_altered_table_is_answered_with_a_problem_and_never_with_a_failure(url):
    rng = np.random.default_rng(1)
    with httpx.Client() as client:
        for form in (
            "arrow stream, compressed",
            "parquet",
            "npz",
            "arrow stream with a dictionary",
        ):
            kind, body = BODIES[form]
            for _ in range(40):
                altered = bytearray(body)
                for at in rng.integers(0, len(body), 3):
                    altered[at] = rng.integers(256)
                answer = client.post(
                    f"{url}/models/table/predict",
                    content=bytes(altered),
                    headers={"content-type": kind},
                )
                assert answer.status_code in {200, 400, 413, 415, 422}, (form, answer.text)
