"""A file that is not an ONNX classifier is refused with a message that says what to do."""

import gzip
import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
from onnx import helper

from service.graph.session import open_graph
from tests.support.foreign_models import save
from tests.support.small_models import CLASSES, FEATURES, linear_model, weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(list("abcde")), encoding="utf-8")
    return ["--class-names", path]


def zipped(data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model.onnx", data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: POINTER, "run `git lfs pull` there"),
        (lambda data: b"\n<!DOCTYPE html><html></html>", "a web page"),
        (gzip.compress, "unpack it with gunzip"),
        (zipped, "a zip archive"),
        (lambda data: b"", "empty: download or copy it again"),
        (lambda data: data[: len(data) // 2], "cut short (133 bytes could not be read"),
        (lambda data: bytes([32, 0, 0, 0]) + b"ORTM" + data, "give the .onnx file"),
    ],
    ids=["pointer", "page", "gzip", "zip", "empty", "cut", "ort"],
)
def test_another_file_in_the_place_of_a_model_is_named_with_the_remedy(
    import_file, names, tmp_path, change, message
):
    path = tmp_path / "model.onnx"
    path.write_bytes(change(linear_model().SerializeToString()))
    status, _, err = import_file(path, *names)
    assert (status, len(err.splitlines())) == (1, 1)
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: expected the file at"),
        (POINTER, "run `git lfs pull` there"),
        (bytes(10), "has 10 bytes, but 'w' ends at 120: the file is cut short"),
    ],
    ids=["missing", "pointer", "cut"],
)
def test_external_weights_that_are_not_there_are_named(
    import_file, names, tmp_path, content, message
):
    path = tmp_path / "model.onnx"
    onnx.save(
        linear_model(), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    (tmp_path / "weights").unlink()
    if content is not None:
        (tmp_path / "weights").write_bytes(content)
    status, _, err = import_file(path, *names)
    assert (status, len(err.splitlines())) == (1, 1)
    assert message in err


@pytest.mark.parametrize("length", ["1_20", "many", "9" * 5000])
def test_external_weights_whose_length_is_no_number_are_named(import_file, names, tmp_path, length):
    path = tmp_path / "model.onnx"
    onnx.save(
        linear_model(), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    model = onnx.load(path, load_external_data=False)
    next(
        each for each in model.graph.initializer[0].external_data if each.key == "length"
    ).value = length
    path.write_bytes(model.SerializeToString())
    status, _, err = import_file(path, *names)
    assert (status, len(err.splitlines())) == (1, 1)
    assert f"its length is '{length[:40]}'; expected a whole number" in err


@pytest.mark.parametrize(
    ("versions", "message"),
    [((99, 8), "its opset of ai.onnx is 99"), ((17, 99), "its ir_version is 99")],
)
def test_a_file_that_is_newer_than_the_runtime_is_told_with_what_it_takes(
    import_file, names, tmp_path, versions, message
):
    model = linear_model()
    model.opset_import[0].version, model.ir_version = versions
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    status, _, err = import_file(path, *names)
    assert (status, len(err.splitlines())) == (1, 1)
    assert message in err
    assert "export it with an older one" in err


@pytest.mark.parametrize("ir_version", [3, 8])
def test_a_file_of_opset_7_is_converted_whether_or_not_its_weights_are_inputs(
    import_file, names, tmp_path, ir_version
):
    model = linear_model()
    model.opset_import[0].version, model.ir_version = 7, ir_version
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    status, _, err = import_file(path, *names)
    assert status == 0, err
    assert "converted from opset 7" in err


def test_a_function_of_the_file_itself_survives_the_conversion(import_file, names, tmp_path):
    """onnx's converter drops functions, and then the calls look like operators of nobody."""
    model = linear_model()
    model.opset_import[0].version, model.ir_version = 11, 8
    own = helper.make_opsetid("own", 1)
    body = [helper.make_node("Identity", ["in"], ["out"])]
    model.functions.append(
        helper.make_function("own", "Same", ["in"], ["out"], body, [helper.make_opsetid("", 11)])
    )
    model.opset_import.append(own)
    output = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Same", [output], ["same"], domain="own"))
    model.graph.output[0].name = "same"
    status, bundle, err = import_file(save(tmp_path, model), *names)
    assert status == 0, err
    assert bundle.output.name == "same"


def test_half_a_character_in_a_class_name_is_told_with_its_place(import_file, tmp_path):
    path, names = tmp_path / "model.onnx", tmp_path / "names.json"
    path.write_bytes(linear_model().SerializeToString())
    held = [*(f"n{i}" for i in range(CLASSES - 1)), "\ud83d"]
    names.write_text(json.dumps(held), encoding="utf-8")
    status, _, err = import_file(path, "--class-names", names)
    assert (status, len(err.splitlines())) == (1, 1)
    assert f"entry {CLASSES} is '\\ud83d', which holds half of a character" in err


def test_half_a_character_among_the_files_own_names_is_told(import_file, tmp_path):
    model = linear_model()
    entry = model.metadata_props.add()
    entry.key = "class_names"
    entry.value = '["a", "b", "c", "d", "\\ud83d"]'
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    status, _, err = import_file(path)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "the names in it: entry 5 is '\\ud83d'" in err


def with_node(operator, domain):
    """A linear model behind an operator that onnxruntime does not have."""
    model = linear_model()
    model.graph.node[0].input[0] = "made"
    model.graph.node.insert(0, onnx.helper.make_node(operator, ["x"], ["made"], domain=domain))
    if domain:
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return model


@pytest.mark.parametrize(
    ("operator", "domain", "message"),
    [
        ("Fancy", "com.acme", "'Fancy' of the domain 'com.acme': export the model with standard"),
        ("Split", "ai.onnx.contrib", "those of onnxruntime-extensions, which tokenise texts"),
        ("Fancy", "", "'Fancy' in opset 20: export the model with a newer opset"),
    ],
)
def test_an_operator_that_onnxruntime_lacks_is_named_with_the_remedy(
    import_file, tmp_path, operator, domain, message
):
    onnx.save(with_node(operator, domain), tmp_path / "m.onnx")
    status, _, err = import_file(tmp_path / "m.onnx")
    assert (status, len(err.splitlines())) == (1, 1)
    assert message in err
    assert "ONNXRuntimeError" not in err


def test_a_file_of_opset_1_with_a_free_batch_axis_is_converted(import_file, names, tmp_path):
    model = linear_model(opset=1)
    model.ir_version = 3
    (gemm,) = model.graph.node
    gemm.attribute.append(onnx.helper.make_attribute("broadcast", 1))
    constants = [(t.name, list(t.dims)) for t in model.graph.initializer]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
        for name, dims in constants
    )
    onnx.save(model, tmp_path / "m.onnx")
    status, bundle, err = import_file(tmp_path / "m.onnx", *names)
    assert status == 0, err
    rows = np.random.default_rng(1).normal(size=(3, FEATURES)).astype(np.float32)
    graph = open_graph(tmp_path / "imported/m/1", bundle, provider="cpu")
    w, b = weights()
    np.testing.assert_allclose(logits(graph, rows), rows @ w + b, atol=1e-5)


def test_a_file_that_cannot_be_converted_is_told_without_places_in_the_converter(
    import_file, names, tmp_path
):
    model = linear_model(opset=0)
    onnx.save(model, tmp_path / "m.onnx")
    status, _, err = import_file(tmp_path / "m.onnx", *names)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "export the model again with a newer opset" in err
    assert "Assertion" not in err


def test_a_file_that_ends_the_converter_is_refused_with_the_remedy(
    import_file, names, tmp_path, monkeypatch
):
    onnx.save(linear_model(opset=9), tmp_path / "m.onnx")
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    run = subprocess.run

    def killed(_, **options):
        return run(command, **{**options, "input": None})

    monkeypatch.setattr("service.graph.converter.subprocess.run", killed)
    status, _, err = import_file(tmp_path / "m.onnx", *names)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "onnx's converter was ended by SIGSEGV): export the model again" in err


def logits(graph, rows):
    return graph.run(
        rows,
        tau=np.zeros(len(rows), np.float32),
        prior_index=np.zeros(len(rows), np.int64),
        prior_table=np.zeros((1, CLASSES), np.float32),
        top_k=1,
        full=True,
    ).logits


def test_a_pipe_is_refused_and_not_waited_for(import_file, tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    status, _, told = import_file(tmp_path / "pipe.onnx")
    assert status == 1
    assert "is a pipe, device or socket; expected an ONNX file" in told
