"""The exported file answers what the service answers, bit by bit, in any runtime."""

import json
import os

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.__main__ import main
from service.contract.adjustment import softmax
from tests.support.foreign_models import external_data, named
from tests.support.server import running
from tests.support.small_models import (
    CLASSES,
    FEATURES,
    inputs,
    linear_model,
    publish_model,
    weights,
)
from tests.support.table_models import CLASSES as ANSWERS
from tests.support.table_models import ROWS, table_model, table_probabilities

PRIOR = {"label_frequencies": [50, 20, 10, 5, 1], "target": [1, 2, 3, 4, 5]}


@pytest.fixture
def export(tmp_path, capsys):
    def call(*arguments, out="out/model.onnx"):
        status = main(["export", *map(str, arguments), "--out", str(tmp_path / out)])
        return status, tmp_path / out, capsys.readouterr().err

    return call


def run(path, **feeds):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def write(folder, prior):
    # as PowerShell writes it, with a byte order mark
    (folder / "prior.json").write_text(json.dumps(prior), encoding="utf-8-sig")
    return folder / "prior.json"


@pytest.mark.parametrize("tau", [0, 0.37, 1, 2])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_file_holds_the_formula(tmp_path, export, tau, temperature):
    folder = publish_model(tmp_path / "models", temperature=temperature).parent
    status, path, err = export(folder, "--prior", write(tmp_path, PRIOR), "--tau", tau)
    assert status == 0, err
    x = inputs(9)
    found = run(path, x=x)
    w, b = weights()
    source, target = (np.array(PRIOR[k]) / sum(PRIOR[k]) for k in ("label_frequencies", "target"))
    logits = (x.astype(np.float64) @ w + b) / temperature
    wanted = softmax(logits + tau * (np.log(target) - np.log(source)))
    np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-6)
    np.testing.assert_array_equal(found["class_index"][:, 0], wanted.argmax(axis=1))
    np.testing.assert_allclose(found["class_probability"][:, 0], wanted.max(axis=1), atol=1e-6)
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize(
    ("members", "note"),
    [
        ({"costs": {"reject": 0.2}}, "the caller must decide by cost"),
        ({"context": {"site": {"north": "winter"}}}, "not those that it leads to"),
    ],
)
def test_what_the_file_cannot_hold_of_a_prior_is_noted(tmp_path, export, members, note):
    folder = publish_model(tmp_path / "models").parent
    status, _, err = export(folder, "--prior", write(tmp_path, {**PRIOR, **members}))
    assert (status, note in err) == (0, True), err
    _, _, plain = export(folder, "--prior", write(tmp_path, PRIOR))
    assert note not in plain


def test_the_file_equals_the_service_bit_by_bit_under_a_stored_prior(tmp_path, export):
    models, store = tmp_path / "models", f"sqlite:///{tmp_path}/priors.db"
    publish_model(models)
    x = inputs(7)
    with running(models, store=store) as server:
        for prior in ({"target": [5, 4, 3, 2, 1]}, PRIOR):
            assert httpx.put(f"{server.url}/priors/night", json=prior).status_code < 300
        tensor = {
            "name": "x",
            "datatype": "FP32",
            "shape": [7, FEATURES],
            "data": x.ravel().tolist(),
        }
        wanted = {}
        for reference in ("night", "night@1", "training", "default"):
            parameters = {"tau": 0.7, "prior": reference}
            body = {"inputs": [tensor], "parameters": parameters}
            answer = httpx.post(f"{server.url}/v2/models/linear/infer", json=body)
            wanted[reference] = answer.json()["outputs"][0]["data"]
    for reference, values in wanted.items():
        arguments = (models / "linear", "--prior", reference, "--tau", 0.7, "--store", store)
        status, path, err = export(*arguments)
        assert status == 0, err
        found = run(path, x=x)["probabilities"]
        assert found.ravel().tolist() == np.array(values, np.float32).tolist()
    status, _, err = export(models / "linear", "--prior", "noon", "--store", store)
    assert (status, "no prior 'noon' of model 'linear'" in err) == (2, True)


def test_tau_and_the_shift_may_be_inputs_with_defaults(tmp_path, export):
    folder = publish_model(tmp_path / "models").parent
    prior = write(tmp_path, PRIOR)
    _, fixed, _ = export(folder, "--prior", prior, "--tau", 1, out="fixed.onnx")
    status, path, err = export(folder, "--prior", prior, "--tau", 1, "--inputs")
    assert status == 0, err
    assert "tau [1], log_prior_shift [classes]" in err
    x = inputs(4)
    wanted = run(fixed, x=x)["probabilities"]
    np.testing.assert_array_equal(run(path, x=x)["probabilities"], wanted)
    w, b = weights()
    plain = run(path, x=x, tau=np.zeros(1, np.float32))["probabilities"]
    np.testing.assert_allclose(plain, softmax(x.astype(np.float64) @ w + b), atol=1e-6)
    shifted = run(path, x=x, log_prior_shift=np.zeros(CLASSES, np.float32))["probabilities"]
    np.testing.assert_array_equal(shifted, plain)


def test_inputs_have_defaults_in_a_file_of_the_oldest_format_too(tmp_path, export):
    """CatBoost writes format 3, in which defaults would be constants."""
    model = linear_model()
    model.ir_version = 3
    folder = publish_model(tmp_path / "models", model=model).parent
    status, path, err = export(folder, "--prior", write(tmp_path, PRIOR), "--tau", 1, "--inputs")
    assert status == 0, err
    x = inputs(4)
    w, b = weights()
    plain = run(path, x=x, tau=np.zeros(1, np.float32))["probabilities"]
    np.testing.assert_allclose(plain, softmax(x.astype(np.float64) @ w + b), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "out", "words"),
    [
        ("classes.txt", "classes.txt", "exists and is not an .onnx file; name another file"),
        ("labels.txt", "m.onnx", "with other labels; export into another folder"),
    ],
)
def test_a_file_of_another_kind_is_not_replaced(tmp_path, export, name, out, words):
    folder = publish_model(tmp_path / "models").parent
    (tmp_path / name).write_text("a\nb\n")
    status, _, err = export(folder, "--prior", "training", out=out)
    assert (status, words in err) == (2, True), err
    assert (tmp_path / name).read_text() == "a\nb\n"


def test_a_link_that_leads_to_itself_is_refused(tmp_path, export):
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    status, _, err = export(publish_model(tmp_path / "models").parent, out="loop.onnx")
    assert (status, "a link that leads to itself; name another file" in err) == (2, True), err


def test_a_version_that_is_a_link_to_itself_is_told(tmp_path, export):
    folder = publish_model(tmp_path / "models").parent
    (folder / "2").symlink_to("2")
    status, _, err = export(folder)
    assert (status, "a link to '2', which leads to no folder" in err) == (1, True), err


def test_what_the_system_refuses_is_told_with_the_place_and_what_to_do(tmp_path, export):
    (tmp_path / "file").write_text("")
    status, _, err = export(publish_model(tmp_path / "models").parent, out="file/m.onnx")
    assert status == 1
    assert f"priordial: {tmp_path}/file" in err
    assert "name another path, or change who may use this one" in err


def test_triton_gets_its_configuration_and_the_labels(tmp_path, export):
    folder = publish_model(tmp_path / "models").parent
    _, path, _ = export(folder, "--prior", "training")
    config = (path.parent / "config.pbtxt").read_text(encoding="utf-8")
    assert "max_batch_size: 64" in config
    assert f'name: "x"  data_type: TYPE_FP32  dims: [ {FEATURES} ]' in config
    assert f'name: "probabilities"  data_type: TYPE_FP32  dims: [ {CLASSES} ]' in config
    labels = (path.parent / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == [f"class-{i}" for i in range(CLASSES)]
    export(folder, "--prior", "training", "--inputs")
    config = (path.parent / "config.pbtxt").read_text(encoding="utf-8")
    assert "max_batch_size: 0" in config
    assert 'name: "tau"  data_type: TYPE_FP32  dims: [ 1 ]  optional: true' in config


def test_external_data_goes_along(tmp_path, export):
    item = external_data(tmp_path)
    models = str(tmp_path / "models")
    assert main(["import", str(item.path), "--name", "big", "--models", models, *item.flags]) == 0
    status, path, err = export(tmp_path / "models" / "big" / "1", "--tau", 0)
    assert status == 0, err
    found = run(path, x=np.array(item.instances, np.float32))["probabilities"]
    np.testing.assert_allclose(found, item.probabilities, atol=1e-6)


def test_a_model_of_several_inputs_keeps_them(tmp_path, export):
    path = tmp_path / "table.onnx"
    path.write_bytes(table_model().SerializeToString())
    arguments = ["--name", "table", "--models", str(tmp_path / "models"), *named(tmp_path, ANSWERS)]
    assert main(["import", str(path), *arguments]) == 0
    status, out, err = export(tmp_path / "models" / "table", "--tau", 0)
    assert status == 0, err
    feeds = {
        "age": np.array([[row["age"]] for row in ROWS], np.float32),
        "fare": np.array([[row["fare"]] for row in ROWS], np.float32),
        "sex": np.array([[row["sex"]] for row in ROWS], object),
    }
    np.testing.assert_allclose(run(out, **feeds)["probabilities"], table_probabilities(), atol=1e-6)


def test_texts_whose_locale_is_not_installed_here_are_exported_with_a_note(tmp_path, export):
    make, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("StringNormalizer", ["x"], ["low"], case_change_action="LOWER", locale="xx_XX.UTF-8"),
        make(
            "LabelEncoder",
            ["low"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=["lynx", "hare"],
            values_floats=[1.0, 2.0],
            default_float=0.0,
        ),
        make("Reshape", ["code", "column"], ["row"]),
        make("MatMul", ["row", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "texts",
        [value("x", TensorProto.STRING, ["n"])],
        [value("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [
            numpy_helper.from_array(np.array([-1, 1]), "column"),
            numpy_helper.from_array(np.arange(CLASSES, dtype=np.float32)[np.newaxis], "w"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    spec = {"name": "x", "kind": "text", "shape": [None], "dtype": "string"}
    folder = publish_model(tmp_path / "models", model=model, input=spec).parent
    status, path, err = export(folder, "--prior", write(tmp_path, PRIOR), "--tau", 1)
    assert status == 0, err
    assert "note     the file asks for a locale that is not installed here" in err
    asks = {a.name: a.s for a in onnx.load(path).graph.node[0].attribute}
    assert asks["locale"] == b"xx_XX.UTF-8"


def test_a_name_that_the_model_has_itself_is_not_taken(tmp_path, export):
    model = linear_model()
    for node in model.graph.node:
        node.input[0] = "tau"
    model.graph.input[0].name = "tau"
    spec = {"name": "tau", "kind": "tensor", "shape": [None, FEATURES], "dtype": "float32"}
    folder = publish_model(tmp_path / "models", model=model, input=spec).parent
    status, path, err = export(folder, "--prior", "training", "--inputs")
    assert status == 0, err
    assert [i.name for i in onnx.load(path).graph.input] == ["tau", "tau_2", "log_prior_shift"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--tau", 0.5), 2, "the label frequencies of 'linear' are unknown"),
        (("--tau", -1), 2, "tau"),
        (("--prior", "a@b@c"), 2, "is not a prior"),
        (
            ("--prior", "missing.json"),
            1,
            "priordial: --prior missing.json: No such file or directory",
        ),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(tmp_path, export, arguments, status, message):
    folder = publish_model(tmp_path / "models", class_counts=None).parent
    store = ("--store", f"sqlite:///{tmp_path}/none.db")
    found, path, err = export(folder, *arguments, *store)
    assert (found, message in err, len(err.splitlines())) == (status, True, 1), err
    assert not path.exists()
    assert export(tmp_path / "nowhere")[0] == 2


@pytest.mark.parametrize("name", ["model.onnx", "other.onnx", "", "linear"])
def test_a_published_model_is_never_written_over(tmp_path, capsys, name):
    folder = publish_model(tmp_path / "models").parent
    place = tmp_path if name == "linear" else folder / "1"
    before = {each.name: each.read_bytes() for each in (folder / "1").iterdir()}
    (tmp_path / "linear").mkdir()
    assert main(["export", str(folder), "--out", str(place / name)]) == 2
    told = capsys.readouterr().err
    assert "which is a folder" in told or "of a published model, which is never edited" in told
    assert {each.name: each.read_bytes() for each in (folder / "1").iterdir()} == before


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path, capsys):
    folder = publish_model(tmp_path / "models").parent
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main(["export", str(folder), "--out", str(pipe)]) == 2
    assert "a pipe, device or socket; expected the name of a file" in capsys.readouterr().err
    assert pipe.is_fifo()
    assert [each.name for each in tmp_path.iterdir() if each.name != "models"] == ["pipe"]


def test_a_link_stays_and_the_file_behind_it_is_written(tmp_path):
    folder = publish_model(tmp_path / "models").parent
    place, link = tmp_path / "place.onnx", tmp_path / "link.onnx"
    place.write_bytes(b"")
    link.symlink_to(place)
    assert main(["export", str(folder), "--out", str(link)]) == 0
    assert link.is_symlink()
    assert onnx.load(place).graph.output
