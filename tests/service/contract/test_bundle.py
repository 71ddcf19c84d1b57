"""The model folder: what model.json may say, that files match it, and atomic publication."""

import codecs
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from service.contract import bundle, publication
from service.contract.bundle import (
    InvalidBundle,
    check_model_name,
    class_digest,
    inside,
    load_bundle,
    models_of,
    parse_bundle,
    sha256_of,
    versions,
)
from service.contract.inputs.spec import InputSpec
from service.contract.members.named import SLICE
from service.contract.members.sparse import SPARSE_FROM
from service.contract.publication import publish

TENSOR = {"name": "x", "kind": "tensor", "shape": [None, 4], "dtype": "float32"}
IMAGE = {
    "name": "x",
    "kind": "image",
    "shape": [None, 3, 32, 24],
    "dtype": "float32",
    "size": [32, 24],
    "color": "RGB",
    "resize": "crop",
    "layout": "NCHW",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
}
FIELDS = {
    "class_names": ["cat", "dog"],
    "class_counts": [90, 10],
    "loss_tau": 0,
    "input": TENSOR,
    "output": {"name": "logits", "kind": "logits"},
}
WHOLE = {"format_version": 1, "name": "pets", "version": 1, **FIELDS, "files": {"model.onnx": "0"}}


COLUMNS = {
    "input": {"name": "columns", "kind": "columns", "shape": [None], "dtype": "record"},
    "inputs": [
        {"name": "age", "kind": "tensor", "shape": [None, 1], "dtype": "float32", "missing": True},
        {"name": "sex", "kind": "text", "shape": [None, 1], "dtype": "string"},
    ],
}
TEXT = {"name": "text", "kind": "text", "shape": [None], "dtype": "string"}
TOKENIZER = {"file": "tokenizer.json", "max_length": 128, "inputs": {"input_ids": "ids"}}
SCORES = {"name": "s", "kind": "scores", "calibration": {"scale": [2, 2], "bias": [0.5, -0.5]}}


def parsed(**changes):
    return parse_bundle(json.dumps(WHOLE | changes))


def image(**changes):
    return {key: value for key, value in (IMAGE | changes).items() if value is not ...}


def write_model(folder, content=b"graph"):
    (folder / "model.onnx").write_bytes(content)


def published(tmp_path, name="pets", write_files=write_model, **changes):
    return publish(tmp_path, name, fields=FIELDS | changes, write_files=write_files)


@pytest.mark.parametrize(
    ("shape", "may_be"),
    [
        ([None, 3, 32, 32], True),
        ([None, 32, 32, 1], True),
        ([None, 3, 3, 3], True),
        ([None, 3, 1, 32], False),
        ([None, 8, 8, 8], False),
        ([None, 64], False),
    ],
)
def test_a_tensor_that_may_be_pixels_has_one_or_three_channels(shape, may_be):
    spec = InputSpec(name="x", kind="tensor", shape=shape, dtype="float32")
    assert spec.may_be_pixels == may_be


def test_only_a_tensor_may_be_pixels():
    spec = InputSpec(name="x", kind="text", shape=[None], dtype="string")
    assert not spec.may_be_pixels


def test_a_published_folder_loads_as_what_was_published(tmp_path):
    folder = published(tmp_path, temperature=1.5, provenance={"seed": 0})
    assert folder == tmp_path / "pets" / "1"
    loaded = load_bundle(folder)
    assert (loaded.name, loaded.version, loaded.temperature) == ("pets", 1, 1.5)
    assert loaded.files == {"model.onnx": sha256_of(folder / "model.onnx")}
    assert loaded.provenance == {"seed": 0}


def test_a_manifest_may_begin_with_a_byte_order_mark(tmp_path):
    folder = published(tmp_path)
    manifest = folder / "model.json"
    plain = load_bundle(folder)
    manifest.write_bytes(codecs.BOM_UTF8 + manifest.read_bytes())
    assert load_bundle(folder) == plain


def test_each_publication_is_the_next_version_and_leaves_nothing_else(tmp_path):
    for expected in ("1", "2", "3"):
        assert published(tmp_path).name == expected
    assert sorted(p.name for p in (tmp_path / "pets").iterdir()) == ["1", "2", "3"]
    assert versions(tmp_path / "pets") == [1, 2, 3]
    assert versions(tmp_path / "nobody") == []


def test_what_is_not_a_version_is_not_counted(tmp_path):
    for name in ("007", "0", "x", ".tmp-1", "9"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    (tmp_path / "pets" / "12").write_text("a file")
    assert versions(tmp_path / "pets") == [9]


def test_a_stray_file_with_the_next_number_is_stepped_over(tmp_path):
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "1").write_text("a file")
    assert published(tmp_path).name == "2"


@pytest.mark.parametrize("copied", [False, True])
def test_a_full_disk_names_the_model_s_folder_and_leaves_no_version(tmp_path, copied):
    (tmp_path / "source.onnx").write_bytes(b"a graph")

    def fill_the_disk(_folder):
        if copied:
            shutil.copyfile(tmp_path / "source.onnx", "/dev/full")
        with Path("/dev/full").open("wb") as file:
            file.write(b"a graph")

    with pytest.raises(OSError, match=r"No space left on device: '[^']*/pets'$"):
        published(tmp_path, write_files=fill_the_disk)
    assert list((tmp_path / "pets").iterdir()) == []


def test_a_version_that_somebody_else_publishes_meanwhile_is_stepped_over(tmp_path, monkeypatch):
    real = publication._sync
    others = iter([True])

    def sync_while_another_publishes(staging, payload):
        real(staging, payload)
        if next(others, False):
            published(tmp_path)

    monkeypatch.setattr(publication, "_sync", sync_while_another_publishes)
    folder = published(tmp_path)
    assert folder.name == "2"
    assert load_bundle(folder).version == 2
    assert load_bundle(tmp_path / "pets" / "1").version == 1


def test_a_rename_that_fails_for_another_reason_is_told(tmp_path, monkeypatch):
    def refuse(staging, payload):
        (tmp_path / "pets").rename(tmp_path / "moved")

    monkeypatch.setattr(publication, "_sync", refuse)
    with pytest.raises(FileNotFoundError):
        published(tmp_path)


def test_nothing_is_published_when_writing_the_files_fails(tmp_path):
    def fail(folder):
        write_model(folder)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        published(tmp_path, write_files=fail)
    assert list((tmp_path / "pets").iterdir()) == []


def test_a_model_may_have_several_inputs_texts_tokens_and_decision_scores():
    found = parsed(**COLUMNS)
    assert [column.name for column in found.input.columns] == ["age", "sex"]
    assert parsed().input.columns == ()
    assert parsed(input=TEXT | {"tokenizer": TOKENIZER}).input.tokenizer.max_length == 128
    assert parsed(input=TEXT | {"missing": True}).input.missing
    assert parsed(output=SCORES, max_batch_rows=1).max_batch_rows == 1


def test_every_kind_of_output_becomes_logits():
    values = np.array([[0.25, 0.75], [0, 1]], np.float32)
    logits = parsed().output.logits(values)
    np.testing.assert_array_equal(logits, values)
    probabilities = parsed(output={"name": "p", "kind": "probabilities"}).output.logits(values)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities[0], np.log([0.25, 0.75]), rtol=1e-6)
    scores = parsed(output=SCORES).output.logits(values)
    np.testing.assert_allclose(scores, 2 * values + np.array([0.5, -0.5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"loss_tau": -1}, "loss_tau"), ({"extra": 1}, "extra: unknown member")],
)
def test_wrong_fields_are_refused_before_anything_is_published(tmp_path, changes, message):
    with pytest.raises(InvalidBundle, match=message):
        published(tmp_path, **changes)
    assert versions(tmp_path / "pets") == []


def test_external_data_is_verified_too_and_reports_are_not(tmp_path):
    def write(folder):
        write_model(folder)
        (folder / "weights").mkdir()
        (folder / "weights" / "data.bin").write_bytes(b"weights")
        (folder / "report.html").write_text("good")

    folder = published(tmp_path, write_files=write)
    assert set(load_bundle(folder).files) == {"model.onnx", "weights/data.bin"}
    (folder / "report.html").write_text("better")
    load_bundle(folder)
    (folder / "weights" / "data.bin").write_bytes(b"others!")
    with pytest.raises(InvalidBundle, match=r"data\.bin: its sha256 is not"):
        load_bundle(folder)


def test_a_manifest_that_is_missing_no_file_or_oversized_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InvalidBundle, match=r"has no model\.json; publish the model with"):
        load_bundle(tmp_path)
    os.mkfifo(tmp_path / "model.json")
    with pytest.raises(InvalidBundle, match=r"model\.json: not a file"):
        load_bundle(tmp_path)
    folder = published(tmp_path)
    monkeypatch.setattr(bundle, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(InvalidBundle, match="larger than 10 bytes"):
        load_bundle(folder)


def test_a_folder_that_was_moved_to_another_path_is_refused(tmp_path):
    folder = published(tmp_path)
    folder.rename(tmp_path / "pets" / "5")
    with pytest.raises(InvalidBundle, match="names pets version 1, but is in the folder pets/5"):
        load_bundle(tmp_path / "pets" / "5")


def test_a_file_outside_the_folder_is_refused_by_path_and_by_link(tmp_path):
    folder = published(tmp_path)
    (tmp_path / "secret").write_text("s")
    (folder / "link").symlink_to(tmp_path / "secret")
    for name in ("../../secret", "link", str(tmp_path / "secret")):
        with pytest.raises(InvalidBundle, match="leaves the folder"):
            inside(folder, name)
    with pytest.raises(InvalidBundle, match="is missing"):
        inside(folder, "absent.bin")
    assert inside(folder, "model.onnx") == (folder / "model.onnx").resolve()


@pytest.mark.parametrize(
    ("changes", "tau"),
    [
        ({}, 1.0),
        ({"class_counts": None}, 0.0),
        ({"class_counts": None, "loss_tau": 1}, 1.0),
        ({"default_tau": 0.5}, 0.5),
        ({"default_tau": 0}, 0.0),
    ],
)
def test_the_default_tau_is_one_unless_the_source_prior_is_unknown(changes, tau):
    assert parsed(**changes).tau == tau


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"class_counts": None, "default_tau": 1},
            "default_tau is 1; expected 0, since class_counts is null",
        ),
        ({"default_tau": 1e-9}, "default_tau is 1e-09; expected 0 or at least 1e-06"),
        ({"class_names": ["cat", "cat"]}, "class_names has 'cat' twice"),
        ({"class_names": ["cat", ""]}, "class_names has an empty name"),
        ({"class_names": ["cat"], "class_counts": [1]}, "class_names"),
        (
            {"class_counts": [1, 2, 3]},
            "class_counts has 3 entries; expected 2, as many as class_names",
        ),
        ({"class_counts": [1, 0]}, "greater than 0"),
        ({"name": "../pets"}, "is not a model name"),
        ({"files": {}}, r"files does not name model\.onnx"),
        ({"format_version": 2}, "format_version"),
        ({"temperature": 0}, "temperature"),
        ({"input": TENSOR | {"dtype": "complex64"}}, "dtype: .*expected one of float16"),
        ({"input": TENSOR | {"shape": []}}, "shape"),
        ({"input": TENSOR | {"color": "L"}}, "is only for kind 'image', not 'tensor'"),
        (
            {"input": TENSOR | {"dtype": "string"}},
            "kind 'text' and dtype 'string' must be used together",
        ),
        ({"input": TENSOR | {"kind": "text"}}, "must be used together"),
        ({"input": image(size=...)}, "needs size, color, resize and layout"),
        (
            {"input": image(mean=[0.5])},
            "mean has 1 entries; expected 3, one for each channel of color 'RGB'",
        ),
        (
            {"input": image(color="L")},
            "mean has 3 entries; expected 1, one for each channel of color 'L'",
        ),
        ({"input": image(dtype="uint8")}, "mean and std need a float dtype"),
        ({"input": image(shape=[None, 32, 24, 3])}, "as size, color and layout say"),
        ({"input": image(shape=[None, 3, 32])}, "as size, color and layout say"),
        ({"input": image(std=[0.2, 0.2, 0])}, "greater than 0"),
        ({"input": TENSOR | {"dtype": "int64", "missing": True}}, "missing needs a float dtype"),
        ({"input": TENSOR | {"tokenizer": TOKENIZER}}, "tokenizer is only for kind 'text'"),
        (
            {"input": TENSOR | {"dtype": "record"}},
            "kind 'columns' and dtype 'record' must be used together",
        ),
        ({"input": COLUMNS["input"]}, r"input\.kind 'columns' and inputs must be used together"),
        ({"inputs": COLUMNS["inputs"]}, r"input\.kind 'columns' and inputs must be used together"),
        (COLUMNS | {"inputs": [COLUMNS["inputs"][0], image()]}, "'x' is image; expected tensor"),
        (COLUMNS | {"inputs": COLUMNS["inputs"][:1] * 2}, "inputs has a name twice: age, age"),
        (
            {"output": SCORES | {"kind": "logits"}},
            "kind 'scores' and calibration must be used together",
        ),
        (
            {"output": {"name": "s", "kind": "scores"}},
            "kind 'scores' and calibration must be used together",
        ),
        (
            {"class_names": ["a", "b", "c"], "class_counts": None, "output": SCORES},
            "needs 3 entries",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_with_the_reason(changes, message):
    with pytest.raises(InvalidBundle, match=message):
        parsed(**changes)


@pytest.mark.parametrize(
    "spec",
    [
        image(),
        image(layout="NHWC", shape=[1, 32, 24, 3]),
        image(shape=[None, None, None, None]),
        image(dtype="uint8", mean=None, std=None),
        image(mean=..., std=..., resize=36),
        {"name": "text", "kind": "text", "shape": [None], "dtype": "string"},
    ],
)
def test_a_consistent_input_is_accepted(spec):
    assert parsed(input=spec).input.kind == spec["kind"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff\xfe", '{"temperature": NaN}'])
def test_a_manifest_that_is_no_json_object_is_refused(text):
    with pytest.raises(InvalidBundle, match=r"^here: "):
        parse_bundle(text, where="here")


def test_every_wrong_field_of_a_manifest_is_named():
    with pytest.raises(InvalidBundle) as caught:
        parse_bundle(json.dumps({"loss_tau": "x", "surprise": 1}))
    for part in ("format_version: missing", "loss_tau", "surprise: unknown member"):
        assert part in str(caught.value)


def test_a_message_names_the_first_faults_of_many():
    names = [f"c{at}" for at in range(30_000)]
    with pytest.raises(InvalidBundle) as refused:
        parsed(class_names=names, class_counts=[0] * len(names))
    assert "and 29980 more faults" in str(refused.value)
    assert len(str(refused.value)) < 3000


def test_the_digest_of_classes_knows_their_order_and_borders():
    assert parsed().class_digest == class_digest(["cat", "dog"])
    assert len({class_digest(names) for names in (["a", "b"], ["b", "a"], ["ab"], ["a,b"])}) == 4


def test_what_is_worked_out_when_a_model_is_loaded_is_not_worked_out_again(monkeypatch):
    classes = SPARSE_FROM
    names = [f"class {number}" for number in range(classes)]
    made = parsed(class_names=names, class_counts=[1] * classes)
    made.work_out()
    expected = class_digest(names)

    def again(*_, **__):
        raise AssertionError

    monkeypatch.setattr(bundle, "class_digest", again)
    monkeypatch.setattr(bundle, "own_source", again)
    assert made.class_digest == expected
    assert made.own_source is not None


@pytest.mark.parametrize("classes", [1, SLICE, 2 * SLICE + 3])
def test_the_digest_is_that_of_the_whole_list_as_json(classes):
    """Stores hold the digests of earlier versions."""
    names = [f'é "{n}"' for n in range(classes)]
    text = json.dumps(names, ensure_ascii=False)
    assert class_digest(names) == hashlib.sha256(text.encode()).hexdigest()


def test_a_model_name_is_one_that_a_folder_a_url_and_a_label_can_carry():
    assert check_model_name("Fashion-mnist_2.b") == "Fashion-mnist_2.b"
    for bad in ("", ".hidden", "a/b", "a b", "x" * 65, "é", "a\n"):
        with pytest.raises(ValueError, match="is not a model name"):
            check_model_name(bad)


BLOCK = {
    "version": 1,
    "calibration": "bias",
    "temperature": 1.5,
    "bias": [0.1, -0.1],
    "source_prior": [0.8, 0.2],
    "validation": {"rows": 60, "class_counts": [30, 30]},
}


def test_a_bundle_without_an_estimation_block_is_adjusted_with_its_counts():
    assert parsed().estimation is None
    assert parsed().calibrated_log_source is None


def test_an_estimation_block_gives_the_source_prior_that_is_adjusted_with():
    found = parsed(temperature=1.5, estimation=BLOCK)
    assert found.calibrated_log_source is found.estimation.log_source
    plain = found.without_calibrated_source()
    assert plain.calibrated_log_source is None
    assert plain.estimation is found.estimation
    assert found.calibrated_log_source is not None


def test_a_block_that_lacks_a_class_is_not_adjusted_with():
    lacking = BLOCK | {"validation": {"rows": 30, "class_counts": [30, 0]}}
    assert parsed(temperature=1.5, estimation=lacking).calibrated_log_source is None


def test_a_block_makes_unknown_counts_adjustable():
    assert parsed(class_counts=None).tau == 0
    assert parsed(class_counts=None, temperature=1.5, estimation=BLOCK).tau == 1


def test_a_block_of_other_classes_or_another_temperature_is_refused():
    with pytest.raises(
        InvalidBundle, match="estimation has 2 classes, class_names 3; calibrate the model again"
    ):
        parsed(class_names=["a", "b", "c"], class_counts=None, temperature=1.5, estimation=BLOCK)
    with pytest.raises(InvalidBundle, match=r"estimation.temperature is 1.5, and temperature 1"):
        parsed(estimation=BLOCK)


@pytest.mark.parametrize(
    "text", ['{"name": "a", "name": "b"}', '{"input": {"name": "x", "name": "y"}}']
)
def test_a_member_that_comes_twice_is_refused_by_its_name(text):
    with pytest.raises(InvalidBundle, match=r"model\.json: 'name' occurs twice"):
        parse_bundle(text)


def test_text_that_is_nested_too_deeply_is_refused():
    with pytest.raises(InvalidBundle, match=r"model\.json"):
        parse_bundle('{"provenance": ' + "[" * 100_000 + "]" * 100_000 + "}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [1, 2]}, "categories need texts or whole numbers, not 'float32'"),
        (
            {"dtype": "int64", "statistics": {"mean": [0.0], "sd": [1.0], "rows": 9}},
            "statistics need a float dtype, not 'int64'",
        ),
        (
            {"statistics": {"mean": [0.0], "sd": [1.0, 2.0], "rows": 9}},
            "mean has 1 entries and sd 2",
        ),
    ],
)
def test_what_belongs_to_another_type_of_input_is_refused(changes, message):
    with pytest.raises(InvalidBundle, match=message):
        parsed(input=TENSOR | changes)


@pytest.mark.parametrize(
    ("provenance", "names"),
    [
        ({"data": {"columns": ["age", "fare"]}}, ["age", "fare"]),
        ({"data": {"columns": []}}, None),
        ({"data": {"columns": [1]}}, None),
        ({"data": {"columns": "age"}}, None),
        ({"data": "table"}, None),
        ({}, None),
    ],
)
def test_the_columns_of_a_row_are_those_of_training(provenance, names):
    assert parsed(provenance=provenance).column_names == names


def test_a_folder_that_cannot_be_listed_is_not_taken_for_one_without_versions(tmp_path):
    assert versions(tmp_path / "gone") == []
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        versions(tmp_path / "loop")


def test_a_folder_of_models_tells_what_it_holds_and_what_cannot_be_listed(tmp_path):
    published(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("loop", "lost+found"):  # the latter is no name of a model
        (tmp_path / name).symlink_to(name)
    there, unreadable = models_of(tmp_path)
    assert there == {"pets": [1]}
    assert list(unreadable) == ["loop"]
    assert unreadable["loop"].endswith("expected a folder that this user can read")
    assert models_of(tmp_path / "gone") == models_of(tmp_path / "loop") == ({}, {})


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, monkeypatch):
    folder = published(tmp_path)

    def denied(_path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(bundle, "sha256_of", denied)
    with pytest.raises(
        InvalidBundle, match=r"model\.onnx: Permission denied; expected a file that this user can"
    ):
        load_bundle(folder)


def test_the_columns_of_several_inputs_are_their_names():
    assert parsed(**COLUMNS).column_names == ["age", "sex"]


def test_links_that_lead_nowhere_and_files_in_their_place_are_no_folders_of_versions(tmp_path):
    (tmp_path / "file").write_text("")
    assert versions(tmp_path / "file") == []
    (tmp_path / "mounted").symlink_to("/nowhere/mounted")
    with pytest.raises(FileNotFoundError):
        versions(tmp_path / "mounted")
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear" / "2").symlink_to("2")
    assert versions(tmp_path / "linear") == [2]
    with pytest.raises(InvalidBundle, match="2: a link to '2', which leads to no folder; link it"):
        load_bundle(tmp_path / "linear" / "2")


def test_a_version_without_a_model_json_or_with_a_link_in_its_place_says_so(tmp_path):
    folder = tmp_path / "linear" / "1"
    folder.mkdir(parents=True)
    with pytest.raises(
        InvalidBundle, match=r"linear/1: has no model\.json; publish the model with"
    ):
        load_bundle(folder)
    (folder / "model.json").symlink_to("model.json")
    with pytest.raises(InvalidBundle, match=r"model\.json: Too many levels of symbolic links; exp"):
        load_bundle(folder)


def test_parts_of_a_model_that_lie_in_no_version_are_found(tmp_path):
    for part in ("linear/1", "linear/v2", "direct", ".new/1", "linear/.3-new"):
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        for name in ("model.json", "model.onnx"):
            (tmp_path / part / name).write_text("")
    direct, other = tmp_path / "direct", tmp_path / "linear" / "v2"
    misplaced = [
        f"'{direct / name}' is in the folder of no version; expected '{direct / '1' / name}'"
        for name in ("model.json", "model.onnx")
    ]
    misnamed = f"'{other}' is not named as a version is; expected 1, 2, 3 …"
    assert bundle.misplaced(tmp_path) == [misplaced[0], misnamed, misplaced[1]]
