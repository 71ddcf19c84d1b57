"""The nodes of the head that rank: the best classes of each row by its logits, and their probabilities.

Of a large class list the best are found in one of two ways, which give the same classes in the same order, bit by bit: `whole`
looks for the k best among all, `by blocks` takes the largest of each block of classes, then the k best blocks, then the k best among those
blocks' classes. A boolean input of the graph says which, call by call; which is faster depends on the number of rows and on the machine.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

PREFIX = "adjustment."
LARGE = 1000
"""From so many classes on there is a choice; with fewer, the two ways differ by less than asking which costs."""
_WIDTHS = range(32, 513)


@dataclass(frozen=True)
class Ranking:
    """The tensors of one ranking: of logits [B, C] the k [1] best, their index [B, k] and probability [B, k]."""

    logits: str
    k: str
    index: str
    probability: str


class Nodes:
    """Appends nodes and constants to a graph, or to a branch of one; a constant's name gets the scope before it."""

    def __init__(self, graph: "onnx.GraphProto", opset: int, scope: str = PREFIX) -> None:
        self.graph, self.opset, self.scope = graph, opset, scope

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node; its outputs are parted by spaces. The name of the last is returned."""
        from onnx import helper

        self.graph.node.append(
            helper.make_node(
                op, inputs, output.split(), name=self.scope + "node." + output, **attributes
            )
        )
        return output.rsplit(maxsplit=1)[-1]

    def constant(self, name: str, value: "np.ndarray[Any, Any]") -> str:
        """Append an initializer; returns its whole name."""
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(value, self.scope + name))
        return self.scope + name

    def integer(self, name: str, *values: int) -> str:
        """The same for int64 [n]."""
        return self.constant(name, np.array(values, np.int64))


def rank(nodes: Nodes, ranking: Ranking) -> None:
    """Rank by logits, not by probabilities (those underflow to ties); normalise in the log domain."""
    nodes.node("TopK", [ranking.logits, ranking.k], _found(ranking), axis=1)
    _normalise(nodes, ranking)


def rank_large(
    nodes: Nodes, adjusted: Ranking, unadjusted: Ranking, *, classes: int, by_blocks: str
) -> None:
    """The same for two rankings of many classes; by_blocks is a boolean scalar that says how they are found."""
    from onnx import TensorProto, helper

    branches = []
    for way in ("blocks", "whole"):
        scope = f"{PREFIX}{way}."
        branch = Nodes(helper.make_graph([], way, [], []), nodes.opset, scope)
        if way == "blocks":
            blocks = _Blocks(branch, classes)
        for number, ranking in enumerate((adjusted, unadjusted)):
            value, index = f"{scope}value{number}", f"{scope}index{number}"
            if way == "blocks":
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
    """Classes in a block: near the square root of all, and a divisor where there is one, so that nothing is padded."""
    root = math.isqrt(classes)
    whole = [w for w in _WIDTHS if classes % w == 0 and classes // w >= root // 4]
    return min(whole, key=lambda w: abs(w - root), default=max(root, _WIDTHS[0]))


def most_by_blocks(classes: int) -> int:
    """The largest k that is looked for by blocks: with more, the blocks that are looked at are a good part of all."""
    return -(-classes // block_width(classes)) // 4


class _Blocks:
    """Finds the k best by blocks.

    It is exact, ties included: were a class of the k best not in the k best blocks, then each of those k would hold a larger logit,
    or an equal one of a lower index, since TopK lets the lower index win. Blocks are looked at in the order of the classes.
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
        """The k best of logits [B, C]: their value [B, k] and index [B, k]."""
        add, at = self.nodes.node, value + "."
        if self.missing:
            logits = add("Pad", [logits, self.pads, self.least], at + "padded")
        parted = add("Reshape", [logits, self.shape], at + "parted")
        largest = self._largest(parted, at + "largest")
        best = add("TopK", [largest, k], f"{at}block_value {at}best", axis=1)
        block = add("TopK", [best, k], f"{at}block {at}order", axis=1, largest=0)
        block = at + "block"
        column = add("Unsqueeze", [block, self.last], at + "column")
        chosen = add("GatherND", [parted, column], at + "chosen", batch_dims=1)
        candidates = add("Reshape", [chosen, self.flat], at + "candidates")
        place = add("TopK", [candidates, k], f"{value} {at}place", axis=1)
        nth = add("Div", [place, self.width], at + "nth")
        within = add("Sub", [place, add("Mul", [nth, self.width], at + "begin")], at + "within")
        of_place = add("GatherElements", [block, nth], at + "of_place", axis=1)
        first = add("Mul", [of_place, self.width], at + "first")
        add("Add", [first, within], index)

    def _largest(self, parted: str, output: str) -> str:
        if self.nodes.opset < 18:  # where the axes became an input
            return self.nodes.node("ReduceMax", [parted], output, axes=[2], keepdims=0)
        return self.nodes.node("ReduceMax", [parted, self.last], output, keepdims=0)


def _found(ranking: Ranking) -> str:
    return f"{ranking.probability}.logit {ranking.index}"


def _normalise(nodes: Nodes, ranking: Ranking) -> None:
    name = ranking.probability
    log = nodes.node("LogSoftmax", [ranking.logits], name + ".log_softmax", axis=1)
    chosen = nodes.node("GatherElements", [log, ranking.index], name + ".log", axis=1)
    nodes.node("Exp", [chosen], name)
