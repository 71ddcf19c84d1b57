"""ONNX classifiers of every kind that the project did not train, each with rows and the answers of
its own library.
"""

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from service.contract.adjustment import softmax
from tests.support.small_models import CLASSES, FEATURES, linear_model, weights

NAMES = ["cat", "dog", "lynx"]
COUNTS = {"cat": 900, "dog": 90, "lynx": 9}
TEXTS = ["red apple", "green pear", "grey stone", "old rock", "Strange APPLES", "stone rock", ""]
KINDS = ["fruit", "mineral", "fruit", "mineral", "other", "mineral", "other"]


@dataclasses.dataclass
class Foreign:
    """A file, the flags that import it, instances as JSON takes them, and [n, C] probabilities of
    its own library.
    """

    path: Path
    instances: list[Any]
    probabilities: np.ndarray
    flags: list[str] = dataclasses.field(default_factory=list)
    tolerance: float = 1e-5
    class_names: list[str] = dataclasses.field(default_factory=lambda: list(NAMES))


BUILDERS: dict[str, Callable[[Path], Foreign]] = {}


def builder(build: Callable[[Path], Foreign]) -> Callable[[Path], Foreign]:
    BUILDERS[build.__name__.replace("_", "-")] = build
    return build


def rows(seed: int = 3, n: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, FEATURES)).astype(np.float32)


def training_set() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), [60, 30, 10])
    centres = rng.normal(size=(3, FEATURES))
    return (centres[y] + rng.normal(size=(len(y), FEATURES))).astype(np.float32), y


def sklearn(
    folder: Path, estimator: Any, *, zipmap: bool, named: bool = True, dtype: Any = np.float32
) -> Foreign:
    from skl2onnx import to_onnx

    x, y = training_set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that made the file
        estimator.fit(x.astype(dtype), np.array(NAMES)[y] if named else y)
        model = to_onnx(estimator, x[:1].astype(dtype), options={id(estimator): {"zipmap": zipmap}})
    test = rows().astype(dtype)
    return Foreign(
        save(folder, model),
        test.tolist(),
        estimator.predict_proba(test),
        class_names=NAMES if named else ["0", "1", "2"],
    )


def save(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model of another.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def named(folder: Path, names: list[str]) -> list[str]:
    (folder / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return ["--class-names", str(folder / "names.txt")]


# ---- scikit-learn


@builder
def logistic_regression_with_zipmap(folder: Path) -> Foreign:
    from sklearn.linear_model import LogisticRegression

    return sklearn(folder, LogisticRegression(), zipmap=True)


@builder
def random_forest_of_integer_labels(folder: Path) -> Foreign:
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(7, max_depth=4, random_state=0)
    return sklearn(folder, forest, zipmap=False, named=False)


@builder
def naive_bayes_ending_in_exp(folder: Path) -> Foreign:
    from sklearn.naive_bayes import GaussianNB

    return sklearn(folder, GaussianNB(), zipmap=False)


@builder
def perceptron_in_double_precision(folder: Path) -> Foreign:
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((5,), max_iter=50, random_state=0)
    return sklearn(folder, network, zipmap=False, dtype=np.float64)


@builder
def zipmap_in_double_precision(folder: Path) -> Foreign:
    """onnxruntime has a ZipMap for single precision only."""
    from sklearn.linear_model import LogisticRegression

    return sklearn(folder, LogisticRegression(), zipmap=True, dtype=np.float64)


@builder
def support_vectors_of_opset_9(folder: Path) -> Foreign:
    from sklearn.svm import SVC

    found = sklearn(folder, SVC(probability=True, random_state=0), zipmap=False)
    assert min(o.version for o in onnx.load(found.path).opset_import if not o.domain) < 13
    return dataclasses.replace(found, tolerance=1e-4)


@builder
def opset_9_named_twice(folder: Path) -> Foreign:
    """skl2onnx writes two entries for the standard operators."""
    from sklearn.linear_model import LogisticRegression

    found = sklearn(folder, LogisticRegression(), zipmap=False)
    model = onnx.load(found.path)
    others = [o for o in model.opset_import if o.domain]
    del model.opset_import[:]
    model.opset_import.extend([*others, *[helper.make_opsetid("", 9)] * 2])
    save(folder, model)
    return found


def text_pipeline(folder: Path, shape: list[int | None]) -> Foreign:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.fit(TEXTS, KINDS)
        model = convert_sklearn(pipeline, initial_types=[("text", StringTensorType(shape))])
    test = ["An APPLE a day", "ROCK and Apples", "nothing known", "", "grey GREY stone"]
    return Foreign(
        save(folder, model), test, pipeline.predict_proba(test), class_names=sorted(set(KINDS))
    )


@builder
def text_as_a_column(folder: Path) -> Foreign:
    return text_pipeline(folder, [None, 1])


@builder
def text_as_a_vector(folder: Path) -> Foreign:
    return text_pipeline(folder, [None])


# ---- plain networks


def linear(folder: Path, model: onnx.ModelProto, x: np.ndarray, **more: Any) -> Foreign:
    w, b = weights()
    names = [f"class-{i}" for i in range(CLASSES)]
    flags = more.pop("flags", named(folder, names))
    return Foreign(
        save(folder, model),
        x.tolist(),
        softmax(x.astype(np.float64) @ w + b),
        flags=flags,
        class_names=names,
        **more,
    )


@builder
def single_precision_logits(folder: Path) -> Foreign:
    return linear(folder, linear_model(), rows())


@builder
def half_precision(folder: Path) -> Foreign:
    x = rows().astype(np.float16)
    return linear(folder, linear_model(dtype=TensorProto.FLOAT16), x, tolerance=5e-3)


@builder
def oldest_opset(folder: Path) -> Foreign:
    return linear(folder, linear_model(opset=13), rows())


@builder
def newer_opset(folder: Path) -> Foreign:
    return linear(folder, linear_model(opset=23), rows())


@builder
def softmax_at_the_end(folder: Path) -> Foreign:
    return linear(folder, linear_model(ending="Softmax"), rows())


@builder
def log_softmax_at_the_end(folder: Path) -> Foreign:
    return linear(folder, linear_model(ending="LogSoftmax"), rows())


@builder
def a_batch_of_four(folder: Path) -> Foreign:
    return linear(folder, linear_model(batch=4), rows())


@builder
def names_in_the_metadata(folder: Path) -> Foreign:
    model = linear_model()
    names = {i: f"class-{i}" for i in range(CLASSES)}
    helper.set_model_props(model, {"names": str(names)})  # as Ultralytics writes them
    return linear(folder, model, rows(), flags=[])


def integers(folder: Path, dtype: int, x: np.ndarray) -> Foreign:
    model = linear_model(cast_input=True)
    model.graph.input[0].type.tensor_type.elem_type = dtype
    return linear(folder, model, x)


@builder
def uint8(folder: Path) -> Foreign:
    x = np.random.default_rng(0).integers(0, 256, (9, FEATURES)).astype(np.uint8)
    return integers(folder, TensorProto.UINT8, x)


@builder
def int32(folder: Path) -> Foreign:
    x = np.random.default_rng(0).integers(-3, 4, (9, FEATURES)).astype(np.int32)
    return integers(folder, TensorProto.INT32, x)


@builder
def tokens_of_any_length(folder: Path) -> Foreign:
    """int64 [batch, any]: an embedding, a mean, a linear layer."""
    table = np.random.default_rng(0).normal(size=(10, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["words"]),
        helper.make_node("ReduceMean", ["words", "axis"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    tokens = np.random.default_rng(1).integers(0, 10, (4, 7))
    names = [f"class-{i}" for i in range(CLASSES)]
    return Foreign(
        save(folder, model),
        tokens.tolist(),
        softmax(table[tokens].mean(axis=1)),
        flags=named(folder, names),
        class_names=names,
    )


@builder
def pictures_of_any_size(folder: Path) -> Foreign:
    """float32 [batch, 2, any, any]: a 3 × 3 convolution, the mean over the picture; nothing smaller
    than 3 × 3 is taken.
    """
    kernel = np.random.default_rng(0).normal(size=(CLASSES, 2, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pictures",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, "height", "width"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = np.random.default_rng(1).normal(size=(3, 2, 5, 6)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    logits = np.einsum("bchwij,kcij->bk", windows, kernel) / (3 * 4)
    names = [f"class-{i}" for i in range(CLASSES)]
    return Foreign(
        save(folder, model),
        x.tolist(),
        softmax(logits),
        flags=named(folder, names),
        class_names=names,
    )


def with_features_and_probabilities(folder: Path, *flags: str) -> Foreign:
    """Outputs: the features [batch, 6], the logits, their softmax."""
    model = linear_model()
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["p"], axis=1))
    model.graph.node.append(helper.make_node("Identity", ["x"], ["features"]))
    outputs = [("features", FEATURES), ("p", CLASSES)]
    for name, width in outputs:
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        model.graph.output.insert(0, info)
    found = linear(folder, model, rows())
    return dataclasses.replace(found, flags=[*found.flags, *flags])


@builder
def several_outputs(folder: Path) -> Foreign:
    return with_features_and_probabilities(folder)


@builder
def an_output_by_name(folder: Path) -> Foreign:
    return with_features_and_probabilities(folder, "--output", "p")


@builder
def external_data(folder: Path) -> Foreign:
    found = linear(folder, linear_model(), rows())
    model = onnx.load(found.path)
    (folder / "weights").mkdir()
    convert_model_to_external_data(model, location="weights/all.bin", size_threshold=0)
    onnx.save(model, found.path)
    assert found.path.with_name("weights").joinpath("all.bin").stat().st_size > 0
    return found


# ---- outputs of other forms


def with_ending(
    folder: Path, nodes: list[onnx.NodeProto], declared: list[Any], *flags: str, **constants: Any
) -> Foreign:
    """linear_model with more nodes after its logits; the last one's output replaces them."""
    model = linear_model(opset=17)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    del model.graph.output[:]
    info = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, declared)
    model.graph.output.append(info)
    found = linear(folder, model, rows())
    return dataclasses.replace(found, flags=[*found.flags, *flags])


@builder
def axes_of_length_one_after_the_classes(folder: Path) -> Foreign:
    to = helper.make_node("Unsqueeze", ["logits", "axes"], ["out"])
    return with_ending(folder, [to], ["batch", CLASSES, 1, 1], axes=np.array([2, 3]))


@builder
def an_axis_of_length_one_before_the_classes(folder: Path) -> Foreign:
    softmax_ = helper.make_node("Softmax", ["logits"], ["p"], axis=1)
    to = helper.make_node("Unsqueeze", ["p", "axes"], ["out"])
    return with_ending(folder, [softmax_, to], ["batch", 1, CLASSES], axes=np.array([1]))


@builder
def percent(folder: Path) -> Foreign:
    nodes = [
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
        helper.make_node("Mul", ["p", "hundred"], ["percent"]),
    ]
    return with_ending(folder, nodes, ["batch", CLASSES], hundred=np.float32(100))


@builder
def bfloat16_output(folder: Path) -> Foreign:
    cast = helper.make_node("Cast", ["logits"], ["out"], to=TensorProto.BFLOAT16)
    found = with_ending(folder, [cast], ["batch", CLASSES])
    model = onnx.load(found.path)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    save(folder, model)
    return dataclasses.replace(found, tolerance=0.02)


@builder
def a_batch_axis_that_only_looks_free(folder: Path) -> Foreign:
    """A Reshape to [1, classes]: two rows at once fail."""
    to = helper.make_node("Reshape", ["logits", "shape"], ["out"])
    return with_ending(folder, [to], ["batch", CLASSES], shape=np.array([1, CLASSES]))


@builder
def a_batch_that_becomes_one_long_row(folder: Path) -> Foreign:
    to = helper.make_node("Reshape", ["logits", "shape"], ["out"])
    return with_ending(folder, [to], ["batch", CLASSES], shape=np.array([1, -1]))


def one_column(folder: Path, ending: list[onnx.NodeProto], **constants: Any) -> Foreign:
    """One logit a row; the second of two classes is its."""
    w = np.random.default_rng(5).normal(size=(FEATURES, 1)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logit"]), *ending]
    held = {"w": w, **{name: np.asarray(value) for name, value in constants.items()}}
    graph = helper.make_graph(
        nodes,
        "column",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rows() * 8  # so that some probabilities are 1 in float32
    logits = x.astype(np.float64) @ w
    return Foreign(
        save(folder, model),
        x.tolist(),
        softmax(np.concatenate([np.zeros_like(logits), logits], axis=1)),
        flags=named(folder, ["no", "yes"]),
        class_names=["no", "yes"],
    )


@builder
def one_logit_a_row(folder: Path) -> Foreign:
    return one_column(folder, [])


@builder
def one_sigmoid_a_row(folder: Path) -> Foreign:
    return one_column(folder, [helper.make_node("Sigmoid", ["logit"], ["probability"])])


@builder
def one_sigmoid_a_row_without_its_axis(folder: Path) -> Foreign:
    ending = [
        helper.make_node("Sigmoid", ["logit"], ["p"]),
        helper.make_node("Squeeze", ["p", "axis"], ["probability"]),
    ]
    return one_column(folder, ending, axis=np.array([1]))


@builder
def zipmap_as_columns(folder: Path) -> Foreign:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    x, y = training_set()
    estimator = LogisticRegression().fit(x, y)
    model = to_onnx(estimator, x[:1], options={id(estimator): {"zipmap": "columns"}})
    test = rows()
    return Foreign(
        save(folder, model),
        test.tolist(),
        estimator.predict_proba(test),
        flags=named(folder, NAMES),
    )


def build_all(folder: Path) -> Iterator[tuple[str, Foreign]]:
    for name, build in BUILDERS.items():
        home = folder / name
        home.mkdir(parents=True)
        yield name, build(home)


def write_counts(folder: Path, counts: object) -> list[str]:
    (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    return ["--class-counts", str(folder / "counts.json")]
