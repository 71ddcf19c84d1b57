"""Files that are no classifier of one answer a row are refused in one line that says what they
are.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import OneClassSVM
from sklearn.tree import DecisionTreeClassifier

from tests.support.foreign_models import NAMES, named, save, training_set
from tests.support.small_models import FEATURES

OPSETS = {"": 15, "ai.onnx.ml": 3}


def labels(y, several):
    if several == "multi-label":
        return np.stack([y == 0, y >= 1, y == 2], axis=1).astype(int)
    return np.stack([y, y % 2], axis=1)


def converted(folder, estimator, y, **options):
    from skl2onnx import to_onnx

    x, _ = training_set()
    estimator.fit(x, y)
    model = to_onnx(
        estimator, x[:1], options={id(estimator): options} if options else None,
        target_opset=OPSETS,
    )  # fmt: skip
    return save(folder, model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("estimator", "several", "zipmap"),
    [
        (OneVsRestClassifier(LogisticRegression()), "multi-label", True),
        (OneVsRestClassifier(LogisticRegression()), "multi-label", False),
        (MLPClassifier((3,), max_iter=9), "multi-label", False),
        (RandomForestClassifier(3), "multi-output", False),
        (MultiOutputClassifier(LogisticRegression()), "multi-output", False),
    ],
)
def test_several_labels_a_row_are_refused_whatever_their_scores_sum_to(
    import_file, tmp_path, estimator, several, zipmap
):
    path = converted(tmp_path, estimator, labels(training_set()[1], several), zipmap=zipmap)
    status, _, err = import_file(path)
    assert (status, len(err.splitlines())) == (1, 1)
    assert f": a {several} model" in err
    assert "Export" in err


def test_labels_of_0_and_1_whose_scores_sum_to_one_by_chance_are_refused_unless_the_kind_is_given(
    import_file, tmp_path
):
    """Scores that are independent may sum to 1 for all random rows."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        helper.make_node("Greater", ["probabilities", "half"], ["hot"]),
        helper.make_node("Cast", ["hot"], ["label"], to=TensorProto.INT64),
    ]
    graph = helper.make_graph(
        nodes,
        "labels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n", 3]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3]),
        ],
        [
            numpy_helper.from_array(np.ones((FEATURES, 3), np.float32), "w"),
            numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        ],
    )
    path = save(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)],
                                            ir_version=8))  # fmt: skip
    names = named(tmp_path, NAMES)
    status, _, err = import_file(path, *names)
    assert (status, "--output-kind probabilities" in err) == (1, True)
    assert import_file(path, *names, "--output-kind", "probabilities")[0] == 0


@pytest.mark.parametrize("estimator", [RandomForestRegressor(3), LinearRegression()])
def test_a_regression_is_refused_even_where_class_names_are_given(import_file, tmp_path, estimator):
    path = converted(tmp_path, estimator, training_set()[1] / 2)
    names = named(tmp_path, NAMES[:2])
    for flags in ([], names):
        status, _, err = import_file(path, *flags)
        assert (status, len(err.splitlines())) == (1, 1)
        assert "a regression predicts a number and not a class" in err
    assert import_file(path, *names, "--output-kind", "logits")[0] == 0


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (
            IsolationForest(n_estimators=3),
            "an outlier detector, whose score is not a log posterior",
        ),
        (OneClassSVM(), "an outlier detector, whose score is not a log posterior"),
        (KMeans(3, n_init=1), "a clustering has none"),
    ],
)
def test_a_file_without_classes_is_told_what_cannot_be_served(
    import_file, tmp_path, estimator, message
):
    path = converted(tmp_path, estimator, None)
    status, _, err = import_file(path)
    assert (status, len(err.splitlines())) == (1, 1)
    assert message in err


def scores_then(folder, nodes, *outputs):
    """A file of a linear model of three classes, `scores` [n, 3], followed by nodes."""
    weights = np.random.default_rng(0).normal(size=(FEATURES, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"]), *nodes],
        "scores",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info(name, kind, ["n", 3]) for name, kind in outputs],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([3], np.int64), "k"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    return save(folder, helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("ending", ["Softmax", "LogSoftmax", "Identity"])
def test_scores_that_were_sorted_are_refused(import_file, tmp_path, ending, largest):
    nodes = [
        helper.make_node(ending, ["scores"], ["p"]),
        helper.make_node("TopK", ["p", "k"], ["values", "indices"], largest=largest),
    ]
    outputs = ("values", TensorProto.FLOAT), ("indices", TensorProto.INT64)
    path = scores_then(tmp_path, nodes, *outputs)
    status, _, err = import_file(path, *named(tmp_path, NAMES))
    assert (status, len(err.splitlines())) == (1, 1)
    assert "'indices' has the class of each column" in err
    unsorted = scores_then(tmp_path, nodes, ("p", TensorProto.FLOAT), outputs[1])
    assert import_file(unsorted, *named(tmp_path, NAMES))[0] == 0


def test_negative_log_probabilities_are_refused(import_file, tmp_path):
    nodes = [
        helper.make_node("LogSoftmax", ["scores"], ["log"]),
        helper.make_node("Neg", ["log"], ["loss"]),
    ]
    path = scores_then(tmp_path, nodes, ("loss", TensorProto.FLOAT))
    status, _, err = import_file(path, *named(tmp_path, NAMES))
    assert (status, "without the minus sign" in err) == (1, True)


@pytest.mark.parametrize(("depth", "told"), [(None, True), (1, False)])
def test_answers_that_no_prior_can_change_are_told(import_file, tmp_path, depth, told):
    path = converted(tmp_path, DecisionTreeClassifier(max_depth=depth), training_set()[1])
    status, _, err = import_file(path)
    assert status == 0, err
    assert ("no prior changes the answers" in err) is told


def forest(post_transform, divisor):
    """Two trees of one leaf each, with the nodes that onnxmltools writes for LightGBM's rf."""
    weights = numpy_helper.from_array(np.array([1], np.int64), "col")
    one = numpy_helper.from_array(np.array([1.0], np.float32), "unit")
    count = numpy_helper.from_array(np.array([divisor], np.float32), "count")
    trees = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "raw"],
        domain="ai.onnx.ml",
        nodes_treeids=[0, 1],
        nodes_nodeids=[0, 0],
        nodes_featureids=[0, 0],
        nodes_modes=["LEAF", "LEAF"],
        nodes_values=[0.0, 0.0],
        nodes_truenodeids=[0, 0],
        nodes_falsenodeids=[0, 0],
        class_treeids=[0, 1],
        class_nodeids=[0, 0],
        class_ids=[0, 0],
        class_weights=[0.25, 0.25],
        classlabels_int64s=[0, 1],
        post_transform=post_transform,
    )
    nodes = [
        trees,
        helper.make_node("ArrayFeatureExtractor", ["raw", "col"], ["second"], domain="ai.onnx.ml"),
        helper.make_node("Div", ["second", "count"], ["mean"]),
        helper.make_node("Sub", ["unit", "mean"], ["first"]),
        helper.make_node("Concat", ["first", "mean"], ["probabilities"], axis=1),
    ]
    batch = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])
    scores = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "forest", [batch], [scores], [weights, one, count])
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_a_random_forest_of_lightgbm_is_refused_with_the_way_to_convert_it(import_file, tmp_path):
    names = named(tmp_path, NAMES[:2])
    path = save(tmp_path, forest("LOGISTIC", 2.0))
    status, _, err = import_file(path, *names)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "boosting=rf" in err
    assert "A random forest of LightGBM" in err
    assert import_file(path, *names, "--output-kind", "probabilities")[0] == 0
    averaged = save(tmp_path, forest("NONE", 2.0))  # of probabilities that its leaves hold
    assert import_file(averaged, *names)[0] == 0
