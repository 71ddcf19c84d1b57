"""`training score`: answers for files, equal to the formula, whatever the format and however often
it is stopped.
"""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet

from service.contract.adjustment import adjust_logits, log_source_prior, log_target_prior, softmax
from tests.support.small_models import (
    COUNTS,
    IMAGE_FIELDS,
    image_model,
    inputs,
    publish_model,
    weights,
)
from training.faults import BadData, WrongUse
from training.run.scoring.score_rows import score_rows
from training.run.scoring.scorer import Scoring

ROWS = 1000
COLUMNS = [f"c{i}" for i in range(inputs(1).shape[1])]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return publish_model(tmp_path_factory.mktemp("models"), name="flowers")


@pytest.fixture(scope="module")
def rows():
    return inputs(ROWS)


def expected(rows, tau=1.0, target=None):
    weight, bias = weights()
    z = adjust_logits(
        rows.astype(np.float64) @ weight + bias,
        log_source_prior=log_source_prior(COUNTS, loss_tau=0),
        log_target_prior=log_target_prior(target if target is not None else np.ones(len(COUNTS))),
        tau=tau,
    )
    return softmax(z)


def table_of(rows):
    return pa.table({name: rows[:, i] for i, name in enumerate(COLUMNS)})


def written(tmp_path, rows, form):
    """The rows as a file of one format."""
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        parquet.write_table(table_of(rows), path, row_group_size=130)
    elif form == "csv":
        csv.write_csv(table_of(rows), path)
    elif form == "jsonl":
        lines = [json.dumps(dict(zip(COLUMNS, row.tolist(), strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    elif form == "npz":
        np.savez_compressed(path, x=rows, other=np.zeros(3))
    elif form == "npy":
        np.save(path, rows)
    else:
        path = tmp_path / "lists.parquet"
        parquet.write_table(pa.table({"features": pa.array(rows.tolist())}), path)
    return path


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "npz", "npy", "lists"])
def test_every_format_gives_the_formula_s_answers_in_order(model, rows, tmp_path, form):
    out = tmp_path / "out.parquet"
    path = written(tmp_path, rows, form)
    result = score_rows(
        str(path), out, Scoring(model=model, probabilities=True, top_k=3), block_rows=170
    )
    found = parquet.read_table(out)
    wanted = expected(rows)
    assert result["n"] == ROWS == found.num_rows
    assert found.column("row").to_pylist() == list(range(ROWS))
    probabilities = np.array(found.column("probabilities").to_pylist())
    np.testing.assert_allclose(probabilities, wanted, atol=1e-6)
    np.testing.assert_array_equal(found.column("index").to_numpy(), wanted.argmax(axis=1))
    own = expected(rows, tau=0).argmax(axis=1)
    np.testing.assert_array_equal(found.column("unadjusted_index").to_numpy(), own)
    assert result["changed"] == int((own != wanted.argmax(axis=1)).sum()) > 0
    top = np.array(found.column("top_index").to_pylist())
    np.testing.assert_array_equal(top, np.argsort(-wanted, axis=1, kind="stable")[:, :3])
    assert not (tmp_path / "out.parquet.parts").exists()


def test_a_run_that_is_stopped_goes_on_with_the_other_blocks_and_gives_the_same_file(
    model, rows, tmp_path
):
    path = written(tmp_path, rows, "parquet")
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    score_rows(str(path), whole, Scoring(model=model), block_rows=100)

    def stop(blocks, _rows):
        if blocks == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_rows(str(path), out, Scoring(model=model), block_rows=100, report=stop)
    assert not out.exists()
    (tmp_path / "out.parquet.parts" / ".000000-00000004.parquet.1").write_bytes(b"half a part")
    result = score_rows(str(path), out, Scoring(model=model), block_rows=100)
    assert result["resumed_blocks"] == 4
    assert parquet.read_table(out).equals(parquet.read_table(whole))


def test_a_stopped_run_is_not_mixed_with_one_of_other_settings(model, rows, tmp_path):
    path, out = written(tmp_path, rows, "npy"), tmp_path / "out.parquet"

    def stop(_blocks, _rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_rows(str(path), out, Scoring(model=model), report=stop)
    with pytest.raises(WrongUse, match="other tau"):
        score_rows(str(path), out, Scoring(model=model, tau=0.5))


def test_several_processes_give_the_file_of_one(model, rows, tmp_path):
    paths = tmp_path / "shards"
    paths.mkdir()
    for i in range(3):
        parquet.write_table(table_of(rows[i * 300 : (i + 1) * 300]), paths / f"{i}.parquet")
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    score_rows(str(paths), one, Scoring(model=model), block_rows=64)
    score_rows(f"{paths}/*.parquet", two, Scoring(model=model), block_rows=64, workers=2)
    assert parquet.read_table(one).equals(parquet.read_table(two))


def test_columns_are_found_by_name_kept_columns_are_carried_and_the_missing_one_is_named(
    model, rows, tmp_path
):
    table = table_of(rows).select(COLUMNS[::-1])
    ids = pa.array([f"id-{i}" for i in range(ROWS)])
    table = table.append_column("id", ids).append_column("label", ids)
    path, out = tmp_path / "mixed.parquet", tmp_path / "out.parquet"
    parquet.write_table(table, path)
    score_rows(
        str(path), out, Scoring(model=model), columns=COLUMNS, keep=["id"], leave_out=["label"]
    )
    found = parquet.read_table(out)
    assert found.column("id").to_pylist() == ids.to_pylist()
    np.testing.assert_array_equal(found.column("index").to_numpy(), expected(rows).argmax(axis=1))
    parquet.write_table(table.drop([COLUMNS[1]]), path)
    with pytest.raises(WrongUse, match=f"'{COLUMNS[1]}'"):
        score_rows(str(path), tmp_path / "b.parquet", Scoring(model=model), columns=COLUMNS)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_file_without_a_column_is_refused_with_all_the_columns_that_it_has(
    model, rows, tmp_path, form, skip
):
    path = written(tmp_path, rows[:5], form)
    names = COLUMNS[:-1]
    columns = [*names, "last", "id"]
    for wrong, keep in ((columns, ()), ([*COLUMNS, "id"], ("number",)), (["v"], ())):
        table = pa.table({name: np.arange(5.0) for name in wrong})
        if form == "csv":
            csv.write_csv(table, path)
        elif form == "jsonl":
            path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
        else:
            parquet.write_table(table, path)
        with pytest.raises(WrongUse, match=f"it has {', '.join(wrong)}$"):
            score_rows(
                str(path),
                tmp_path / "out.parquet",
                Scoring(model=model),
                columns=COLUMNS,
                keep=keep,
                skip_broken=skip,
            )


def test_a_column_that_the_model_takes_is_not_left_out(model, rows, tmp_path):
    path = written(tmp_path, rows, "csv")
    with pytest.raises(WrongUse, match=f"--leave-out {COLUMNS[0]}: the model takes this column"):
        score_rows(
            str(path),
            tmp_path / "out.parquet",
            Scoring(model=model),
            columns=COLUMNS,
            leave_out=("extra", COLUMNS[0]),
        )


def test_rows_behind_a_quotation_mark_that_is_not_closed_are_not_lost(model, rows, tmp_path):
    path, out = tmp_path / "own.csv", tmp_path / "out.parquet"
    table = table_of(rows).append_column("note", pa.array(["none"] * ROWS))
    csv.write_csv(table, path)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[50] = lines[50].removesuffix('"')
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(BadData, match="a quoted cell of the row in line 51 is followed by"):
        score_rows(str(path), out, Scoring(model=model), columns=COLUMNS, keep=["note"])
    assert not out.exists()


def lists(cells):
    return pa.table({"v": pa.array(cells)})


@pytest.mark.parametrize(
    "wrong",
    [
        (1e300, r"row 3: holds 1e\+300; expected a finite number that fits into .* float32"),
        (np.nan, "row 3.*: holds "),
    ],
)
@pytest.mark.parametrize("form", ["npy", "parquet", "lists"])
def test_a_number_that_the_model_cannot_hold_is_never_scored_as_infinity(
    model, rows, tmp_path, form, wrong
):
    cells = rows[:8].astype(np.float64)
    cells[3, 1], said = wrong
    path, out = tmp_path / f"own.{form.replace('lists', 'parquet')}", tmp_path / "out.parquet"
    if form == "npy":
        np.save(path, cells)
    else:
        parquet.write_table(lists(list(cells)) if form == "lists" else table_of(cells), path)
    names = ["v"] if form == "lists" else COLUMNS
    with pytest.raises(BadData, match=said):
        score_rows(str(path), out, Scoring(model=model), columns=names)
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([["a"] * 4] * 3, "column 'v': lists of string; expected lists of numbers"),
        ([[[1.0]] * 4] * 3, "column 'v': lists of list"),
        ([[1.0] * 4, None], "lists of different lengths, or missing ones"),
        ([{"x": 1.0}] * 3, r"column 'v': holds struct<x: double>; expected lists of numbers"),
    ],
)
def test_cells_that_are_no_numbers_are_refused_by_what_they_are(model, tmp_path, cells, said):
    path = tmp_path / "own.parquet"
    parquet.write_table(lists(cells), path)
    with pytest.raises(BadData, match=said):
        score_rows(str(path), tmp_path / "out.parquet", Scoring(model=model), columns=["v"])


def test_decimals_are_the_numbers_that_they_are(model, rows, tmp_path):
    made = table_of(rows[:20].round(3).astype(np.float64))
    exact = pa.table({name: made.column(name).cast(pa.decimal128(18, 3)) for name in COLUMNS})
    found = []
    for name, table in (("plain", made), ("exact", exact)):
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        out = tmp_path / f"{name}-out.parquet"
        score_rows(str(tmp_path / f"{name}.parquet"), out, Scoring(model=model), columns=COLUMNS)
        found.append(parquet.read_table(out).column("probability").to_numpy())
    assert np.array_equal(*found)


def test_what_is_wrong_with_a_file_is_told_with_the_cure(model, rows, tmp_path):
    def said(place, names=COLUMNS):
        with pytest.raises((BadData, WrongUse)) as refused:
            score_rows(str(place), tmp_path / "out.parquet", Scoring(model=model), columns=names)
        return str(refused.value)

    assert "no file has such a name" in said(tmp_path / "absent" / "*.npy")
    turned = tmp_path / "turned.npy"
    np.save(turned, np.asfortranarray(rows))
    assert "np.ascontiguousarray(x)" in said(turned)
    path = tmp_path / "own.csv"
    csv.write_csv(table_of(rows[:3]), path)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + "1,2\n", encoding="utf-8")
    assert "line 5: has 2 cells, and the first line names 6 columns" in said(path)
    path.write_text(whole.replace("c0", "é"), encoding="latin-1")
    assert "line 1: byte 0xe9 is not utf-8; save the file as UTF-8" in said(path)
    path.write_text(whole.replace(",", ";"), encoding="utf-8")
    assert "the columns of a CSV file are separated by commas" in said(path)
    path.write_text(whole.replace(",", ";").replace(".", ","), encoding="utf-8")
    assert "the columns of a CSV file are separated by commas, and its first line has" in said(path)
    path.write_text(whole, encoding="utf-16")
    assert "line 1: byte 0xff is not utf-8; it looks like UTF-16" in said(path)
    twice = tmp_path / "twice.parquet"
    arrays = [pa.array([1.0])] * len(COLUMNS)
    parquet.write_table(pa.Table.from_arrays(arrays, names=[*COLUMNS[:-1], COLUMNS[0]]), twice)
    assert f"has two columns named '{COLUMNS[0]}'" in said(twice)
    assert "is an address; training reads files" in said("https://example.org/rows.csv")
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(b"\x1f\x8b")
    assert "is not a file that can be read (it is compressed by gzip: unpack it)" in said(packed)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(b"PK\x03\x04")
    assert "(it was cut short: copy it again)" in said(cut)


@pytest.mark.parametrize("skip_broken", [False, True])
def test_a_csv_without_a_line_of_names_does_not_lose_its_first_row(
    model, rows, tmp_path, skip_broken
):
    def scored(first, columns=()):
        csv.write_csv(
            table_of(rows[:20]), tmp_path / "own.csv", csv.WriteOptions(include_header=False)
        )
        text = (tmp_path / "own.csv").read_text(encoding="utf-8")
        (tmp_path / "own.csv").write_text(first + text, encoding="utf-8")
        out = tmp_path / f"{hash(first)}.parquet"
        score_rows(
            str(tmp_path / "own.csv"),
            out,
            Scoring(model=model),
            columns=columns or None,
            skip_broken=skip_broken,
        )
        return parquet.read_table(out).num_rows

    with pytest.raises(BadData, match=r"first line is a row of numbers .* such as c0,c1,c2,…"):
        scored("")
    with pytest.raises(BadData, match="first line is a row of numbers"):
        scored("0,0,5,3,0,0\n")
    named = ("0,1,2,3,4,5\n", "1,2,3,4,5,6\n", "900.5,901,901.5,902,902.5,903\n", "a,b,c,d,e,f\n")
    for first in named:
        assert scored(first) == 20
    odd = "3,1,4,15,9,2"
    assert scored(odd + "\n", columns=odd.split(",")) == 20


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('[{"c0": 1}]', "line 1: is a list; expected an object in each line"),
        ('{"c0": 1}\n{"c0": ', "line 2: is not JSON: "),
        (
            '{"c0": 1}\n{"c0": null}\n{"c0": "x"}',
            "line 3: 'c0' is a string, and a number in line 1",
        ),
    ],
)
def test_the_line_of_json_that_cannot_be_read_is_named(model, tmp_path, text, wrong):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadData) as refused:
        score_rows(str(path), tmp_path / "out.parquet", Scoring(model=model), columns=COLUMNS)
    assert wrong in str(refused.value)


def test_the_model_s_columns_in_another_order_are_refused_and_other_names_are_taken_in_order(
    rows, tmp_path
):
    model = publish_model(
        tmp_path / "models", name="named", provenance={"data": {"columns": COLUMNS}}
    )
    path, out = tmp_path / "rows.parquet", tmp_path / "out.parquet"
    parquet.write_table(table_of(rows), path)
    with pytest.raises(WrongUse, match=f"--columns: .* in the order {COLUMNS[0]},{COLUMNS[1]}"):
        score_rows(str(path), out, Scoring(model=model), columns=COLUMNS[::-1])
    others = [name.upper() for name in COLUMNS]
    parquet.write_table(table_of(rows).rename_columns(others), path)
    score_rows(str(path), out, Scoring(model=model), columns=others)
    found = parquet.read_table(out).column("index").to_numpy()
    np.testing.assert_array_equal(found, expected(rows).argmax(axis=1))


def test_answers_never_go_over_the_data_that_they_are_for(model, rows, tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(table_of(rows), path)
    before = path.read_bytes()
    with pytest.raises(WrongUse, match="is among the data, which it would overwrite"):
        score_rows(str(tmp_path), path, Scoring(model=model))
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_numbers_get_fractions_and_values_in_later_rows_too(rows, tmp_path, form):
    """The reader of the first megabyte has seen whole numbers and empty cells only."""
    model = publish_model(
        tmp_path / "models", name="named", provenance={"data": {"columns": COLUMNS}}
    )
    cells = [[float(np.round(value)) for value in row] for row in rows.tolist()]
    many = [cells[i % ROWS] for i in range(40_000)]
    many[-1] = rows[0].tolist()
    path, out = tmp_path / f"late.{form}", tmp_path / "out.parquet"
    if form == "csv":
        lines = [",".join(COLUMNS), *(",".join(f"{v:g}" for v in row) for row in many[:-1])]
        lines.append(",".join(map(repr, many[-1])))
        path.write_text("\n".join(lines) + "\n")
    else:
        whole = [[int(v) for v in row] for row in many[:-1]]
        named = (dict(zip(COLUMNS, row, strict=True)) for row in [*whole, many[-1]])
        path.write_text("\n".join(map(json.dumps, named)) + "\n")
    score_rows(str(path), out, Scoring(model=model))
    found = parquet.read_table(out).column("probability").to_numpy()
    np.testing.assert_allclose(found[-1], expected(rows[:1]).max(), atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (["1", "", "30"], [1, None, 30]),
        (["1.5", "", "2"], [1.5, None, 2.0]),
        (["001", "", "30"], ["001", "", "30"]),
        (["1", "x", "3"], ["1", "x", "3"]),
    ],
)
def test_kept_columns_of_a_csv_file_stay_as_written_unless_they_are_numbers(
    model, rows, tmp_path, ids, kept
):
    path, out = tmp_path / "rows.csv", tmp_path / "out.parquet"
    csv.write_csv(table_of(rows[:3]).append_column("id", pa.array(ids)), path)
    path.write_text(path.read_text().replace('"', ""))
    score_rows(str(path), out, Scoring(model=model), keep=["id"], block_rows=1)
    assert parquet.read_table(out).column("id").to_pylist() == kept


def test_a_kept_column_never_takes_the_place_of_an_answer(model, rows, tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(table_of(rows).append_column("label", pa.array(["x"] * ROWS)), path)
    with pytest.raises(WrongUse, match="--keep label: the answers have a column of that name"):
        score_rows(str(path), tmp_path / "out.parquet", Scoring(model=model), keep=["label"])


def test_kept_columns_of_other_types_in_each_file_get_one_that_holds_all(model, rows, tmp_path):
    def kept(*columns):
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        for number, cells in enumerate(columns):
            table = table_of(rows[: len(cells)]).append_column("id", cells)
            parquet.write_table(table, folder / f"{number}.parquet")
        out = tmp_path / "out.parquet"
        score_rows(str(folder), out, Scoring(model=model), columns=COLUMNS, keep=["id"])
        return parquet.read_table(out).column("id").to_pylist()

    whole = pa.array([1, 2], pa.int32())
    assert kept(whole, pa.array([1.5])) == [1.0, 2.0, 1.5]
    assert kept(whole, pa.array(["a"])) == ["1", "2", "a"]
    with pytest.raises(BadData, match=r"--keep id: .*list<element: int64> in some files and int32"):
        kept(whole, pa.array([[1]]))


def test_files_of_one_name_and_members_of_several_shards_are_told_apart(model, rows, tmp_path):
    for day in ("monday", "sunday"):
        (tmp_path / "days" / day).mkdir(parents=True)
        parquet.write_table(table_of(rows[:1]), tmp_path / "days" / day / "part.parquet")
    out = tmp_path / "out.parquet"
    score_rows(str(tmp_path / "days"), out, Scoring(model=model))
    files = parquet.read_table(out).column("file").to_pylist()
    assert files == [str(tmp_path / "days" / d / "part.parquet") for d in ("monday", "sunday")]
    pictures = publish_model(tmp_path / "models", model=image_model(), **IMAGE_FIELDS)
    picture = tmp_path / "0.png"
    Image.new("RGB", (9, 7)).save(picture)
    for shard in ("a.tar", "b.tar"):
        with tarfile.open(tmp_path / shard, "w") as archive:
            archive.add(picture, "0.png")
    score_rows(f"{tmp_path}/*.tar", out, Scoring(model=pictures, tau=0))
    assert parquet.read_table(out).column("file").to_pylist() == ["a.tar/0.png", "b.tar/0.png"]
    with tarfile.open(tmp_path / "a.tar") as archive:
        end = archive.getmember("0.png").offset_data + 512
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:end])
    with pytest.raises(BadData, match=r"a\.tar: has no mark at its end, so it was cut short"):
        score_rows(str(tmp_path / "a.tar"), out, Scoring(model=pictures, tau=0))


def test_images_behind_a_link_to_a_folder_are_scored(tmp_path):
    pictures = publish_model(tmp_path / "models", model=image_model(), **IMAGE_FIELDS)
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    Image.new("RGB", (9, 7)).save(tmp_path / "far" / "0.png")
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    result = score_rows(
        str(tmp_path / "near"), tmp_path / "out.parquet", Scoring(model=pictures, tau=0)
    )
    assert result["n"] == 1


def test_a_pipe_is_not_replaced_by_the_answers(model, rows, tmp_path):
    parquet.write_table(table_of(rows), tmp_path / "rows.parquet")
    os.mkfifo(tmp_path / "out.parquet")
    with pytest.raises(WrongUse, match="is a pipe, device or socket; expected the name of a file"):
        score_rows(str(tmp_path / "rows.parquet"), tmp_path / "out.parquet", Scoring(model=model))
    assert (tmp_path / "out.parquet").is_fifo()


def test_answers_go_into_the_file_behind_a_link_and_the_link_stays(model, rows, tmp_path):
    parquet.write_table(table_of(rows), tmp_path / "rows.parquet")
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "out.parquet", tmp_path / "elsewhere" / "today.parquet"
    link.symlink_to(target)
    for _ in range(2):  # the first run makes the file, the second one replaces it
        score_rows(str(tmp_path / "rows.parquet"), link, Scoring(model=model))
        assert link.is_symlink()
        assert parquet.read_table(target).num_rows == len(rows)
    assert list(target.parent.iterdir()) == [target]


def test_a_link_that_leads_to_itself_is_refused(model, rows, tmp_path):
    parquet.write_table(table_of(rows), tmp_path / "rows.parquet")
    (tmp_path / "out.parquet").symlink_to("out.parquet")
    with pytest.raises(WrongUse, match="is a link that leads to itself; name another file"):
        score_rows(str(tmp_path / "rows.parquet"), tmp_path / "out.parquet", Scoring(model=model))


def test_a_prior_file_and_a_tau_are_those_of_the_formula(model, rows, tmp_path):
    target = list(range(1, len(COUNTS) + 1))
    prior = tmp_path / "prior.json"
    prior.write_text(json.dumps({"target": target}))
    path, out = written(tmp_path, rows, "npz"), tmp_path / "out.parquet"
    score_rows(str(path), out, Scoring(model=model, tau=0.37, prior=str(prior)))
    found = parquet.read_table(out).column("probability").to_numpy()
    np.testing.assert_allclose(found, expected(rows, 0.37, target).max(axis=1), atol=1e-6)


def prior_file(tmp_path, document, name="prior.json"):
    (tmp_path / name).write_text(json.dumps(document))
    return str(tmp_path / name)


@pytest.mark.parametrize("tau", [0, 1])
def test_a_prior_with_costs_decides_every_row_by_them(model, rows, tmp_path, tau):
    size, reject = len(COUNTS), 2.0
    matrix = np.random.default_rng(0).uniform(1, 9, (size, size)).round(3)
    np.fill_diagonal(matrix, 0)
    prior = prior_file(tmp_path, {"costs": {"matrix": matrix.tolist(), "reject": reject}})
    path, out = written(tmp_path, rows, "npz"), tmp_path / "out.parquet"
    score_rows(str(path), out, Scoring(model=model, tau=tau, prior=prior))
    found = parquet.read_table(out)
    cost = expected(rows, tau) @ matrix
    wanted = [None if row.min() > reject else int(row.argmin()) for row in cost]
    assert None in wanted
    assert len(set(wanted)) > 2
    assert found.column("decision_index").to_pylist() == wanted
    labels = dict(
        zip(*(found.column(name).to_pylist() for name in ("index", "label")), strict=True)
    )
    decided = found.column("decision").to_pylist()
    for name, index in zip(decided, wanted, strict=True):
        assert name == (None if index is None else labels.get(index, name))
    costs = np.minimum(cost.min(axis=1), reject)
    np.testing.assert_allclose(found.column("expected_cost").to_numpy(), costs, atol=1e-5)


def test_a_stopped_run_is_not_mixed_with_one_of_other_costs(model, rows, tmp_path):
    path, out = written(tmp_path, rows, "npy"), tmp_path / "out.parquet"
    one, other = (
        prior_file(tmp_path, {"costs": {"reject": reject}}, f"{reject}.json")
        for reject in (0.1, 0.2)
    )

    def stop(_blocks, _rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_rows(str(path), out, Scoring(model=model, prior=one), report=stop)
    with pytest.raises(WrongUse, match="other prior"):
        score_rows(str(path), out, Scoring(model=model, prior=other))


@pytest.mark.parametrize(
    "document",
    [
        {"target": "training", "context": {"site": {"north": "winter"}}},
        {"schedule": {"time_zone": "UTC", "rules": [{"months": [1], "prior": "winter"}]}},
    ],
)
def test_a_prior_that_leads_to_others_is_refused(model, rows, tmp_path, document):
    path, out = written(tmp_path, rows, "npy"), tmp_path / "out.parquet"
    prior = prior_file(tmp_path, document)
    with pytest.raises(WrongUse, match="leads to other stored priors, which only the service has"):
        score_rows(str(path), out, Scoring(model=model, prior=prior))


def test_images_of_a_folder_and_of_a_tar_shard_get_the_same_answers(tmp_path, capsys):
    publish_model(tmp_path / "models", name="pictures", model=image_model(), **IMAGE_FIELDS)
    folder = tmp_path / "images" / "day 1"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as archive:
        for i in range(7):
            image = Image.fromarray(rng.integers(0, 255, (9, 7, 3), dtype=np.uint8))
            image.save(folder / f"{i}.png")
            data = (folder / f"{i}.png").read_bytes()
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name in ("./._0.png", "__MACOSX/._1.png", "@eaDir/2.png"):  # of macOS and of a NAS
            archive.addfile(tarfile.TarInfo(name))
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "list.txt").write_text("x")
    model = tmp_path / "models" / "pictures" / "1"
    answers = []
    for place in (tmp_path / "images", shard):
        out = tmp_path / f"{place.name}.parquet"
        score_rows(str(place), out, Scoring(model=model, tau=0), block_rows=3)
        answers.append(parquet.read_table(out).column("probability").to_pylist())
    assert len(answers[0]) == 7
    assert answers[0] == answers[1]
    assert "1 files of other kinds are left out" in capsys.readouterr().err


def test_the_verb_prints_what_it_did_and_refuses_what_it_cannot_read(
    model, rows, tmp_path, command
):
    path, out = written(tmp_path, rows, "npy"), tmp_path / "out.parquet"
    code, result, _ = command("score", path, "--model", model, "--out", out, "--json")
    assert code == 0
    assert result["n"] == ROWS
    assert sum(result["predicted"].values()) == ROWS
    code, _, said = command("score", tmp_path / "nothing", "--model", model, "--out", out)
    assert code == 2
    assert "no such file" in said
    np.save(path, rows[:, :2])
    code, _, said = command("score", path, "--model", model, "--out", out)
    assert code == 2
    assert "the model takes" in said
