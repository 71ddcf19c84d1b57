"""`training score --skip-broken`: a row that cannot be read gets an empty answer and the reason,
and costs no other row, however the run ends and goes on.
"""

import io
import json
import tarfile
from multiprocessing import active_children

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.support.small_models import (
    IMAGE_FIELDS,
    TEXT_FIELDS,
    image_model,
    inputs,
    publish_model,
    text_model,
)
from training.faults import BadData, RunFailed, WrongUse
from training.run.scoring.score_rows import score_rows
from training.run.scoring.scorer import Scoring

COLUMNS = [f"x{place}" for place in range(6)]
ROWS = 200
BLOCK = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return publish_model(tmp_path_factory.mktemp("models"), name="flowers")


@pytest.fixture(scope="module")
def rows():
    return inputs(ROWS).round(4)


def lines_of(rows):
    head = ",".join(["id", *COLUMNS])
    return [head, *(f"{row:03d},{','.join(map(str, x))}" for row, x in enumerate(rows.tolist()))]


def objects_of(rows):
    named = (dict(zip(COLUMNS, row, strict=True)) for row in rows.tolist())
    return [json.dumps({"id": f"{row:03d}"} | each) for row, each in enumerate(named)]


def in_csv(path, rows):
    """A cell that is no number, one without a value, too many cells, and a byte that is no text."""
    lines = lines_of(rows)
    lines[1] = lines[1].replace(",", ",abc", 1)
    lines[41] = lines[41].rpartition(",")[0] + ","
    lines[42] += ",1"
    lines[ROWS] += '\n"two\nlines",1,2,3,4,5,inf'
    path.write_bytes("\n".join(lines).encode().replace(b"\n100,", b"\n\xff00,"))
    return {
        0: "column 'x0': holds 'abc",
        40: "column 'x5': has no value; give one",
        41: "has 8 cells, and the first line names 7 columns",
        100: "byte 0xff is not UTF-8",
        ROWS: "column 'x5': holds inf; expected a finite number",
    }


def in_jsonl(path, rows):
    """A string in place of a number, half an object, no object, two of them, and a missing member.

    The first of them is in the first line, from which Arrow takes the types.
    """
    lines = objects_of(rows)
    lines[0] = lines[0].replace('"x0": ', '"x0": "abc", "y": ')
    lines[40] = lines[40][:20]
    lines[41] = "[1, 2]"
    lines[100] += lines[101]
    lines[ROWS - 1] = '{"id": "last"}\n\n'
    path.write_text("\n".join(lines))
    return {
        0: "column 'x0': is a string; expected a number",
        40: "is not JSON: ",
        41: "is a list; expected an object",
        100: "holds 2 records",
        ROWS - 1: "column 'x0': has no value",
    }


def in_parquet(path, rows):
    rows = rows.astype(np.float64)
    rows[0], rows[40] = np.nan, 1e300
    numbers = dict(zip(COLUMNS, rows.T, strict=True))
    parquet.write_table(pa.table({"id": list(range(ROWS)), **numbers}), path)
    return {0: "holds nan; expected a finite number", 40: r"holds 1e+300; expected a finite number"}


def in_npz(path, rows):
    rows = rows.copy()
    rows[BLOCK : 2 * BLOCK + 1] = np.nan  # a whole block, and the first row of the next one
    np.savez(path, x=rows)
    return dict.fromkeys(range(BLOCK, 2 * BLOCK + 1), "holds NaN or infinity")


FORMS = {"csv": in_csv, "jsonl": in_jsonl, "parquet": in_parquet, "npz": in_npz}


def scored(place, out, model, **more):
    """The result and the answers."""
    scoring = Scoring(model=model, **more.pop("scoring", {}))
    result = score_rows(str(place), out, scoring, block_rows=BLOCK, **more)
    return result, parquet.read_table(out)


@pytest.mark.parametrize("form", FORMS)
def test_broken_rows_have_empty_answers_and_the_others_those_that_they_have_without(
    model, rows, tmp_path, form
):
    np.save(tmp_path / "whole.npy", rows)
    _, whole = scored(tmp_path / "whole.npy", tmp_path / "whole.parquet", model)
    path = tmp_path / f"rows.{form}"
    wrong = FORMS[form](path, rows)
    everything = {"top_k": 2, "probabilities": True}
    keep = () if form == "npz" else ("id",)
    columns = None if form == "npz" else COLUMNS
    result, found = scored(
        path, tmp_path / "out.parquet", model, skip_broken=True, scoring=everything, keep=keep,
        columns=columns,
    )  # fmt: skip
    assert found.column("row").to_pylist() == list(range(found.num_rows))
    errors = {row: each for row, each in enumerate(found.column("error").to_pylist()) if each}
    assert list(errors) == list(wrong)
    for row, said in wrong.items():
        assert errors[row].startswith(f"{path}, row {row}")
        assert said in errors[row]
    answers = [name for name in found.column_names if name not in ("id", "file", "row", "error")]
    for row in wrong:
        assert [found.column(name)[row].as_py() for name in answers] == [None] * len(answers)
    good = [row for row in range(ROWS) if row not in wrong]
    for name in ("label", "probability", "unadjusted_probability"):
        assert found.column(name).take(good).equals(whole.column(name).take(good))
    assert result["n"] == found.num_rows
    assert result["broken"] == len(wrong)
    assert [each["row"] for each in result["first_broken"]] == list(wrong)[:5]
    assert sum(result["predicted"].values()) == found.num_rows - len(wrong)


def test_a_kept_column_has_the_cells_of_broken_rows_that_can_be_read(model, rows, tmp_path):
    for form, unread in {"csv": (41, 100), "jsonl": (40, 41, 100)}.items():
        path = tmp_path / f"rows.{form}"
        wrong = FORMS[form](path, rows)
        _, found = scored(
            path, tmp_path / "out.parquet", model, skip_broken=True, keep=["id"], columns=COLUMNS
        )
        ids = found.column("id").to_pylist()
        assert [row for row in range(found.num_rows) if ids[row] is None] == list(unread)
        assert ids[0] == "000"
        assert ids[max(wrong)] == ("two\nlines" if form == "csv" else "last")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_without_a_broken_row_the_answers_are_the_same_and_no_row_has_an_error(
    model, rows, tmp_path, form
):
    path = tmp_path / f"rows.{form}"
    texts = lines_of(rows) if form == "csv" else objects_of(rows)
    path.write_text("\ufeff" * (form == "csv") + "\n\n".join(texts))
    settings = {"keep": ["id"], "columns": COLUMNS}
    _, plain = scored(path, tmp_path / "plain.parquet", model, **settings)
    result, found = scored(path, tmp_path / "found.parquet", model, skip_broken=True, **settings)
    assert result["broken"] == found.num_rows - found.column("error").null_count == 0
    assert found.drop(["error"]).equals(plain)


def test_a_run_that_a_broken_row_ended_goes_on_without_it(model, rows, tmp_path):
    path, out = tmp_path / "rows.npy", tmp_path / "out.parquet"
    rows = rows.copy()
    rows[70] = np.nan
    np.save(path, rows)
    with pytest.raises(BadData, match="row 70: holds NaN"):
        scored(path, out, model)
    result, found = scored(path, out, model, skip_broken=True)
    assert result["resumed_blocks"] == 2
    _, whole = scored(path, tmp_path / "whole.parquet", model, skip_broken=True)
    assert found.equals(whole)


def stopped(out, place, model, **more):
    def report(blocks, _rows):
        if blocks >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(place, out, model, report=report, **more)


def test_skipped_rows_do_not_get_into_the_answers_of_a_run_that_skips_none(model, rows, tmp_path):
    path, out = tmp_path / "rows.npy", tmp_path / "out.parquet"
    rows = rows.copy()
    rows[10] = np.nan
    np.save(path, rows)
    stopped(out, path, model, skip_broken=True)
    with pytest.raises(WrongUse, match=r"other skip_broken \(True before, now False\)"):
        scored(path, out, model)


def test_a_set_without_a_single_good_row_is_refused_with_the_first_of_them(model, rows, tmp_path):
    path, out = tmp_path / "rows.npy", tmp_path / "out.parquet"
    np.save(path, np.full_like(rows, np.nan))
    with pytest.raises(BadData, match=r"none of the 200 rows could be read; the first: .* row 0:"):
        scored(path, out, model, skip_broken=True)
    assert not out.exists()


def test_what_is_wrong_with_a_whole_file_ends_the_run_as_before(model, rows, tmp_path):
    (tmp_path / "words.csv").write_text("\n".join([",".join(COLUMNS), *["a,b,c,d,e,f"] * 20]))
    (tmp_path / "other.csv").write_text("\n".join(["a,b", *["1,2"] * 20]))
    np.save(tmp_path / "cut.npy", rows)
    data = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(data[:-100])
    cases = {
        "words.csv": (BadData, "column 'x0': holds string in most rows; expected numbers"),
        "other.csv": (WrongUse, "has no column 'x0'"),
        "cut.npy": (BadData, "so it was cut short"),
    }
    for name, (kind, said) in cases.items():
        with pytest.raises(kind, match=said):
            scored(
                tmp_path / name, tmp_path / "out.parquet", model, skip_broken=True, columns=COLUMNS
            )


def test_an_estimate_leaves_broken_rows_out(model, rows, tmp_path):
    estimates = []
    for name, some in {"broken": slice(None), "good": slice(1, None)}.items():
        data = rows.copy()
        data[0] = np.nan
        np.save(tmp_path / f"{name}.npy", data[some])
        result, _ = scored(
            tmp_path / f"{name}.npy", tmp_path / "out.parquet", model, skip_broken=True,
            estimate_first=True,
        )  # fmt: skip
        estimates.append(result["estimate"])
    assert estimates[0] == estimates[1]


def test_a_text_that_the_service_would_refuse_is_a_broken_row(tmp_path):
    texts = publish_model(tmp_path / "models", name="texts", model=text_model(), **TEXT_FIELDS)
    rows = ["good day", "a " * 10_001, "a " * 10_000]
    np.savez(tmp_path / "rows.npz", x=np.array(rows))
    (tmp_path / "rows.csv").write_text("\n".join(["words", *rows]))
    for name in ("rows.npz", "rows.csv"):
        place, out = tmp_path / name, tmp_path / "out.parquet"
        with pytest.raises(BadData, match=r"row 1.*: a text of 20,00\d characters; the service"):
            scored(place, out, texts)
        result, found = scored(place, out, texts, skip_broken=True)
        assert result["broken"] == 1
        assert found.column("label").is_valid().to_pylist() == [True, False, True]


@pytest.fixture
def pictures(tmp_path):
    """A model of images."""
    return publish_model(tmp_path / "models", name="pictures", model=image_model(), **IMAGE_FIELDS)


@pytest.fixture
def shard(tmp_path):
    """A tar shard of 200 images, of which the files 3, 77 and 150 to 153 are broken."""
    rng = np.random.default_rng(3)
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(ROWS):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (9, 7, 3), dtype=np.uint8)).save(file, "PNG")
            data = file.getvalue()
            data = {3: b"", 77: data[:40]}.get(number, data)
            if 150 <= number < 154:
                data = b"<html>"
            member = tarfile.TarInfo(f"{number:03d}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


BROKEN = [3, 77, 150, 151, 152, 153]


def test_a_shard_with_broken_images_that_is_killed_and_resumed_equals_an_undisturbed_run(
    pictures, shard, tmp_path
):
    settings = {"skip_broken": True, "scoring": {"tau": 0}}
    result, whole = scored(shard, tmp_path / "whole.parquet", pictures, **settings)
    errors = whole.column("error").to_pylist()
    assert [row for row, each in enumerate(errors) if each] == BROKEN
    assert errors[77].startswith(f"{shard}, 077.png: ")
    assert whole.column("file").to_pylist() == [f"{row:03d}.png" for row in range(ROWS)]

    def kill(blocks, _rows):
        if blocks >= 2:
            for child in active_children()[:1]:
                child.kill()

    out = tmp_path / "killed.parquet"
    with pytest.raises(RunFailed, match="SIGKILL"):
        scored(shard, out, pictures, workers=2, report=kill, **settings)
    again, found = scored(shard, out, pictures, workers=2, **settings)
    assert again["resumed_blocks"] >= 2
    assert found.equals(whole)
    differing = {"out", "resumed_blocks"}
    assert {k: v for k, v in again.items() if k not in differing} == {
        k: v for k, v in result.items() if k not in differing
    }
    stopped(tmp_path / "again.parquet", shard, pictures, **settings)
    _, found = scored(shard, tmp_path / "again.parquet", pictures, **settings)
    assert found.equals(whole)


def test_broken_images_of_a_folder_are_those_of_the_shard(pictures, shard, tmp_path):
    with tarfile.open(shard) as archive:
        archive.extractall(tmp_path / "folder", filter="data")
    found = [
        scored(place, tmp_path / "out.parquet", pictures, skip_broken=True, scoring={"tau": 0})[1]
        for place in (shard, tmp_path / "folder")
    ]
    for name in ("row", "label", "probability"):
        assert found[0].column(name).equals(found[1].column(name))
    valid = [each.column("error").is_valid().to_pylist() for each in found]
    assert valid[0] == valid[1]


def test_the_verb_says_how_many_rows_are_broken_and_names_the_first(model, rows, tmp_path, command):
    path, out = tmp_path / "rows.csv", tmp_path / "out.parquet"
    in_csv(path, rows)
    given = ["score", path, "--model", model, "--out", out, "--columns", ",".join(COLUMNS)]
    code, _, said = command(*given)
    assert code == 1
    code, result, said = command(*given, "--skip-broken", "--json")
    assert code == 0
    assert (result["n"], result["broken"], len(result["first_broken"])) == (ROWS + 1, 4, 4)
    assert "4 of 201 rows could not be read; their column error says why" in said
    assert "row 41: has 8 cells" in said
    code, _, said = command(*given, "--skip-broken", "--keep", "error")
    assert code == 2
    assert "--keep error: the answers have a column of that name themselves" in said
