"""Composes the adjustment head onto any classifier's graph.

With the head, the graph itself computes z = f/T − tau·(log σ − log ρ) for every row with the row's
own tau and prior, ranks the classes and normalises. `service.graph.composer` composes in a separate
process. The serving process therefore never imports onnx, which takes 30 MiB and a third of a
second, and never parses a foreign file.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from service.graph import foreign as foreign_graph
from service.graph import ranking
from service.graph.ranking import PREFIX, Nodes, RankingTensors

if TYPE_CHECKING:
    import onnx

TAU, PRIOR_INDEX, PRIOR_TABLE, TOP_K = (
    PREFIX + name for name in ("tau", "prior_index", "prior_table", "top_k")
)
FULL_ROWS, BY_BLOCKS = PREFIX + "full_rows", PREFIX + "by_blocks"
TOP_INDEX, TOP_PROBABILITY, UNADJUSTED_INDEX, UNADJUSTED_PROBABILITY = RANKED = tuple(
    PREFIX + name
    for name in ("top_index", "top_probability", "unadjusted_index", "unadjusted_probability")
)
LOGITS, ADJUSTED_LOGITS, PROBABILITIES = FULL = tuple(
    PREFIX + name for name in ("logits", "adjusted_logits", "probabilities")
)

Calibration: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Scale [C] and bias [C] of a calibration: logits = scale · score + bias."""

# 1.1754944e-38: smaller probabilities are raised to it before their logarithm is taken.
_TINY = np.float32(np.finfo(np.float32).tiny)


def compose(
    model: "onnx.ModelProto",
    *,
    output: str,
    kind: str,
    temperature: float = 1.0,
    classes: int = 0,
    calibration: Calibration | None = None,
) -> "onnx.ModelProto":
    """Add the head to a model in place and return it; weights are not touched.

    output: the graph's output with [batch, C] logits or probabilities (kind), or a ZipMap over
    them. A final softmax is cut off, so that the head starts from its input. classes: C, or 0 where
    it is not known.

    Added inputs: tau float32 [B] and prior_index int64 [B], prior_table float32 [P, C] with rows
    log σ − log ρ, top_k int64 [1], full_rows int64 [1] (how many rows of PROBABILITIES to compute).
    From ranking.LARGE classes on, tau and prior_index may both be [1], the same for all rows, and
    by_blocks bool [] chooses the selection; it must be false where top_k exceeds
    ranking.most_by_blocks(C). The outputs RANKED and FULL replace the graph's own.
    """
    foreign_graph.check_names(model, PREFIX)
    opset = foreign_graph.opset_of(model)
    foreign_graph.mend_locales(model)
    graph = model.graph
    output = foreign_graph.find_output(graph, output)
    declared = foreign_graph.declared_columns(graph, output)
    value, kind = foreign_graph.cut(graph, output, kind)
    if kind == "logits" and foreign_graph.is_float32(graph, value):
        value = foreign_graph.rename(graph, value, LOGITS)
    head = _Head(Nodes(graph, opset))
    head.scaled = scaled_logits(head.nodes, value, kind, temperature, calibration)
    head.adjusted_logits()
    head.rankings(
        classes if declared in (classes, None) else 0
    )  # warm-up reports a wrong number of classes
    head.outputs()
    return model


def scaled_logits(
    nodes: Nodes, value: str, kind: str, temperature: float, calibration: Calibration | None
) -> str:
    """Add nodes for LOGITS = f in float32 and for f / T; return the name of the latter.

    value: the tensor to start from; LOGITS itself where the model's own tensor has that name.
    """
    from onnx import TensorProto

    add = nodes.node
    if kind == "probabilities":
        wide = add("Cast", [value], PREFIX + "wide", to=TensorProto.FLOAT)
        floor = nodes.constant("tiny", np.array(_TINY))
        floored = add("Max", [wide, floor], PREFIX + "floored")
        add("Log", [floored], LOGITS)
    elif calibration is not None:
        wide = add("Cast", [value], PREFIX + "wide", to=TensorProto.FLOAT)
        scale = nodes.constant("scale", np.array(calibration[0], np.float32))
        bias = nodes.constant("bias", np.array(calibration[1], np.float32))
        add("Add", [add("Mul", [wide, scale], PREFIX + "spread"), bias], LOGITS)
    elif value != LOGITS:
        add("Cast", [value], LOGITS, to=TensorProto.FLOAT)
    if temperature == 1.0:
        return LOGITS
    divisor = nodes.constant("temperature", np.array(temperature, np.float32))
    return add("Div", [LOGITS, divisor], PREFIX + "scaled_logits")


class _Head:
    """Appends the head to a graph, under PREFIX."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes, self.add = nodes, nodes.node
        self.scaled = LOGITS
        self.chooses = False

    def adjusted_logits(self) -> None:
        rows = self.add("Gather", [PRIOR_TABLE, PRIOR_INDEX], PREFIX + "rows", axis=0)
        column = self.nodes.integer("column", -1, 1)
        tau = self.add("Reshape", [TAU, column], PREFIX + "tau_column")
        offset = self.add("Mul", [rows, tau], PREFIX + "offset")
        self.add("Sub", [self.scaled, offset], ADJUSTED_LOGITS)

    def rankings(self, classes: int) -> None:
        one = self.nodes.integer("one", 1)
        adjusted = RankingTensors(ADJUSTED_LOGITS, TOP_K, TOP_INDEX, TOP_PROBABILITY)
        unadjusted = RankingTensors(self.scaled, one, UNADJUSTED_INDEX, UNADJUSTED_PROBABILITY)
        self.chooses = classes >= ranking.LARGE
        if self.chooses:
            ranking.rank_large(
                self.nodes, adjusted, unadjusted, classes=classes, by_blocks=BY_BLOCKS
            )
        else:
            ranking.rank(self.nodes, adjusted)
            ranking.rank(self.nodes, unadjusted)

    def outputs(self) -> None:
        from onnx import TensorProto, helper

        # onnxruntime runs every node, even if its output is not fetched. A softmax of 0 rows is
        # free.
        first = self.nodes.integer("first", 0)
        rows = self.add("Slice", [ADJUSTED_LOGITS, first, FULL_ROWS, first], PREFIX + "full")
        self.add("Softmax", [rows], PROBABILITIES, axis=1)
        graph, value = self.nodes.graph, helper.make_tensor_value_info
        # onnxruntime puts tensors whose dimensions have the same names into one buffer.
        settings = PREFIX + ("settings" if self.chooses else "B")
        graph.input.extend(
            [
                value(TAU, TensorProto.FLOAT, [settings]),
                value(PRIOR_INDEX, TensorProto.INT64, [settings]),
                value(PRIOR_TABLE, TensorProto.FLOAT, [PREFIX + "P", PREFIX + "C"]),
                value(TOP_K, TensorProto.INT64, [1]),
                value(FULL_ROWS, TensorProto.INT64, [1]),
            ]
        )
        if self.chooses:
            graph.input.append(value(BY_BLOCKS, TensorProto.BOOL, []))
        del graph.output[:]
        for name in (*RANKED, *FULL):
            rows = PREFIX + ("full" if name == PROBABILITIES else "B")
            width = PREFIX + "C" if name in FULL else (1 if "unadjusted" in name else PREFIX + "K")
            type_ = TensorProto.INT64 if name.endswith("index") else TensorProto.FLOAT
            graph.output.append(value(name, type_, [rows, width]))
