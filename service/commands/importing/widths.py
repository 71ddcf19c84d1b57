"""Finds the width of an input's rows if the graph leaves it free.

skl2onnx writes [None, None] unless it is given a width. Rows of a wrong width would then be scored
without an error: trees read only the columns that they use, and ONNX Runtime does not check more.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from service.commands.importing.inputs import Run, rows_of
from service.commands.importing.onnx_file import GraphInput
from service.commands.importing.refusal import ImportRefused
from service.contract.inputs.spec import InputSpec
from service.graph.trial import random_rows

REMEDY = (
    "name the columns (--column-names F), or export the model with the number of its columns, "
    "such as FloatTensorType([None, 6])"
)
_MAX_SCANNED = 512

_KEEP_WIDTH = {"Abs", "Binarizer", "Cast", "Identity", "Imputer", "Normalizer", "Scaler", "Sqrt"}
_TREES = {"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}
_PICKS = {"ArrayFeatureExtractor", "Gather"}


def settled(
    found: Sequence[GraphInput], graph: onnx.GraphProto, columns: int | None
) -> list[GraphInput]:
    """The inputs of a graph, with the width of [batch, width] filled in if it can be found.

    columns: how many columns the caller has named; None if none. Raises ImportRefused if the graph
    shows only the smallest possible width, since rows of a wrong width would be scored wrongly.
    """
    return [_settled(each, graph, columns if len(found) == 1 else None) for each in found]


def _settled(found: GraphInput, graph: onnx.GraphProto, columns: int | None) -> GraphInput:
    if len(found.shape) != 2 or found.shape[1] is not None:
        return found
    width, least = width_of(graph, found.name)
    if width is None and columns is not None:
        if columns < least:
            raise ImportRefused(
                f"--column-names has {columns} names; input '{found.name}' has at least {least} "
                "columns: name all of them, in the order of training"
            )
        width = columns
    if width is not None:
        return replace(found, shape=[found.shape[0], width])
    if least:
        raise ImportRefused(
            f"input '{found.name}' takes rows of any width, and the graph reads at least {least} "
            f"columns; rows of another width would be scored wrongly: {REMEDY}"
        )
    return found


def only_width(run: Run, spec: InputSpec) -> int | None:
    """The only width of rows that the model accepts, found by trial; None if none or several run.

    spec: an input [batch, width] whose width is free.
    """
    taken = (width for width in range(1, _MAX_SCANNED + 1) if _takes(run, spec, width))
    first = next(taken, None)
    return first if next(taken, None) is None else None


def _takes(run: Run, spec: InputSpec, width: int) -> bool:
    """Whether the model gives two answers for two rows of this width."""
    try:
        outputs = run(next(iter(random_rows(spec, 2, free=width))))
    except Exception:  # noqa: BLE001 - a refusal is an answer
        return False
    return any(rows_of(value) == 2 for value in outputs.values())


def width_of(graph: onnx.GraphProto, name: str) -> tuple[int | None, int]:
    """The width of a row of an input [batch, width], by the nodes that read it.

    Returns (the width, or None where no node shows it; the smallest width that the nodes need).
    """
    constants = {item.name: item for item in graph.initializer}
    same, least = {name}, 0
    for node in graph.node:  # in order: a node comes after those whose outputs it reads
        if not same & set(node.input):
            continue
        if width := _exact(node, constants):
            return width, width
        least = max(least, _least(node, constants))
        if node.op_type in _KEEP_WIDTH:
            same |= set(node.output)
    return None, least


def _exact(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int | None:
    """The width of the rows that a node takes; None where its weights do not show it."""
    read = _EXACT.get(node.op_type)
    return None if read is None else read(node, constants)


def _of_vector(node: onnx.NodeProto, _: Any) -> int | None:
    """The width of a node with one number per column; None if one number serves all columns."""
    keys = ("offset", "scale", "imputed_value_floats", "imputed_value_int64s")
    longest: int = max(len(_attribute(node, key) or ()) for key in keys)
    return longest if longest > 1 else None


def _of_product(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int | None:
    weights = constants.get(node.input[1])
    if weights is None or len(weights.dims) != 2:
        return None
    return int(weights.dims[1 if _attribute(node, "transB") else 0])


def _of_broadcast(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int | None:
    lasts = [constants[each].dims[-1:] for each in node.input if each in constants]
    return next((last[0] for last in lasts if last and last[0] > 1), None)


def _of_linear(node: onnx.NodeProto, _: Any) -> int | None:
    rows = len(_attribute(node, "intercepts") or ()) or _attribute(node, "targets") or 1
    return _parts(len(_attribute(node, "coefficients") or ()), rows)


def _of_vectors(node: onnx.NodeProto, _: Any) -> int | None:
    vectors = sum(_attribute(node, "vectors_per_class") or ()) or _attribute(node, "n_supports")
    return _parts(len(_attribute(node, "support_vectors") or ()), vectors or 0)


def _parts(whole: int, count: int) -> int | None:
    """The size of each of `count` equal parts; None if `count` does not divide the whole."""
    return whole // count if whole and count and not whole % count else None


_EXACT: dict[str, Callable[[onnx.NodeProto, dict[str, onnx.TensorProto]], int | None]] = {
    **dict.fromkeys(("Scaler", "Imputer"), _of_vector),
    **dict.fromkeys(("MatMul", "Gemm"), _of_product),
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), _of_broadcast),
    **dict.fromkeys(("LinearClassifier", "LinearRegressor"), _of_linear),
    **dict.fromkeys(("SVMClassifier", "SVMRegressor"), _of_vectors),
}


def _least(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int:
    """The smallest width of rows that has every column that a node reads."""
    if node.op_type in _TREES:
        columns = _attribute(node, "nodes_featureids") or ()
        return 1 + max(columns, default=-1)
    if node.op_type in _PICKS and node.input[1] in constants:
        if node.op_type == "Gather" and _attribute(node, "axis") != 1:
            return 0
        return 1 + int(np.max(numpy_helper.to_array(constants[node.input[1]]), initial=-1))
    return 0


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(
        (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None
    )
