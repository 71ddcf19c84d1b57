"""TINY behind mosec: a web server in Rust, batches in a Python worker.

Run by `benchmarks/speed/peers.py` with a Python that has mosec, onnxruntime, NumPy and orjson:

    MODEL=model.onnx WAIT_MS=1 python mosec_service.py --address 127.0.0.1 --port 8001

A request is {"instances": [row]} and an answer holds the five best classes, their probabilities,
tau and the model's name, which is what this service answers. JSON is read and written by orjson,
the fastest that a user of mosec would choose.
"""

import os

import numpy as np
import onnxruntime as ort
import orjson
from mosec import Server, Worker


class Classifier(Worker):
    """One graph call for all rows that mosec collects."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(os.environ["MODEL"], options)

    def deserialize(self, data: bytes):
        """Read one row of floats from a JSON body."""
        return np.array(orjson.loads(data)["instances"][0], np.float32)

    def serialize(self, data) -> bytes:
        """Write one answer as JSON."""
        return orjson.dumps(data)

    def forward(self, data: list):
        """Return the answers to all rows of a batch."""
        (logits,) = self._session.run(None, {"x": np.stack(data)})
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        best = np.argsort(-chances, axis=1)[:, :5]
        kept = np.take_along_axis(chances, best, axis=1).tolist()
        return [
            {
                "model": "tiny",
                "tau": 1.0,
                "predictions": [
                    {
                        "top": [
                            {"label": f"class-{i:05d}", "index": i, "probability": p}
                            for i, p in zip(indices, probabilities, strict=True)
                        ]
                    }
                ],
            }
            for indices, probabilities in zip(best.tolist(), kept, strict=True)
        ]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Classifier,
        max_batch_size=64,
        max_wait_time=int(os.environ["WAIT_MS"]),
        route="/models/tiny/predict",
    )
    server.run()
