"""Any ONNX classifier can be imported and is served with its own library's answers, adjustable."""

import asyncio
import json

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper

from service.__main__ import main
from service.contract.adjustment import softmax
from service.contract.bundle import load_bundle, versions
from tests.support import foreign_models
from tests.support.foreign_models import BUILDERS, COUNTS, NAMES, named, save, write_counts
from tests.support.server import running
from tests.support.small_models import CLASSES, linear_model


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return dict(foreign_models.build_all(tmp_path_factory.mktemp("foreign")))


@pytest.fixture(scope="module")
def server(foreign, tmp_path_factory):
    """A real service of every foreign model, each imported without counts."""
    models = tmp_path_factory.mktemp("repository") / "models"
    for name, item in foreign.items():
        assert (
            main(["import", str(item.path), "--name", name, "--models", str(models), *item.flags])
            == 0
        )
    with running(models, start_seconds=200) as found:
        yield found


def ask(server, name, item, **parameters):
    classes = item.probabilities.shape[1]
    answer = httpx.post(
        f"{server.url}/models/{name}/predict",
        json={"instances": item.instances, "parameters": {"top_k": classes, **parameters}},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    found = np.zeros_like(item.probabilities, dtype=float)
    for row, prediction in enumerate(answer.json()["predictions"]):
        for entry in prediction["top"]:
            found[row, entry["index"]] = entry["probability"]
            assert entry["label"] == item.class_names[entry["index"]]
    return found


@pytest.mark.parametrize("name", BUILDERS)
def test_at_tau_zero_the_service_answers_what_the_models_own_library_does(server, foreign, name):
    item = foreign[name]
    np.testing.assert_allclose(
        ask(server, name, item, tau=0), item.probabilities, atol=item.tolerance
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_at_any_tau_the_service_answers_the_formula_in_float64(server, foreign, name):
    item = foreign[name]
    source = np.arange(1, item.probabilities.shape[1] + 1) ** 2
    target = source[::-1].astype(float)
    found = ask(
        server,
        name,
        item,
        tau=0.37,
        prior={"label_frequencies": source.tolist(), "target": target.tolist()},
    )
    source, target = source / source.sum(), target / target.sum()
    logits = np.log(np.maximum(item.probabilities.astype(np.float64), 1e-38))
    wanted = softmax(logits + 0.37 * (np.log(target) - np.log(source)))
    np.testing.assert_allclose(found, wanted, atol=3 * item.tolerance)


@pytest.mark.parametrize("name", BUILDERS)
def test_at_tau_one_the_service_answers_bayes_rule_for_another_class_prior(server, foreign, name):
    item = foreign[name]
    source = np.arange(1, item.probabilities.shape[1] + 1) ** 2
    target = source[::-1].astype(float)
    target[0] = 0
    found = ask(
        server,
        name,
        item,
        tau=1,
        prior={"label_frequencies": source.tolist(), "target": target.tolist()},
    )
    wanted = item.probabilities * (target / source)
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=3 * item.tolerance)
    assert (found[:, 0] == 0).all()


def test_a_row_that_the_graph_refuses_costs_the_requests_beside_it_nothing(server, foreign):
    item = foreign["tokens-of-any-length"]
    path = f"{server.url}/models/tokens-of-any-length/predict"

    async def all_at_once():
        async with httpx.AsyncClient(timeout=60) as client:
            good = [client.post(path, json={"instances": [row]}) for row in item.instances * 8]
            wrong = [*item.instances[0][:-1], 9999]
            bad = [client.post(path, json={"instances": [wrong]}) for _ in range(3)]
            return await asyncio.gather(*good[:16], *bad, *good[16:])

    answers = asyncio.run(all_at_once())
    refused, answered = answers[16:19], answers[:16] + answers[19:]
    assert [answer.status_code for answer in refused] == [422] * 3
    assert "instance 0: the model refuses it" in refused[0].json()["detail"]
    assert [answer.status_code for answer in answered] == [200] * len(answered)
    found = [answer.json()["predictions"][0]["probability"] for answer in answered]
    np.testing.assert_allclose(found, np.tile(item.probabilities.max(axis=1), 8), atol=1e-6)


def test_without_counts_only_tau_zero_works_until_label_frequencies_are_put(server, foreign):
    name = "logistic-regression-with-zipmap"
    item = foreign[name]
    url = f"{server.url}/models/{name}"
    body = {"instances": item.instances}
    assert httpx.post(f"{url}/predict", json=body).json()["tau"] == 0
    refused = httpx.post(f"{url}/predict?tau=1", json=body)
    assert refused.status_code == 409
    assert f"/models/{name}/priors/default" in refused.json()["detail"]
    assert httpx.put(f"{url}/priors/default", json={"label_frequencies": COUNTS}).status_code == 201
    wanted = item.probabilities / np.array(list(COUNTS.values()))
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ask(server, name, item, tau=1), wanted, atol=1e-5)


# ---- what is written


@pytest.fixture
def file(tmp_path):
    return save(tmp_path, linear_model())


@pytest.fixture
def run(tmp_path, capsys):
    """`python -m service import` into a folder of its own: (exit status, stdout, stderr)."""

    def call(path, *flags, name="m"):
        models = str(tmp_path / "new" / "models")
        status = main(["import", str(path), "--name", name, "--models", models, *map(str, flags)])
        captured = capsys.readouterr()
        return status, captured.out.strip(), captured.err

    return call


@pytest.fixture
def names(tmp_path):
    return named(tmp_path, [f"class-{i}" for i in range(CLASSES)])


def test_the_folder_is_told_and_holds_the_file_itself_and_each_import_is_a_version(
    run, file, names, tmp_path
):
    models = tmp_path / "new" / "models"
    for version in (1, 2):
        assert run(file, *names)[:2] == (0, str(models / "m" / str(version)))
    bundle = load_bundle(models / "m" / "2")
    assert (models / "m" / "2" / "model.onnx").read_bytes() == file.read_bytes()
    assert bundle.output.kind == "logits"
    assert bundle.class_counts is None
    assert bundle.tau == 0
    assert str(tmp_path) not in bundle.model_dump_json()


@pytest.mark.parametrize("form", [list, dict])
def test_counts_may_be_a_list_or_an_object_in_any_order(run, file, names, tmp_path, form):
    counts = {f"class-{i}": 10 * (i + 1) for i in range(CLASSES)}
    given = list(counts.values()) if form is list else dict(reversed(counts.items()))
    status, folder, _ = run(file, *names, *write_counts(tmp_path, given))
    assert status == 0
    bundle = load_bundle(tmp_path / folder)
    assert bundle.class_counts == list(counts.values())
    assert bundle.tau == 1


def test_names_may_be_a_json_list(run, file, tmp_path):
    (tmp_path / "n.json").write_text(json.dumps(["ä", "b", "c d", "e", "f"]), encoding="utf-8")
    status, folder, _ = run(file, "--class-names", tmp_path / "n.json")
    assert status == 0
    assert load_bundle(tmp_path / folder).class_names == ["ä", "b", "c d", "e", "f"]


def test_a_model_of_images_takes_encoded_images(run, names, tmp_path):
    model = linear_model(features=12, classes=CLASSES)
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 2, 2])
    )
    model.graph.node.insert(0, helper.make_node("Flatten", ["pixels"], ["x"]))
    path = save(tmp_path, model)
    flags = ("--image", "--resize", "256", "--mean", "0.5", "--std", "0.2,0.3,0.4")
    status, folder, _ = run(path, *names, *flags)
    assert status == 0
    spec = load_bundle(tmp_path / folder).input
    assert (spec.kind, spec.size, spec.color, spec.layout, spec.resize) == (
        "image",
        [2, 2],
        "RGB",
        "NCHW",
        256,
    )
    assert (spec.mean, spec.std) == ([0.5, 0.5, 0.5], [0.2, 0.3, 0.4])
    status, _, message = run(path, *names, "--mean", "0.5")
    assert status == 1
    assert "only for models of images" in message


# ---- what is refused, and how


def drop_shape(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")


def two_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.INT64, [7]))


def captured_input(model):
    model.graph.input.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 6]))


def odd_type(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.COMPLEX64


def no_batch_table(model):
    model.graph.node.append(helper.make_node("ReduceMax", ["logits"], ["best"], keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.FLOAT, []))


def two_meanings(model):
    model.graph.node.append(helper.make_node("Neg", ["logits"], ["minus"]))
    model.graph.output.append(
        helper.make_tensor_value_info("minus", TensorProto.FLOAT, ["batch", CLASSES])
    )


def independent_scores(model):
    model.graph.node.append(helper.make_node("Sigmoid", ["logits"], ["scores"]))
    model.graph.output[0].name = "scores"


def broken_node(model):
    model.graph.node[0].op_type = "NoSuchOperator"


def reserved_name(model):
    model.graph.input[0].name = model.graph.node[0].input[0] = "adjustment.tau"


def lacking_solve(model):
    model.graph.node[0].op_type, model.graph.node[0].domain = "Solve", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def without_neighbours(model):
    """What skl2onnx writes for a training point outside the radius of a row."""
    rank = ("ArrayFeatureExtractor", ["w", "outside"], ["picked"])
    model.graph.node.insert(0, helper.make_node(*rank, domain="ai.onnx.ml"))
    model.graph.node.append(helper.make_node("Sub", ["picked", "picked"], ["unused"]))
    model.graph.initializer.append(helper.make_tensor("outside", TensorProto.INT64, [1], [-1]))
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, None))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))


def leaving_data(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../outside.bin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_shape, "input 'x' has no shape with a batch axis"),
        (two_inputs, "the inputs have different batch axes (x [None, 6], mask [7])"),
        (captured_input, "mean [1, 6]). Those of 1 seem to be constants of the model"),
        (odd_type, "input 'x' is complex64; expected one of float16, float32"),
        (
            no_batch_table,
            "no output holds floats [batch, 5]; for random rows the file gives best float32 []",
        ),
        (two_meanings, "several outputs could be meant: logits, minus; choose one with --output"),
        (independent_scores, "'scores' is between 0 and 1, but its rows do not sum to 1"),
        (broken_node, "has no operator 'NoSuchOperator' in opset 20: export the model"),
        (lacking_solve, "skl2onnx writes it for a Gaussian process: export another classifier"),
        (
            without_neighbours,
            "the radius, and onnxruntime refuses it: export a KNeighborsClassifier",
        ),
        (reserved_name, "names that begin with 'adjustment.' are reserved"),
        (leaving_data, "external data '../../outside.bin' of 'w' leaves the folder"),
    ],
)
def test_a_file_that_cannot_be_served_is_refused_and_leaves_nothing_behind(
    run, names, tmp_path, change, message
):
    (tmp_path.parent / "outside.bin").write_bytes(bytes(1000))
    model = linear_model()
    change(model)
    status, out, err = run(save(tmp_path, model), *names)
    assert (status, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not versions(tmp_path / "new" / "models" / "m")
    assert not list((tmp_path / "new").rglob("*.onnx"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[10, 10, 0, 10, 10]", "'class-2' has count 0; expected more than 0"),
        ("[10, 10, -1, 10, 10]", "'class-2' has count -1"),
        ("[10, 10, true, 10, 10]", "'class-2' has count True"),
        ("[10, 10, NaN, 10, 10]", "'class-2' has count nan"),
        ("[10, 10]", "has 2 counts; expected 5, one for each class"),
        ('{"class-0": 1, "lynx": 2}', "unknown class 'lynx'"),
        ('{"class-0": 1}', "class 'class-1' has no count"),
        ("7", "expected a list or an object"),
        ("{", "not JSON"),
    ],
)
def test_wrong_counts_are_refused_by_class(run, tmp_path, text, message):
    file, names = save(tmp_path, linear_model()), named(tmp_path, [f"class-{i}" for i in range(5)])
    (tmp_path / "counts.json").write_text(text, encoding="utf-8")
    status, _, err = run(file, *names, "--class-counts", tmp_path / "counts.json")
    assert status == 1
    assert message in err


def test_wrong_names_and_paths_are_told_apart(run, file, tmp_path):
    status, _, err = run(file)
    assert (
        status,
        "has 5 classes, but the file names none: give --class-names" in err,
    ) == (1, True)
    status, _, err = run(file, *named(tmp_path, NAMES))
    assert (status, "no output holds floats [batch, 3]" in err) == (1, True)
    status, _, err = run(file, *named(tmp_path, ["a", "b", "a", "c", "d"]))
    assert (status, "line 1 and 3: 'a'" in err) == (1, True)
    status, _, err = run(tmp_path / "missing.onnx")
    assert (status, "missing.onnx: No such file or directory" in err) == (1, True)
    (tmp_path / "text.onnx").write_text("not a model", encoding="utf-8")
    status, _, err = run(tmp_path / "text.onnx")
    assert (status, "is not an ONNX file" in err) == (1, True)
    status, _, err = run(file, *named(tmp_path, list("abcde")), name="../up")
    assert (status, "not a model name" in err) == (1, True)


def test_a_link_among_the_external_data_that_leaves_the_folder_is_refused(run, names, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    item = foreign_models.external_data(home)
    (home / "weights" / "all.bin").rename(tmp_path / "all.bin")
    (home / "weights" / "all.bin").symlink_to(tmp_path / "all.bin")
    status, _, err = run(item.path, *names)
    assert (status, "leaves the folder" in err) == (1, True)


def test_the_kind_that_is_given_is_believed_over_what_rows_show(run, names, tmp_path):
    model = linear_model()
    independent_scores(model)
    status, folder, _ = run(save(tmp_path, model), *names, "--output-kind", "logits")
    assert status == 0
    assert load_bundle(tmp_path / folder).output.kind == "logits"


def test_a_kind_that_the_file_contradicts_is_refused(run, file, names):
    status, _, err = run(file, *names, "--output-kind", "probabilities")
    assert (status, "check --output-kind" in err) == (1, True)
