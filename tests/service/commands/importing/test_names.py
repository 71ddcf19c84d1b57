"""Class names are read from the files that people have of them, and faults are named by their
place.
"""

import json

import pytest

from service.commands.importing.names import names_of_json, read_names, unique_names
from service.commands.importing.refusal import ImportRefused
from tests.support.foreign_models import named, save
from tests.support.small_models import CLASSES, linear_model

ABC = ["a", "b", "c"]


@pytest.mark.parametrize(
    "text",
    [
        "a\nb\nc\n",
        "a\r\nb\r\nc\r\n",
        "\ufeffa\nb\nc\n\n\n",
        json.dumps(ABC),
        json.dumps({"0": "a", "1": "b", "2": "c"}),
        json.dumps({"2": "c", "0": "a", "1": "b"}, indent=2),
        json.dumps({"a": 0, "c": 2, "b": 1}),
        json.dumps({"model_type": "bert", "id2label": {"0": "a", "1": "b", "2": "c"}}),
    ],
)
def test_names_come_as_lines_lists_and_objects_either_way_round(tmp_path, text):
    path = tmp_path / "names"
    path.write_bytes(text.encode())
    assert read_names(path, deduplicate=False) == ABC


@pytest.mark.parametrize("value", [{"0": "a", "2": "b"}, {"a": "b"}, [1, 2], [], {}, 7, "a"])
def test_what_is_no_list_of_names_is_none(value):
    assert names_of_json(value) is None


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([1, 2, 3], ["1", "2", "3"]),
        ([0.5, 1.0, "b"], ["0.5", "1.0", "b"]),
        ([False, True], ["false", "true"]),
        ({"0": 7, "1": 7.5}, ["7", "7.5"]),
        ({"1": 0, "2": 1, "0": 2}, ["1", "2", "0"]),  # from name to index, as Keras writes it
        ({"id2label": {"0": 3, "1": "x"}}, ["3", "x"]),
        ({"id2label": {"0": 1, "1": 2, "2": 0}}, ["1", "2", "0"]),  # always from index to name
    ],
)
def test_numbers_are_names_as_json_writes_them(import_file, tmp_path, value, wanted):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    assert read_names(path, deduplicate=False) == wanted
    model = linear_model(classes=len(wanted))
    model.metadata_props.add(key="labels", value=json.dumps(value))
    status, bundle, err = import_file(save(tmp_path, model))
    assert status == 0, err
    assert bundle.class_names == wanted


def test_a_line_break_in_a_name_does_not_break_the_line_that_shows_it(import_file, tmp_path):
    model = linear_model(classes=2)
    model.metadata_props.add(key="labels", value=json.dumps(["a\nnote     b", "c"]))
    status, bundle, err = import_file(save(tmp_path, model))
    assert (status, bundle.class_names[0]) == (0, "a\nnote     b")
    assert "classes  2, named by the file: 'a\\nnote     b', c\n" in err


def test_an_object_of_other_numbers_is_refused_with_the_forms_that_are_taken(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"1": "a", "2": "b"}), encoding="utf-8")
    with pytest.raises(ImportRefused, match=r"id2label.*class_indices.*0, 1, 2"):
        read_names(path, deduplicate=False)


def test_names_that_come_twice_are_named_with_their_lines(tmp_path):
    path = tmp_path / "imagenet.txt"
    names = [f"class {i}" for i in range(1000)]
    names[134] = names[517] = "crane"
    names[638] = names[639] = "maillot"
    path.write_text("\n".join(names), encoding="utf-8")
    with pytest.raises(ImportRefused) as refused:
        read_names(path, deduplicate=False)
    assert "line 135 and 518: 'crane'; line 639 and 640: 'maillot'" in str(refused.value)
    assert "--deduplicate" in str(refused.value)
    found = read_names(path, deduplicate=True)
    assert (found[134], found[517], found[638], found[639]) == (
        "crane",
        "crane (2)",
        "maillot",
        "maillot (2)",
    )
    assert len(set(found)) == 1000


def test_a_suffix_never_makes_a_name_that_is_there():
    found = unique_names(["a", "a (2)", "a", "a"], where="x", unit="line", deduplicate=True)
    assert found == ["a", "a (2)", "a (3)", "a (4)"]


def test_an_empty_name_is_told_by_its_line(tmp_path):
    path = tmp_path / "names"
    path.write_text("a\n\nc\n", encoding="utf-8")
    with pytest.raises(ImportRefused, match="line 2 is empty"):
        read_names(path, deduplicate=True)


def test_text_of_another_encoding_is_refused(tmp_path):
    path = tmp_path / "names"
    path.write_bytes("a\né\n".encode("latin-1"))
    with pytest.raises(ImportRefused, match="not UTF-8"):
        read_names(path, deduplicate=False)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("class_names", json.dumps({f"n{i}": i for i in range(CLASSES)})),
        ("character", "\n".join(f"n{i}" for i in range(CLASSES))),
        ("labels", ",".join(f"n{i}" for i in range(CLASSES))),
        ("id2label", json.dumps({i: f"n{i}" for i in range(CLASSES)})),
    ],
)
def test_names_in_the_metadata_come_in_the_same_forms(import_file, tmp_path, key, text):
    model = linear_model()
    entry = model.metadata_props.add()
    entry.key, entry.value = key, text
    status, bundle, _ = import_file(save(tmp_path, model))
    assert status == 0
    assert bundle.class_names == [f"n{i}" for i in range(CLASSES)]


def test_numbers_under_id2label_are_names_by_index(import_file, tmp_path):
    """They were taken for the indices of names, so that each answer had another class's name."""
    model = linear_model(classes=3)
    model.metadata_props.add(key="id2label", value=json.dumps({"0": 1, "1": 2, "2": 0}))
    status, bundle, err = import_file(save(tmp_path, model))
    assert status == 0, err
    assert bundle.class_names == ["1", "2", "0"]


def test_the_file_s_own_names_in_another_order_are_refused(import_file, tmp_path):
    """They were taken, and each answer had the name of another class."""
    model = linear_model(classes=3)
    model.metadata_props.add(key="labels", value=json.dumps(ABC))
    path = save(tmp_path, model)
    for given in (["c", "b", "a"], ["a", "c", "b"]):
        status, _, err = import_file(path, *named(tmp_path, given))
        assert (status, len(err.splitlines())) == (1, 1)
        assert "the file in another order: name " in err
        assert "Leave out --class-names" in err
    for given in (ABC, ["cat", "dog", "lynx"], ["c", "b", "d"]):
        status, bundle, err = import_file(path, *named(tmp_path, given))
        assert (status, bundle.class_names) == (0, given), err


def test_more_than_a_hundred_thousand_classes_are_imported(import_file, tmp_path):
    classes = 120_000
    path = save(tmp_path, linear_model(features=2, classes=classes))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"n{i}" for i in range(classes)), encoding="utf-8")
    status, bundle, _ = import_file(path, "--class-names", names)
    assert status == 0
    assert len(bundle.class_names) == classes
