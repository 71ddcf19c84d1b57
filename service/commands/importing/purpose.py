"""Recognises files that do not answer which one of several classes a row has: regressions, several
answers for a row, independent labels, and a forest whose converter lost its probabilities.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from service.commands.importing.outputs import Output
from service.commands.importing.refusal import ImportRefused

_REGRESSORS = {"LinearRegressor", "SVMRegressor", "TreeEnsembleRegressor"}
_KEEP_NUMBERS = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


def check_one_answer(outputs: Mapping[str, Any], *, rows: int, kind: str | None) -> None:
    """Look for a label output with several whole numbers for each row. Raises ImportRefused.

    outputs: for random rows, by name. rows: how many were fed. kind: `--output-kind`; where it is
    given, the caller knows what the outputs hold. A table as wide as another output, of 0 and 1
    only, has a label for each class. Such scores may sum to 1 for the random rows by chance.
    """
    if kind is not None:
        return
    widths = {v.shape[1] for v in outputs.values() if _is_table(v, rows, "f")}
    stacks = [v for v in outputs.values() if isinstance(v, list) or _is_stack(v, rows)]
    for name, value in outputs.items():
        if not _is_table(value, rows, "iu"):
            continue
        columns = value.shape[1]
        if (columns in widths or _is_zip_map(outputs, columns)) and np.isin(value, (0, 1)).all():
            raise ImportRefused(
                f"output '{name}' gives 0 or 1 for each of {columns} classes: a multi-label model, "
                "whose scores are independent and no posterior. Export a classifier for each "
                "label; or, if each row has exactly one class, give --output-kind probabilities"
            )
        if any(len(stack) == columns for stack in stacks):
            raise ImportRefused(
                f"output '{name}' gives {columns} answers for each row: a multi-output model. "
                "Export the classifier of each answer as a file of its own (scikit-learn's "
                "MultiOutputClassifier has them in estimators_)"
            )


def check_no_regression(output: Output, model: onnx.ModelProto, *, kind: str | None) -> None:
    """Look for a regressor that makes the output. Raises ImportRefused.

    kind: `--output-kind`; where it is given, the caller knows what the output holds. Rows of
    several numbers that sum to 1 are taken: trees that regress a distribution.
    """
    if kind is not None or (output.form != "column" and output.kind != "logits"):
        return
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(output.name)
    while node is not None and node.op_type in _KEEP_NUMBERS:
        node = producers.get(node.input[0])
    if node is not None and node.op_type in _REGRESSORS and not _is_transformed(node):
        raise ImportRefused(
            f"output '{output.name}' comes from a {node.op_type}: a regression predicts a number "
            "and not a class, so it has no class prior. Export a classifier; or give "
            "--output-kind, if the number is the logit or probability of the second of two classes"
        )


def check_forest(model: onnx.ModelProto, *, kind: str | None) -> None:
    """Look for LightGBM's `boosting=rf` as onnxmltools 1.16 writes it. Raises ImportRefused.

    LightGBM averages the trees and then applies the sigmoid or the softmax. The file instead
    applies it to the sum of the trees, and divides the result by their number. For several classes
    it keeps only two columns.
    kind: `--output-kind`; where it is given, the caller knows what the output holds.
    """
    if kind is not None:
        return
    constants = {tensor.name for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Div" or node.input[1] not in constants:
            continue
        trees = producers.get(node.input[0])
        while trees is not None and trees.op_type in _KEEP_NUMBERS | {"ArrayFeatureExtractor"}:
            trees = producers.get(trees.input[0])
        if trees is None or trees.op_type != "TreeEnsembleClassifier":
            continue
        if _is_transformed(trees):
            raise ImportRefused(
                "the file divides the probabilities of its trees by a number, as onnxmltools "
                "writes LightGBM's boosting=rf: they are not those of predict_proba. "
                'docs/importing.md, "A random forest of LightGBM", has the lines that convert it '
                "right; --output-kind probabilities takes the file as it is"
            )


def check_no_outliers(output: Output, outputs: Mapping[str, Any], *, kind: str | None) -> None:
    """Look for the outputs of an outlier detector: one score for each row, and a label that is
    1 or -1. Raises ImportRefused.

    kind: `--output-kind`; where it is given, the caller knows what the output holds.
    """
    if kind is not None or output.form != "column":
        return
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "i":
            continue
        if value.size == len(output.values) and np.isin(value, (-1, 1)).all():
            raise ImportRefused(
                f"output '{output.name}' has one score for each row, and '{name}' is 1 or -1: an "
                "outlier detector, whose score is not a log posterior. Export a classifier; or "
                "give --output-kind logits, if its sigmoid is the probability of the second class"
            )


def check_columns(output: Output, outputs: Mapping[str, Any], *, kind: str | None) -> None:
    """Look for columns that are sorted by score, and for negative log-probabilities. Raises
    ImportRefused.

    kind: `--output-kind`; where it is given, the caller knows what the output holds. If a TopK over
    all classes made the columns, another output has the class of each: a permutation in each row.
    """
    values, classes = output.values, output.columns
    if kind is not None or output.form == "column":
        return
    may_be = output.kind == "logits" and bool((values >= 0).all())
    if may_be and np.allclose(np.exp(-values).sum(axis=1), 1, atol=1e-3):
        raise ImportRefused(
            f"output '{output.name}' holds negative log-probabilities, so that the largest is the "
            "unlikeliest class: export the logits or log-probabilities without the minus sign"
        )
    is_sorted = bool((np.diff(values, axis=1) <= 0).all() or (np.diff(values, axis=1) >= 0).all())
    for name, value in outputs.items():
        if not is_sorted or not _is_table(value, len(values), "iu"):
            continue
        if value.shape[1] == classes and (np.sort(value, axis=1) == np.arange(classes)).all():
            raise ImportRefused(
                f"output '{output.name}' is sorted in each row, and '{name}' has the class of each "
                "column (TopK or a sort?), so a column does not stand for one class: export the "
                "scores before they are sorted; the service sorts them itself"
            )


def why_no_names(output: Output, names: int | None) -> str:
    """Why the class names are missing, and what to give.

    names: how many the file has; None if it has none.
    """
    if names is not None:
        return (
            f"output '{output.name}' has {output.columns} classes, but the file names {names}: "
            "give --class-names"
        )
    if output.form == "column":
        return (
            f"output '{output.name}' has one number for each row, and the file names no classes. "
            "Of a classifier of two classes, give --class-names with both; the number scores the "
            "second. A regression or an outlier detector has no classes and cannot be served"
        )
    return (
        f"output '{output.name}' has {output.columns} classes, but the file names none: give "
        "--class-names if each column scores a class. A transformation or a clustering has none "
        "and cannot be served"
    )


def _is_table(value: Any, rows: int, kinds: str) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind in kinds
        and value.ndim == 2
        and len(value) == rows
        and value.shape[1] > 1
    )


def _is_stack(value: Any, rows: int) -> bool:
    """Whether an output is a table of probabilities for each answer: [answers, rows, classes]."""
    return isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[1] == rows


def _is_zip_map(outputs: Mapping[str, Any], columns: int) -> bool:
    return any(
        isinstance(v, list) and len(v) > 0 and isinstance(v[0], dict) and len(v[0]) == columns
        for v in outputs.values()
    )


def _is_transformed(node: onnx.NodeProto) -> bool:
    """Whether a node turns its numbers into probabilities itself."""
    return any(a.name == "post_transform" and a.s not in {b"", b"NONE"} for a in node.attribute)
