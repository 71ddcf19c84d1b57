"""TINY behind MLServer: its gRPC server, and onnxruntime in its own process.

`benchmarks/speed/grpc_load.py` writes the settings and runs `mlserver start FOLDER`. MLServer
collects up to 64 rows for 1 ms. An answer holds the probabilities of all classes.
"""

import os

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Classifier(MLModel):
    """One graph call for all rows that MLServer collects."""

    async def load(self) -> bool:
        """Open the graph of MODEL with one thread."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(os.environ["MODEL"], options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer with the probabilities [n, C] of the rows [n, 64]."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        (logits,) = self._session.run(None, {"x": rows.astype(np.float32, copy=False)})
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", chances)]
        )
