"""Decision scores are recognised, refused with the remedy, and accepted once calibrated."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from service.commands.importing.calibrate import fit
from service.commands.importing.outputs import check_labels, choose_output
from service.commands.importing.refusal import ImportRefused
from service.contract.adjustment import softmax
from tests.support.foreign_models import NAMES, named, rows, save, training_set
from tests.support.neighbour_models import NEIGHBOUR_MODELS
from tests.support.small_models import CLASSES, linear_model

CLASSIFIERS = {
    "support vectors": SVC(probability=False),
    "linear support vectors": LinearSVC(),
    "ridge": RidgeClassifier(),
}


REFUSED = {"batch_norm_in_training_mode"}
"""Its running mean changes from call to call, so that it may be refused as not deterministic."""


def converted(folder, estimator, *, classes=3, **options):
    from skl2onnx import to_onnx

    x, y = training_set()
    x, y = x[y < classes], y[y < classes]
    estimator.fit(x, y)
    if not isinstance(estimator, LinearSVC):  # whose converter writes a table in any case
        options["zipmap"] = False
    model = to_onnx(estimator, x[:1], options={id(estimator): options})
    return save(folder, model), x, y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_decision_scores_are_refused_in_one_line_with_the_remedy(
    import_file, tmp_path, name, classes
):
    path, _, _ = converted(tmp_path, CLASSIFIERS[name], classes=classes)
    status, _, err = import_file(path, *named(tmp_path, NAMES[:classes]))
    assert status == 1
    assert len(err.splitlines()) == 1
    assert "--calibrate" in err


@pytest.mark.filterwarnings("ignore")
def test_raw_scores_of_two_classes_are_right_at_the_temperature_that_the_refusal_names(
    import_file, tmp_path
):
    estimator = LogisticRegression()
    path, x, _ = converted(tmp_path, estimator, classes=2, raw_scores=True)
    names = named(tmp_path, NAMES[:2])
    status, _, err = import_file(path, *names)
    assert (status, "--output-kind logits --temperature 2" in err) == (1, True)
    status, bundle, _ = import_file(path, *names, "--output-kind", "logits", "--temperature", 2)
    assert status == 0
    assert (bundle.output.kind, bundle.temperature) == ("logits", 2)
    scores = estimator.decision_function(x)
    found = softmax(np.stack([-scores, scores], axis=1) / 2)
    np.testing.assert_allclose(found, estimator.predict_proba(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_calibrated_scores_give_the_right_class_and_the_class_mix_of_the_rows(
    import_file, tmp_path, name, classes
):
    path, x, y = converted(tmp_path, CLASSIFIERS[name], classes=classes)
    np.savez(tmp_path / "rows.npz", x=x, y=np.array(NAMES)[y])
    status, bundle, err = import_file(
        path,
        *named(tmp_path, NAMES[:classes]),
        "--output-kind",
        "scores",
        "--calibrate",
        tmp_path / "rows.npz",
    )
    assert status == 0, err
    assert bundle.output.kind == "scores"
    assert bundle.class_counts == np.bincount(y).tolist()
    assert bundle.provenance["calibration"]["error"] < 0.2
    assert bundle.tau == 1


def test_the_fit_recovers_the_posterior_that_made_the_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    truth = softmax(logits)
    labels = (rng.random((len(truth), 1)) > truth.cumsum(axis=1)).sum(axis=1)
    found = fit(logits / 3 - np.array([0.5, 0, -0.5, 1]), labels)
    z = found.scale * (logits / 3 - np.array([0.5, 0, -0.5, 1])) + found.bias
    np.testing.assert_allclose(softmax(z), truth, atol=0.03)
    assert found.scale == pytest.approx(3, rel=0.05)


def test_separable_scores_keep_a_finite_scale():
    scores = np.repeat([[3.0, -3.0], [-3.0, 3.0]], 20, axis=0)
    found = fit(scores, np.repeat([0, 1], 20))
    assert 0 < found.scale < 10


def test_scores_of_the_wrong_sign_are_turned_round():
    x, y = make_classification(500, random_state=0)
    margin = LogisticRegression().fit(x, y).decision_function(x)
    found = fit(np.stack([margin, -margin], axis=1), y)
    assert found.scale < 0
    assert found.error < 0.2


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"x": rows()}, "lacks the array 'y'; it has x"),
        ({"x": rows(), "y": np.zeros(3, int)}, "9 rows but 3 labels"),
        (
            {"x": rows(), "y": np.zeros(9, int)},
            "class 'class-1' has no labelled row",
        ),
        ({"x": rows(), "y": np.full(9, 7)}, "label 7; expected class indices 0 to 4"),
        ({"x": rows(), "y": np.full(9, "lynx")}, "label 'lynx' is not a class"),
        ({"x": rows(), "y": np.zeros(9)}, "y is float64; expected class indices or names"),
    ],
)
def test_labelled_rows_that_do_not_fit_are_refused(import_file, tmp_path, held, message):
    names = named(tmp_path, [f"class-{i}" for i in range(CLASSES)])
    path = save(tmp_path, linear_model())
    np.savez(tmp_path / "rows.npz", **held)
    flags = ["--output-kind", "scores", "--calibrate", tmp_path / "rows.npz"]
    status, _, err = import_file(path, *names, *flags)
    assert (status, message in err) == (1, True), err
    status, _, err = import_file(path, *names, *flags[:2])
    assert (status, "must be given together" in err) == (1, True)


def test_a_label_output_that_contradicts_the_scores_is_named():
    scores = np.random.default_rng(0).normal(size=(32, 3))
    outputs = {"scores": scores, "label": np.array(["a", "b", "c"])[scores.argmin(axis=1)]}
    found = choose_output(outputs, rows=32, wanted=None, kind=None, classes=None)
    with pytest.raises(ImportRefused, match=r"'label', the file's own label, differs .* for 100%"):
        check_labels(found, outputs, ["a", "b", "c"])
    outputs["label"] = scores.argmax(axis=1)
    check_labels(found, outputs, ["x", "y", "z"])
    outputs["label"] = np.arange(32)  # leaves of a tree, say
    check_labels(found, outputs, ["x", "y", "z"])
    outputs = {"scores": scores, "leaf": scores.argmin(axis=1), "label": scores.argmax(axis=1)}
    check_labels(found, outputs, ["x", "y", "z"])


def test_a_zip_map_names_its_columns_in_any_order(import_file, tmp_path):
    """onnxruntime sorts them, and CatBoost writes them in the order of its class_names."""
    model = linear_model(classes=3)
    labels = ["z", "a", "m"]
    model.graph.node.extend(
        [
            helper.make_node("Softmax", [model.graph.output[0].name], ["p"]),
            helper.make_node(
                "ZipMap", ["p"], ["by_name"], domain="ai.onnx.ml", classlabels_strings=labels
            ),
        ]
    )
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    rows_of_maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.STRING, number)
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_value_info("by_name", rows_of_maps))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    status, bundle, err = import_file(save(tmp_path, model))
    assert status == 0, err
    assert bundle.class_names == labels


def test_a_zip_map_of_doubles_that_declares_floats_is_published(import_file, tmp_path):
    """skl2onnx writes it for columns of which some are float64."""
    x, y = training_set()
    scaled = ColumnTransformer([("a", StandardScaler(), [0]), ("b", StandardScaler(), [1])])
    pipeline = make_pipeline(scaled, LogisticRegression()).fit(x[:, :2], y)
    types = [("a", FloatTensorType([None, 1])), ("b", DoubleTensorType([None, 1]))]
    path = save(tmp_path, convert_sklearn(pipeline, initial_types=types))
    status, bundle, err = import_file(path)
    assert status == 0, err
    assert [each.dtype for each in bundle.input.columns] == ["float32", "float64"]


def test_a_tree_that_also_gives_its_path_is_converted(import_file, tmp_path):
    """onnx's converter ended the process at the LabelEncoder that writes the path."""
    options = {"decision_path": True, "decision_leaf": True}
    path, _, _ = converted(tmp_path, DecisionTreeClassifier(max_depth=3), **options)
    status, bundle, err = import_file(path)
    assert status == 0, err
    assert bundle.output.kind == "probabilities"


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"o": np.ones((8, 5))}, "for 32 rows the file gives o float64 [8, 5]"),
        ({"o": np.ones((256, 5))}, "one answer a row instead of one a token"),
        (
            {"o": np.ones(5)},
            "Export the model with the batch as the first axis of input and output",
        ),
        ({"label": np.ones(32, np.int64)}, "no output holds floats [batch, C > 1]"),
    ],
)
def test_outputs_without_a_row_for_each_row_are_refused_with_what_to_do(outputs, message):
    with pytest.raises(ImportRefused) as refused:
        choose_output(outputs, rows=32, wanted=None, kind=None, classes=None)
    assert message in str(refused.value)


@pytest.mark.parametrize("name", sorted(set(NEIGHBOUR_MODELS) - REFUSED))
def test_a_model_whose_rows_influence_each_other_is_published_for_batches_of_one(
    import_file, tmp_path, name
):
    names = named(tmp_path, [f"class-{i}" for i in range(CLASSES)])
    path = save(tmp_path, NEIGHBOUR_MODELS[name]())
    status, bundle, err = import_file(path, *names)
    assert status == 0, err
    assert bundle.max_batch_rows == 1
    assert "a row's answer depends on the other rows of its batch" in err
    status, _, err = import_file(path, *names, "--refuse-dependent-rows")
    assert (status, len(err.splitlines())) == (1, 1)


def test_a_model_with_dropout_left_on_is_refused(import_file, tmp_path):
    from onnx import helper, numpy_helper

    model = linear_model()
    model.graph.node[0].input[0] = "dropped"
    model.graph.node.insert(0, helper.make_node("Dropout", ["x", "ratio", "on"], ["dropped"]))
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(0.5), "ratio"),
            numpy_helper.from_array(np.array(True), "on"),
        ]
    )
    status, _, err = import_file(save(tmp_path, model), *named(tmp_path, list("abcde")))
    assert (status, len(err.splitlines())) == (1, 1)
    assert "not deterministic: export it in evaluation mode" in err


@pytest.mark.parametrize(
    ("tracks", "producer", "taken"),
    [([1, 0, 0], "", True), ([0, 0, 0], "", False), ([0, 0, 0], "CatBoost", True)],
    ids=["learnt", "not learnt", "below every border"],
)
def test_trees_take_missing_values_only_where_they_learnt_a_direction(
    import_file, tmp_path, tracks, producer, taken
):
    from onnx import TensorProto, helper

    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_values=[0.0, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=tracks,
        class_treeids=[0] * 6,
        class_nodeids=[1, 1, 1, 2, 2, 2],
        class_ids=[0, 1, 2, 0, 1, 2],
        class_weights=[0.8, 0.1, 0.1, 0.1, 0.2, 0.7],
        classlabels_int64s=[0, 1, 2],
        post_transform="NONE",
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "tree",
        [value("x", TensorProto.FLOAT, ["batch", 2])],
        [
            value("label", TensorProto.INT64, ["batch"]),
            value("scores", TensorProto.FLOAT, ["batch", 2]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name=producer)
    status, bundle, err = import_file(save(tmp_path, model))
    assert status == 0, err
    assert bundle.input.missing is taken


def test_an_imputer_of_one_column_makes_missing_values_of_that_column_known(import_file, tmp_path):
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    labels = (rows[:, 0] > 0).astype(int)
    rows[::4, 2] = np.nan
    columns = ColumnTransformer([("i", SimpleImputer(), [2]), ("p", "passthrough", [0, 1])])
    pipeline = make_pipeline(columns, LogisticRegression()).fit(rows, labels)
    kind = [("x", FloatTensorType([None, 3]))]
    model = to_onnx(pipeline, initial_types=kind, options={"zipmap": False}, target_opset=17)
    status, bundle, err = import_file(save(tmp_path, model))
    assert status == 0, err
    assert bundle.input.missing


def test_rounded_probabilities_are_not_taken_for_independent_scores():
    values = softmax(np.random.default_rng(0).normal(size=(32, 4)) * 3)
    rounded = {"p": (np.round(values * 127) / 127).astype(np.float32)}
    with pytest.raises(ImportRefused, match="as of a quantised softmax"):
        choose_output(rounded, rows=32, wanted=None, kind=None, classes=4)
    found = choose_output(rounded, rows=32, wanted=None, kind="probabilities", classes=4)
    assert found.kind == "probabilities"


@pytest.mark.filterwarnings("ignore")
def test_an_imputer_within_a_power_transform_takes_no_missing_values(import_file, tmp_path):
    """scikit-learn's own pipeline refuses them; the converted one answers as if they were 0."""
    from skl2onnx import to_onnx
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PowerTransformer

    x, y = training_set()
    pipeline = make_pipeline(PowerTransformer(), LogisticRegression()).fit(x, y)
    status, bundle, err = import_file(save(tmp_path, to_onnx(pipeline, x[:1])))
    assert status == 0, err
    assert not bundle.input.missing


@pytest.mark.parametrize("form", ["flatten", "columns"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_forms_of_any_float_type_are_published_as_plain_classifiers(
    import_file, tmp_path, form, dtype
):
    import onnxruntime
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    make, value = helper.make_node, helper.make_tensor_value_info
    nodes, names = [make("MatMul", ["x", "w"], ["logits"])], ["scores"]
    if form == "flatten":
        nodes.append(make("Reshape", ["logits", "shape"], names))
    else:
        names = ["a", "b", "c"]
        nodes.append(make("Softmax", ["logits"], ["p"]))
        nodes.append(make("Split", ["p"], names, axis=1, num_outputs=3))
    width = [1] if form == "columns" else [3, 1, 1]
    w = np.random.default_rng(0).normal(size=(4, 3)).astype(dtype)
    graph = helper.make_graph(
        nodes,
        "odd",
        [value("x", kind, ["n", 4])],
        [value(name, kind, ["n", *width]) for name in names],
        [
            numpy_helper.from_array(w, "w"),
            numpy_helper.from_array(np.array([-1, 3, 1, 1]), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    status, bundle, err = import_file(save(tmp_path, model), *named(tmp_path, NAMES))
    assert status == 0, err
    (path,) = (tmp_path / "imported").rglob("model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(dtype)
    (found,) = session.run([bundle.output.name], {"x": x})
    wanted = x.astype(np.float64) @ w.astype(np.float64)
    wanted = wanted if bundle.output.kind == "logits" else softmax(wanted)
    np.testing.assert_allclose(found, wanted, atol=1e-2 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("below", [1.2e-7, 1e-3])
def test_probabilities_a_rounding_error_below_zero_are_probabilities(below):
    """Trees of two classes give 1 minus a sum of shares in single precision."""
    table = np.array([[-below, 1 + below], [0.25, 0.75], [1.0, 0.0]], np.float32)
    choose = {"rows": 3, "wanted": None, "kind": None, "classes": 2}
    if below > 1e-6:
        with pytest.raises(ImportRefused, match="decision scores"):
            choose_output({"probabilities": table}, **choose)
    else:
        assert choose_output({"probabilities": table}, **choose).kind == "probabilities"
