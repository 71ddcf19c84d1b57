"""What onnxruntime says is told as what it is: a lack of memory is no fault of a file or a row."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.graph.reasons import lacks_memory, refusal
from tests.support.server import ROOT
from tests.support.small_models import CLASSES, FEATURES, publish_model

WIDE = 1_000_000

SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
from service.contract.bundle import load_bundle
from service.graph.session import open_graph

folder = Path(sys.argv[1])
bundle = load_bundle(folder)
graph = open_graph(folder, bundle, provider="cpu", intra_op_threads=1)

def run(rows):
    return graph.run(
        np.ones((rows, {features}), np.float32),
        tau=np.zeros(rows, np.float32), prior_index=np.zeros(rows, np.int64),
        prior_table=np.zeros((1, {classes}), np.float32),
        top_k=1, generation=0, with_logits=False, full=False,
    )

run(1)
pages = int(Path("/proc/self/statm").read_text().split()[0])
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(
    resource.RLIMIT_AS, (pages * resource.getpagesize() + 48 * 2**20, hard)
)
try:
    run(64)
except MemoryError as error:
    print("MemoryError", error)
run(1)
print("scored")
"""


def wide_model():
    """Each row becomes a million numbers on its way."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("MatMul", ["mean", "wide"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [
            numpy_helper.from_array(np.ones((1, WIDE), np.float32), "wide"),
            numpy_helper.from_array(np.ones((WIDE, CLASSES), np.float32), "w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def test_a_batch_for_which_no_memory_is_left_blames_no_row(tmp_path):
    folder = publish_model(tmp_path / "models", model=wide_model())
    script = SCRIPT.format(features=FEATURES, classes=CLASSES)
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    first, last = done.stdout.splitlines()
    assert first.startswith("MemoryError its node"), done.stderr
    assert "Failed to allocate memory" in first
    assert last == "scored"


@pytest.mark.parametrize(
    "message",
    [
        "pthread_create failed, error code: 11 error msg: Resource temporarily unavailable",
        "[ONNXRuntimeError] : 1 : FAIL : Exception during loading: std::bad_alloc",
        "CUDA failure 2: out of memory ; GPU=0",
    ],
)
def test_a_file_that_could_not_be_opened_for_want_of_memory_is_not_to_be_exported_again(message):
    error = RuntimeError(message)
    assert lacks_memory(error)
    told = refusal(error)
    assert "no memory or thread left" in told
    assert "raise its limit" in told
    assert "Export" not in told


def test_another_fault_is_one_of_the_file():
    error = RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model failed")
    assert not lacks_memory(error)
    assert "Export the model again" in refusal(error)
