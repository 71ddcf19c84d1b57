"""The models that the benchmarks serve: three classifiers of different cost, with random weights.

TINY   64 → 128 → 10, a perceptron: the cost is in the request
WIDE   256 → 8,142, a linear layer: the cost is in the head
CONV   a ResNet-32 over 3 × 32 × 32, 100 classes: the cost is in the graph
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.contract.publication import publish

IR_VERSION, OPSET = 10, 20


@dataclasses.dataclass(frozen=True)
class BenchModel:
    """A classifier with input "x" [batch, *shape] and output "logits" [batch, classes]."""

    name: str
    shape: tuple[int, ...]
    classes: int
    graph: "functools.partial[onnx.ModelProto]"

    def inputs(self, rows: int, seed: int = 0) -> np.ndarray:
        """Return random inputs, float32 [rows, *shape]."""
        return np.random.default_rng(seed).normal(size=(rows, *self.shape)).astype(np.float32)

    def counts(self) -> list[float]:
        """Return training counts of the classes: a long tail from 1,000 to 10."""
        return [
            max(1.0, round(1000 * 0.01 ** (i / (self.classes - 1)))) for i in range(self.classes)
        ]

    def publish(self, models: Path) -> Path:
        """Write the model as the next version: models/NAME/VERSION."""
        return publish(
            models,
            self.name,
            fields={
                "class_names": [f"class-{i:05d}" for i in range(self.classes)],
                "class_counts": self.counts(),
                "loss_tau": 0.0,
                "temperature": 1.0,
                "input": {
                    "name": "x",
                    "kind": "tensor",
                    "shape": [None, *self.shape],
                    "dtype": "float32",
                },
                "output": {"name": "logits", "kind": "logits"},
            },
            write_files=lambda folder: onnx.save(self.graph(), folder / "model.onnx"),
        )


class _Graph:
    """Collects nodes and random weights."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def weight(self, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        values = self._random.normal(scale=fan_in**-0.5, size=shape).astype(np.float32)
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def dense(self, x: str, inputs: int, outputs: int, *, output: str = "") -> str:
        return self.node(
            "Gemm", x, self.weight(inputs, outputs), self.weight(outputs), output=output
        )

    def conv(self, x: str, inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> str:
        """Append a convolution with its batch normalisation folded in, as an exporter leaves it."""
        return self.node(
            "Conv", x, self.weight(outputs, inputs, size, size), self.weight(outputs),
            kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4,
        )  # fmt: skip

    def model(self, shape: tuple[int, ...], classes: int) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "bench",
            [value("x", TensorProto.FLOAT, ["batch", *shape])],
            [value("logits", TensorProto.FLOAT, ["batch", classes])],
            self.weights,
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def _tiny() -> onnx.ModelProto:
    graph = _Graph(seed=1)
    hidden = graph.node("Relu", graph.dense("x", 64, 128))
    graph.dense(hidden, 128, 10, output="logits")
    return graph.model((64,), 10)


def _wide() -> onnx.ModelProto:
    graph = _Graph(seed=2)
    graph.dense("x", 256, 8142, output="logits")
    return graph.model((256,), 8142)


def _conv() -> onnx.ModelProto:
    graph = _Graph(seed=3)
    x = graph.node("Relu", graph.conv("x", 3, 16))
    channels = 16
    for width in (16, 32, 64):
        for block in range(5):
            stride = 2 if block == 0 and width > 16 else 1
            inner = graph.node("Relu", graph.conv(x, channels, width, stride=stride))
            inner = graph.conv(inner, width, width)
            if channels != width:
                x = graph.conv(x, channels, width, size=1, stride=stride)
            x = graph.node("Relu", graph.node("Add", inner, x))
            channels = width
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    graph.dense(pooled, 64, 100, output="logits")
    return graph.model((3, 32, 32), 100)


TINY = BenchModel("tiny", (64,), 10, functools.partial(_tiny))
WIDE = BenchModel("wide", (256,), 8142, functools.partial(_wide))
CONV = BenchModel("conv", (3, 32, 32), 100, functools.partial(_conv))
MODELS = (TINY, WIDE, CONV)
