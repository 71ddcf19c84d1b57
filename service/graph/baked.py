"""Composes the adjustment of one prior and one tau onto a graph: a plain ONNX file for any runtime.

The file has the same nodes as the head that the service composes, in the same order and precision,
so both give bit-identical results. The prior's row and tau are constants, or inputs with these
constants as defaults.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.graph import foreign, head, ranking
from service.graph.ranking import PREFIX, Nodes, RankingTensors

if TYPE_CHECKING:
    import onnx

PROBABILITIES, ADJUSTED_LOGITS = "probabilities", "adjusted_logits"
CLASS_INDEX, CLASS_PROBABILITY = "class_index", "class_probability"
TAU, SHIFT = "tau", "log_prior_shift"
_DEFAULTS_IR = 4
"""The first version of the file format in which a default of an input is not a constant."""


@dataclass(frozen=True)
class Names:
    """The names of the added outputs and, with inputs, of tau and the prior's row."""

    probabilities: str
    adjusted_logits: str
    class_index: str
    class_probability: str
    tau: str
    shift: str


def bake(
    model: "onnx.ModelProto",
    *,
    output: str,
    kind: str,
    temperature: float,
    calibration: head.Calibration | None,
    shift: NDArray[np.float32],
    tau: float,
    as_inputs: bool,
) -> Names:
    """Add the adjustment to a model in place and return the names of what was added.

    output, kind, temperature, calibration: as for `head.compose`. shift: [C] log σ − log ρ, which
    is subtracted tau times. as_inputs: make tau [1] and the shift [C] inputs of the graph, with
    these values as defaults.

    Outputs: probabilities and adjusted_logits float32 [B, C], class_index int64 [B, 1] and
    class_probability float32 [B, 1] of the best class. They replace the graph's own. Raises
    UnsupportedGraph.
    """
    from onnx import TensorProto, helper

    foreign.check_names(model, PREFIX)
    opset = foreign.opset_of(model)
    graph = model.graph
    output = foreign.find_output(graph, output)
    value, kind = foreign.cut(graph, output, kind)
    taken = _names(graph)
    names = Names(
        *(
            _unused(each, taken)
            for each in (PROBABILITIES, ADJUSTED_LOGITS, CLASS_INDEX, CLASS_PROBABILITY, TAU, SHIFT)
        )
    )
    nodes = Nodes(graph, opset)
    scaled = head.scaled_logits(nodes, value, kind, temperature, calibration)
    constants = Nodes(graph, opset, scope="")
    strength = constants.constant(names.tau, np.array([tau], np.float32))
    row = constants.constant(names.shift, shift)
    offset = nodes.node("Mul", [row, strength], PREFIX + "offset")
    adjusted = nodes.node("Sub", [scaled, offset], names.adjusted_logits)
    nodes.node("Softmax", [adjusted], names.probabilities, axis=1)
    one = nodes.integer("one", 1)
    ranking.rank(nodes, RankingTensors(adjusted, one, names.class_index, names.class_probability))
    info = helper.make_tensor_value_info
    if as_inputs:  # an initializer with the name of an input is the input's default
        model.ir_version = max(model.ir_version, _DEFAULTS_IR)
        graph.input.append(info(names.tau, TensorProto.FLOAT, [1]))
        graph.input.append(info(names.shift, TensorProto.FLOAT, [len(shift)]))
    del graph.output[:]
    classes = len(shift)
    for name, width, type_ in (
        (names.probabilities, classes, TensorProto.FLOAT),
        (names.adjusted_logits, classes, TensorProto.FLOAT),
        (names.class_index, 1, TensorProto.INT64),
        (names.class_probability, 1, TensorProto.FLOAT),
    ):
        graph.output.append(info(name, type_, ["batch", width]))
    return names


def _names(graph: "onnx.GraphProto") -> set[str]:
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    for group in (graph.input, graph.output, graph.initializer):
        taken.update(item.name for item in group)
    return taken


def _unused(wanted: str, taken: set[str]) -> str:
    """`wanted`, or the first of `wanted_2`, `wanted_3` … that no tensor has."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
