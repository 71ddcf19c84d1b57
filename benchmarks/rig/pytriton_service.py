"""TINY behind PyTriton: Triton's own server in C++, and onnxruntime in a Python process.

Run by `benchmarks/speed/grpc_load.py` with a Python that has nvidia-pytriton and onnxruntime:

    MODEL=model.onnx python pytriton_service.py HTTP_PORT GRPC_PORT METRICS_PORT

Triton collects up to 64 rows. An answer holds the probabilities of all classes.
"""

import os
import sys

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options)


@batch
def infer(x: np.ndarray) -> dict[str, np.ndarray]:
    """Answer with the probabilities [n, C] of the rows [n, 64]."""
    (logits,) = session.run(None, {"x": x})
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    return {"probabilities": chances}


if __name__ == "__main__":
    http_port, grpc_port, metrics_port = map(int, sys.argv[1:])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        metrics_port=metrics_port,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="tiny",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float32, shape=(64,))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()),
            strict=False,
        )
        triton.serve()
