"""Adds the nodes that rank: the best classes of each row by its logits, and their probabilities.

For a large class list, the graph contains two selections. Their results are equal, ties included.
`whole` takes the k best among all classes. `blocks` takes the largest class of each block, then the
k best blocks, then the k best among the classes of those blocks. A boolean input of the graph
chooses one for each call. Which is faster depends on the number of rows and on the machine.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

PREFIX = "adjustment."
LARGE = 1000
"""The smallest class list with two selections. For fewer classes the choice costs more than it
saves.
"""
_WIDTHS = range(32, 513)


@dataclass(frozen=True)
class RankingTensors:
    """Names of the tensors of one ranking.

    logits: [B, C]; k: [1], how many classes; index and probability: [B, k], the results.
    """

    logits: str
    k: str
    index: str
    probability: str


class Nodes:
    """Appends nodes and constants to a graph, or to a branch of one.

    scope: the prefix of every constant's name.
    """

    def __init__(self, graph: "onnx.GraphProto", opset: int, scope: str = PREFIX) -> None:
        self.graph, self.opset, self.scope = graph, opset, scope

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node and return its last output; `output` separates several names by spaces."""
        from onnx import helper

        self.graph.node.append(
            helper.make_node(
                op, inputs, output.split(), name=self.scope + "node." + output, **attributes
            )
        )
        return output.rsplit(maxsplit=1)[-1]

    def constant(self, name: str, value: "np.ndarray[Any, Any]") -> str:
        """Append an initializer and return its full name."""
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(value, self.scope + name))
        return self.scope + name

    def integer(self, name: str, *values: int) -> str:
        """Append an int64 [n] initializer and return its full name."""
        return self.constant(name, np.array(values, np.int64))


def rank(nodes: Nodes, ranking: RankingTensors) -> None:
    """Rank by logits, since probabilities underflow to ties, and look up the probabilities."""
    nodes.node("TopK", [ranking.logits, ranking.k], _found(ranking), axis=1)
    _normalise(nodes, ranking)


def rank_large(
    nodes: Nodes,
    adjusted: RankingTensors,
    unadjusted: RankingTensors,
    *,
    classes: int,
    by_blocks: str,
) -> None:
    """Rank a large class list twice, with both selections.

    adjusted, unadjusted: the two rankings. by_blocks: the boolean scalar that chooses the
    selection.
    """
    from onnx import TensorProto, helper

    branches = []
    for selection in ("blocks", "whole"):
        scope = f"{PREFIX}{selection}."
        branch = Nodes(helper.make_graph([], selection, [], []), nodes.opset, scope)
        if selection == "blocks":
            blocks = _Blocks(branch, classes)
        for number, ranking in enumerate((adjusted, unadjusted)):
            value, index = f"{scope}value{number}", f"{scope}index{number}"
            if selection == "blocks":
                blocks.find(ranking.logits, ranking.k, value, index)
            else:
                branch.node("TopK", [ranking.logits, ranking.k], f"{value} {index}", axis=1)
            for name, kind in ((value, TensorProto.FLOAT), (index, TensorProto.INT64)):
                branch.graph.output.append(helper.make_tensor_value_info(name, kind, None))
        branches.append(branch.graph)
    found = f"{_found(adjusted)} {_found(unadjusted)}"
    nodes.node("If", [by_blocks], found, then_branch=branches[0], else_branch=branches[1])
    _normalise(nodes, adjusted)
    _normalise(nodes, unadjusted)


def block_width(classes: int) -> int:
    """The number of classes in a block, near the square root of all.

    It divides the number of classes where possible, so that nothing is padded.
    """
    root = math.isqrt(classes)
    whole = [w for w in _WIDTHS if classes % w == 0 and classes // w >= root // 4]
    return min(whole, key=lambda w: abs(w - root), default=max(root, _WIDTHS[0]))


def most_by_blocks(classes: int) -> int:
    """The largest k for which `blocks` is worthwhile: a larger k reads too many of the classes."""
    return -(-classes // block_width(classes)) // 4


class _Blocks:
    """Selects the k best classes by blocks.

    The result is exact, ties included. Suppose that one of the k best classes were outside the k
    best blocks. Then each of those blocks would hold a larger logit, or an equal one with a lower
    index, which TopK prefers. Blocks are in the order of the classes.
    """

    def __init__(self, nodes: Nodes, classes: int) -> None:
        self.nodes = nodes
        width = block_width(classes)
        blocks = -(-classes // width)
        self.missing = blocks * width - classes
        self.shape = nodes.integer("shape", 0, blocks, width)
        self.flat = nodes.integer("flat", 0, -1)
        self.last = nodes.integer("last", 2)
        self.width = nodes.integer("width", width)
        if self.missing:
            self.pads = nodes.integer("pads", 0, 0, 0, self.missing)
            self.least = nodes.constant("least", np.array(-np.inf, np.float32))

    def find(self, logits: str, k: str, value: str, index: str) -> None:
        """Write the k best of logits [B, C] to `value` [B, k] and `index` [B, k]."""
        add, at = self.nodes.node, value + "."
        if self.missing:
            logits = add("Pad", [logits, self.pads, self.least], at + "padded")
        blocked = add("Reshape", [logits, self.shape], at + "blocked")
        largest = self._largest(blocked, at + "largest")
        best = add("TopK", [largest, k], f"{at}block_value {at}best", axis=1)
        block = add("TopK", [best, k], f"{at}block {at}order", axis=1, largest=0)
        block = at + "block"
        column = add("Unsqueeze", [block, self.last], at + "column")
        chosen = add("GatherND", [blocked, column], at + "chosen", batch_dims=1)
        candidates = add("Reshape", [chosen, self.flat], at + "candidates")
        place = add("TopK", [candidates, k], f"{value} {at}place", axis=1)
        nth = add("Div", [place, self.width], at + "nth")
        within = add("Sub", [place, add("Mul", [nth, self.width], at + "begin")], at + "within")
        of_place = add("GatherElements", [block, nth], at + "of_place", axis=1)
        first = add("Mul", [of_place, self.width], at + "first")
        add("Add", [first, within], index)

    def _largest(self, blocked: str, output: str) -> str:
        if self.nodes.opset < 18:  # from opset 18 on, the axes are an input
            return self.nodes.node("ReduceMax", [blocked], output, axes=[2], keepdims=0)
        return self.nodes.node("ReduceMax", [blocked, self.last], output, keepdims=0)


def _found(ranking: RankingTensors) -> str:
    return f"{ranking.probability}.logit {ranking.index}"


def _normalise(nodes: Nodes, ranking: RankingTensors) -> None:
    # onnxruntime's Softmax takes three quarters of the time of its LogSoftmax, and is as exact.
    name = ranking.probability
    every = nodes.node("Softmax", [ranking.logits], name + ".every", axis=1)
    nodes.node("GatherElements", [every, ranking.index], name, axis=1)
