"""Tables as people have them: columns by name, labels as written, faults named."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from training.data.dataset import Known
from training.data.problems import check_held_out, problems
from training.data.sources import load as data
from training.faults import BadData, WrongUse

KINDS = ("cat", "dog", "eel")


def write(path, columns, *, encoding="utf-8", newline="\n"):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, lineterminator=newline)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def columns(n=30, **more):
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=n).round(4).tolist(),
        "b": rng.normal(size=n).round(4).tolist(),
        "kind": [KINDS[i % 3] for i in range(n)],
    } | more


def load(path, query="label=kind", **options):
    return data.load(f"table:{path}?{query}", seed=0, **options)


def known(**more):
    return Known(class_names=KINDS, columns=("a", "b"), **more)


def test_columns_are_taken_by_name_whatever_their_order(tmp_path):
    made = columns()
    plain = load(write(tmp_path / "one.csv", made), known=known())
    turned = dict(reversed(made.items()))
    other = load(write(tmp_path / "two.csv", turned), known=known())
    assert np.array_equal(plain.whole.inputs, other.whole.inputs)
    assert np.array_equal(plain.whole.labels, other.whole.labels)


def test_missing_and_extra_columns_are_named(tmp_path):
    made = columns()
    made["bee"] = made.pop("b")
    with pytest.raises(WrongUse, match=r"lacks 1 of the model's 2 columns: b; .*not know: bee"):
        load(write(tmp_path / "renamed.csv", made), known=known())
    found = load(write(tmp_path / "more.csv", columns(more=range(30))), known=known())
    assert found.notes == ("columns the model does not use are left out: more",)
    assert found.whole.inputs.shape == (30, 2)


@pytest.mark.parametrize(
    "labels", [("001", "010", "100"), ("1.1", "1.2", "2.0"), ("C", "C++", "c#"), ("NA", "no", "t")]
)
def test_labels_are_kept_as_they_are_written(tmp_path, labels):
    path = write(tmp_path / "own.csv", columns(kind=[labels[i % 3] for i in range(30)]))
    assert load(path).class_names == tuple(sorted(labels))


def test_a_column_whose_name_has_a_plus_is_found_as_written(tmp_path):
    path = write(tmp_path / "own.csv", columns() | {"C++": ["x", "y"] * 15})
    assert load(path, "label=C++&without=kind").class_names == ("x", "y")
    path = write(tmp_path / "two.csv", columns() | {"of row": ["x", "y"] * 15})
    assert load(path, "label=of+row&without=kind").class_names == ("x", "y")


def test_rows_without_labels_or_of_one_split_alone_are_read_for_a_model(tmp_path):
    made = columns()
    del made["kind"]
    bare = load(write(tmp_path / "bare.csv", made), known=known())
    assert not bare.labelled
    assert len(bare.whole) == 30
    tested = write(tmp_path / "tested.csv", columns(part=["test"] * 30))
    found = load(tested, "label=kind&split=part", known=known())
    assert (len(found.train), len(found.test)) == (0, 30)
    one_class = write(tmp_path / "one.csv", columns(kind=["dog"] * 30))
    assert set(load(one_class, known=known()).whole.labels) == {1}
    with pytest.raises(WrongUse, match="class 'fox' is not one of the model's"):
        load(write(tmp_path / "fox.csv", columns(kind=["fox"] * 30)), known=known())


def test_a_file_in_another_encoding_is_refused_with_the_line_and_read_when_it_is_named(tmp_path):
    names = ("café", "thé", "eau")
    made = columns(kind=[names[(i + 2) % 3] for i in range(30)])
    path = write(tmp_path / "own.csv", made, encoding="latin-1")
    with pytest.raises(BadData, match=r"line 3: byte 0xe9 is not utf-8; .*encoding=latin-1"):
        load(path)
    assert load(path, "label=kind&encoding=latin-1").class_names == ("café", "eau", "thé")
    wide = write(tmp_path / "wide.csv", made, encoding="utf-16")
    with pytest.raises(BadData, match="looks like UTF-16; save the file as UTF-8"):
        load(wide)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_name(tmp_path):
    made = dict(reversed(columns().items()))
    path = write(tmp_path / "own.csv", made, encoding="utf-8-sig", newline="\r\n")
    assert load(path).class_names == KINDS


def test_the_line_of_a_fault_counts_line_breaks_within_cells(tmp_path):
    made = columns(kind=["two\nlines"] * 30)
    made["a"][3] = "tall"
    with pytest.raises(BadData, match=r"row 3 \(line 8\), column 'a': 'tall' is not a number"):
        load(write(tmp_path / "own.csv", made))


def test_the_column_of_texts_must_be_named_for_a_model_of_texts(tmp_path):
    path = write(tmp_path / "own.csv", {"said": ["a b"] * 30, "kind": columns()["kind"]})
    model = Known(class_names=KINDS, text=True)
    with pytest.raises(WrongUse, match=r"takes one text a row; .*&text=COLUMN, such as said"):
        load(path, known=model)
    assert load(path, "label=kind&text=said", known=model).kind == "text"


def test_the_index_that_pandas_writes_is_left_out_and_said_so(tmp_path):
    index = write(tmp_path / "own.csv", {"": range(30)} | columns())
    found = load(index)
    assert found.origin["columns"] == ["a", "b"]
    assert "column '' numbers or names the rows" in found.notes[0]
    path = tmp_path / "own.parquet"
    parquet.write_table(pa.table(columns() | {"__index_level_0__": range(30)}), path)
    assert load(path).origin["columns"] == ["a", "b"]


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1"])
@pytest.mark.parametrize("index", [range(5, 95, 3), [f"id{i}" for i in range(30)]])
def test_the_index_of_a_filtered_or_named_frame_is_left_out_too(tmp_path, name, index):
    found = load(write(tmp_path / "own.csv", {name: index} | columns(city=["x", "y"] * 15)))
    assert found.origin["columns"] == ["a", "b", "city"]
    assert f"column '{name}' numbers or names the rows" in found.notes[0]


def test_a_parquet_column_of_bytes_that_are_no_text_is_refused_with_what_can_be_done(tmp_path):
    path = tmp_path / "own.parquet"
    parquet.write_table(pa.table(columns(odd=[b"\xff", b"b"] * 15)), path)
    with pytest.raises(BadData, match=r"column 'odd': holds bytes that are not UTF-8; give") as no:
        load(path)
    assert "&without=odd" in str(no.value)
    assert "&category" not in str(no.value)


def test_messages_on_parquet_speak_of_no_line(tmp_path):
    path = tmp_path / "own.parquet"
    parquet.write_table(pa.table({"5": [1.0, 2.0], "": [1.0, 2.0], "kind": ["a", "b"]}), path)
    with pytest.raises(WrongUse, match="has no column 'kid'") as unknown:
        load(path, "label=kid")
    with pytest.raises(BadData, match="column 2 has no name; give it one, or") as unnamed:
        load(path)
    assert "line" not in f"{unknown.value}{unnamed.value}"


def test_an_index_of_parquet_is_left_out_though_its_numbers_occur_twice(tmp_path):
    path = tmp_path / "own.parquet"
    frames_in_a_row = {"__index_level_0__": [*range(15), *range(15)]}
    parquet.write_table(pa.table(columns() | frames_in_a_row), path)
    assert load(path).origin["columns"] == ["a", "b"]


def test_a_column_without_a_name_is_refused_unless_it_is_empty_or_left_out(tmp_path):
    path = write(tmp_path / "own.csv", columns() | {"": [1.5, 2.5] * 15})
    with pytest.raises(BadData, match=r"column 4 has no name; .*&without="):
        load(path)
    assert load(path, "label=kind&without=").origin["columns"] == ["a", "b"]
    comma_at_the_end = write(tmp_path / "own.csv", columns() | {"": [""] * 30})
    found = load(comma_at_the_end)
    assert found.origin["columns"] == ["a", "b"]
    assert "a column with neither name nor values is left out" in found.notes


def test_a_column_of_splits_that_is_not_called_so_is_told(tmp_path):
    made = columns(part=["train", "Test", "train"] * 10, size=["train", "bus", "car"] * 10)
    found = load(write(tmp_path / "own.csv", made))
    (note,) = (note for note in found.notes if "&split=" in note)
    assert note.startswith("column 'part' holds Test, train as a category")


def test_lists_of_numbers_are_as_many_inputs(tmp_path):
    path = tmp_path / "own.parquet"
    lists = [[float(i), float(i % 7), 1.5] for i in range(30)]
    parquet.write_table(pa.table(columns(vector=lists)), path)
    found = load(path)
    assert found.origin["columns"] == ["a", "b", "vector"]
    assert found.whole.inputs.shape == (30, 5)
    parquet.write_table(pa.table(columns(vector=[*lists[:-1], [1.0]])), path)
    with pytest.raises(BadData, match="row 29, column 'vector': a list of 1; expected 3"):
        load(path)


@pytest.mark.parametrize("unit", ["ns", "us"])
def test_times_are_refused_whatever_their_unit_and_can_be_left_out(tmp_path, unit):
    when = np.arange(30).astype(f"datetime64[{unit}]")
    path = tmp_path / "own.parquet"
    parquet.write_table(pa.table(columns(when=when)), path)
    with pytest.raises(BadData, match=r"column 'when': holds dates or times; .*&without=when"):
        load(path)
    assert load(path, "label=kind&without=when").origin["columns"] == ["a", "b"]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("{:02}.01.2024", "holds dates, such as '00.01.2024'; a graph cannot read them"),
        ("2024-01-{:02} 10:00", "holds dates.* such as year, month, weekday and hour"),
        ("Jan {}, 2024", "holds dates"),
        ("{} January", "holds dates"),
        ("Fri, {} Jan 2024 10:35:00 GMT", "holds dates"),
        ("{:02}/01/24", "holds dates"),
        ("202401{:02}T1035", "holds dates"),
        ("2024-W{:02}", "holds dates"),
        ("10:{:02}", "holds times of day, such as '10:00'; a graph cannot read them"),
        ("10:{:02} PM", "holds times of day"),
        ("{},5", "holds numbers with a comma, such as '0,5'; write numbers as 1234.5"),
        ("{}%", "holds percentages"),
        ("€{}", "holds amounts of money"),
        ("{} 100", "holds numbers in groups of three digits, such as '0 100'; write numbers as"),
        ("{}'100", "holds numbers in groups of three digits"),
        ("{}.100.000,5", "holds numbers in groups of three digits"),
        ("{},5 kg", "holds numbers with a unit, such as '0,5 kg'; write numbers as 1234.5"),
        ("{}°C", "holds numbers with a unit"),
        ("'{}'", "holds numbers in quotation marks"),
    ],
)
def test_strings_that_are_numbers_or_dates_in_another_spelling_are_no_categories(
    tmp_path, cells, said
):
    path = tmp_path / "own.parquet"
    made = columns(odd=[cells.format(row) for row in range(30)])
    parquet.write_table(pa.table(made), path)
    with pytest.raises(BadData, match=f"column 'odd': {said}"):
        load(path)
    assert load(path, "label=kind&category=odd").kind == "columns"
    made["odd"] = [cells.format(row % 2) for row in range(30)]  # a few values may be meant so
    parquet.write_table(pa.table(made), path)
    if "dates" not in said:
        assert load(path).kind == "columns"


def test_dates_are_known_beside_a_word_for_unknown_and_other_numbered_words_are_categories(
    tmp_path,
):
    path = tmp_path / "own.parquet"

    def kind_of(cells):
        parquet.write_table(pa.table(columns(odd=cells)), path)
        return load(path).kind

    with pytest.raises(BadData, match="column 'odd': holds dates, such as '2024-01-01'"):
        kind_of([f"2024-01-{row:02}" if row else "unknown" for row in range(30)])
    for form in ("decile {}", "market-{}", "{}:1", "May be {}", "lot 12-{}", "10{}", "{} 12"):
        assert kind_of([form.format(row % 25) for row in range(30)]) == "columns", form
    shifts = ["06:00", "14:00", "22:00"]
    assert kind_of([shifts[row % 3] for row in range(30)]) == "columns"


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        (0, 'a,"b,kind'),
        (40, '7,"8,sun'),
        (40, '7,8,"sun'),
        (40, '7,"8"",sun'),
        (40, '7,"8" tube,s"un'),
    ],
)
def test_a_quotation_mark_that_is_not_closed_is_found(tmp_path, row, wrong):
    lines = ["a,b,kind", *(f"{n},{n % 7},{KINDS[n % len(KINDS)]}" for n in range(20_000))]
    lines[row] = wrong
    path = tmp_path / "own.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(
        BadData, match=rf"a quoted cell of the row in line {row + 1} (has no end|is foll)"
    ):
        load(path)


def test_marks_within_cells_and_cells_of_many_lines_are_no_open_quotes(tmp_path):
    cells = ['5" tube', '"said ""so"""', '"two\nlines"', "plain"] * 10
    path = tmp_path / "own.csv"
    rows = [f"{cell},{n % 5},{KINDS[n % len(KINDS)]}" for n, cell in enumerate(cells)]
    rows.append(f'6" tube,1,{KINDS[0]}')  # an odd number of marks
    path.write_text("\n".join(["a,b,kind", *rows]), encoding="utf-8")
    assert len(load(path).whole) == 41


def test_numbers_that_float32_merges_are_told(tmp_path):
    found = load(write(tmp_path / "own.csv", columns(time=[1_700_000_000 + i for i in range(30)])))
    assert "column 'time': float32 would merge its numbers" in found.notes[0]
    assert found.train.inputs.dtype == np.float64


def test_whole_numbers_that_even_float64_merges_are_told_with_the_cure(tmp_path):
    made = columns(id=[2**62 + 2 * i for i in range(30)], year=list(range(1990, 2020)))
    found = load(write(tmp_path / "own.csv", made))
    (note,) = found.notes
    assert "column 'id': whole numbers beyond 2^53 become equal" in note
    assert "&category=id" in note


def test_whole_numbers_of_more_than_64_bits_that_become_equal_are_named(tmp_path):
    large = [2**70 + 2**50 * i for i in range(30)]
    made = columns(id=[2**70 + i for i in range(30)], large=large)
    (note,) = load(write(tmp_path / "own.csv", made)).notes
    assert "column 'id': whole numbers beyond 2^53 become equal" in note


def test_leading_zeros_that_a_number_loses_are_named_with_an_example(tmp_path):
    codes = [f"{101 * i:05}" for i in range(30)]
    file = write(
        tmp_path / "own.csv", columns(postcode=codes, share=[f"0.{i}5" for i in range(30)])
    )
    (note,) = load(file).notes
    assert "column 'postcode': numbers such as 00000 lose their leading zeros" in note
    assert "&category=postcode" in note
    again = load(file, "label=kind&category=postcode")
    assert sorted(again.whole.inputs["postcode"].reshape(-1)) == codes
    assert not [each for each in again.notes if "zeros" in each]


def test_classes_of_many_digits_are_not_taken_for_one_number(tmp_path):
    made = columns(kind=[str(2**63 + i % 3) for i in range(30)])
    assert not problems(load(write(tmp_path / "own.csv", made)))


def test_what_is_odd_about_rows_and_columns_is_told(tmp_path):
    made = columns(60)
    split = ["train"] * 40 + ["test"] * 20
    for name in ("a", "b", "kind"):  # the last ten rows of the test split are training rows
        made[name][50:] = made[name][:10]
    order = [KINDS.index(kind) + 0.001 * i for i, kind in enumerate(made["kind"])]
    made |= {"same": made["a"], "flat": [7] * 60, "leak": order, "part": split}
    made["leak"][50:] = made["leak"][:10]
    reported = "\n".join(problems(load(write(tmp_path / "own.csv", made), "label=kind&split=part")))
    assert "columns with one value in all training rows: 'flat'" in reported
    assert "columns 'a' and 'same' are equal" in reported
    assert "alone determine the class of every training row: 'leak'" in reported
    assert "10 of 20 test rows are in the training rows as well" in reported


def test_classes_that_look_alike_and_those_that_cannot_be_tested_are_told(tmp_path):
    made = columns(kind=["cat", "cat ", "dog"] * 9 + ["Dog"] * 2 + ["eel"])
    reported = "\n".join(problems(load(write(tmp_path / "own.csv", made))))
    assert "'cat' and 'cat ' differ only in spaces" in reported
    assert "with one training row, never drawn for validation: 'Dog', 'eel'" in reported
    assert "without a test row, left out of every test score: 'eel'" in reported


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ("1", "1.0", "how a number is written"),
        ("001", "1", "how a number is written"),
        ("cafe\u0301", "café", "how letters are encoded"),
        ("Ant", "ant", "spaces or case"),
    ],
)
def test_classes_that_are_one_number_or_one_word_are_told(tmp_path, one, other, how):
    made = columns(kind=[one, other, "dog"] * 10)
    reported = problems(load(write(tmp_path / "own.csv", made)))
    assert f"classes {one!r} and {other!r} differ only in {how}" in reported


def test_a_label_column_without_a_repeated_value_is_refused(tmp_path):
    path = write(tmp_path / "own.csv", columns(kind=[f"row {i}" for i in range(30)]))
    with pytest.raises(BadData, match="check the label column"):
        load(path)
    pairs = write(tmp_path / "two.csv", columns(2, kind=["cat", "dog"]))
    with pytest.raises(BadData, match="nothing can be held out"):
        check_held_out(load(pairs))


def stored(path, **made):
    parquet.write_table(pa.table(made), path)
    return path


def test_labels_stored_as_bytes_are_the_texts_that_they_spell(tmp_path):
    kinds = [KINDS[i % 3].encode() for i in range(30)]
    found = load(stored(tmp_path / "own.parquet", a=columns()["a"], kind=kinds))
    assert found.class_names == KINDS
    kinds[4] = b"\xff\xfe"
    with pytest.raises(BadData, match=r"row 4, column 'kind': holds bytes that are not UTF-8"):
        load(stored(tmp_path / "odd.parquet", a=columns()["a"], kind=kinds))


def test_a_label_that_is_nan_is_a_missing_label_and_no_class(tmp_path):
    kinds = [float(i % 3) for i in range(30)]
    kinds[7] = float("nan")
    path = stored(tmp_path / "own.parquet", a=columns()["a"], kind=kinds)
    with pytest.raises(BadData, match=r"row 7, column 'kind': has no label \(1 rows like it\)"):
        load(path)


def test_a_label_of_spaces_is_a_missing_label_and_no_class(tmp_path):
    kinds = [KINDS[i % 3] for i in range(30)]
    kinds[7] = "  "
    with pytest.raises(BadData, match=r"row 7, column 'kind': has no label \(1 rows like it\)"):
        load(stored(tmp_path / "own.parquet", a=columns()["a"], kind=kinds))


@pytest.mark.parametrize("mark", ["NA", "null", "None", "?"])
def test_a_class_that_may_be_a_missing_label_is_told(tmp_path, mark):
    kinds = [mark if kind == "eel" else kind for kind in columns()["kind"]]
    reported = problems(load(write(tmp_path / "own.csv", columns(kind=kinds))))
    assert [said for said in reported if said.startswith("class '")] == [
        f"class '{mark}' may stand for rows without a label; if it does, leave these rows out",
    ]


def test_a_class_name_with_control_characters_is_told(tmp_path):
    kinds = ["cat\0" if kind == "cat" else kind for kind in columns()["kind"]]
    reported = problems(load(stored(tmp_path / "own.parquet", a=columns()["a"], kind=kinds)))
    (note,) = [said for said in reported if said.startswith("the name")]
    assert r"'cat\x00' has control characters" in note


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(2)])
def test_strings_stored_as_bytes_are_categories_and_texts_of_what_they_spell(tmp_path, kind):
    cells = pa.array([b"x%d" % (i % 4) for i in range(30)], type=kind)
    path = stored(tmp_path / "own.parquet", a=columns()["a"], s=cells, kind=columns()["kind"])
    assert set(load(path).whole.inputs["s"].ravel()) == {"x0", "x1", "x2", "x3"}
    assert set(load(path, "label=kind&text=s").whole.inputs) == {"x0", "x1", "x2", "x3"}
    odd = stored(tmp_path / "odd.parquet", s=[b"\xff"] * 30, kind=columns()["kind"])
    with pytest.raises(BadData, match=r"row 0, column 's': holds bytes that are not UTF-8"):
        load(odd, "label=kind&category=s")


def test_categories_of_pandas_are_categories_also_where_they_are_numbers(tmp_path):
    made = pa.table(columns(zone=[i % 4 for i in range(30)]))
    remark = {"columns": [{"name": "zone", "pandas_type": "categorical", "numpy_type": "int8"}]}
    path = tmp_path / "own.parquet"
    parquet.write_table(made, path)
    assert load(path).kind == "tensor"
    parquet.write_table(made.replace_schema_metadata({"pandas": json.dumps(remark)}), path)
    assert set(load(path).whole.inputs["zone"].ravel()) == {"0", "1", "2", "3"}


@pytest.mark.parametrize("value", [{"x": 1.0}, [[1.0, 2.0]]])
def test_cells_of_several_values_are_no_category(tmp_path, value):
    path = stored(tmp_path / "own.parquet", s=[value] * 30, kind=columns()["kind"])
    with pytest.raises(BadData, match=r"column 's': .*&without=s$"):
        load(path)
    with pytest.raises(BadData, match=r"row 0, column 's': holds several values; expected one"):
        load(path, "label=kind&category=s")


def test_a_mark_of_a_missing_number_is_told_to_be_an_empty_cell(tmp_path):
    made = columns()
    made["a"][4] = "?"
    with pytest.raises(BadData, match=r"'\?' is not a number; leave the cell empty if its number"):
        load(write(tmp_path / "own.csv", made))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,kind\n1,cat\n\n2,dog,3\n", "line 4: has 3 cells, and the first line names 2 columns"),
        ('a,kind\n"two\nlines",cat\n2\n', "line 4: has 1 cells, and the first line names 2"),
        ("a,kind", "has no rows"),
        ("a,kind\n", "has no rows"),
        ("0.5,cat\n0.7,dog\n", "the first line of the file must hold the names of its columns"),
    ],
)
def test_what_is_wrong_with_the_lines_of_a_file_is_told(tmp_path, text, said):
    path = tmp_path / "own.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((BadData, WrongUse), match=said):
        load(path)


def test_a_column_of_empty_lists_is_no_input(tmp_path):
    path = stored(tmp_path / "own.parquet", a=[[]] * 30, kind=columns()["kind"])
    with pytest.raises(BadData, match=r"column 'a': the list of row 0 is empty; .*&without=a"):
        load(path)
