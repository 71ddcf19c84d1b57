"""A client written for Triton that calls Priordial instead, with another tau for each row."""

import os

import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(
    os.environ.get("PRIORDIAL_URL", "http://127.0.0.1:8000").removeprefix("http://")
)
rows = np.array([[6.3, 2.8, 5.1, 1.5], [6.3, 2.8, 5.1, 1.5]], np.float32)
x = triton.InferInput("X", list(rows.shape), "FP32")
x.set_data_from_numpy(rows)
tau = triton.InferInput("tau", [len(rows), 1], "FP32")
tau.set_data_from_numpy(np.array([[0.0], [1.0]], np.float32))

result = client.infer("flowers", [x, tau], outputs=[triton.InferRequestedOutput("class_name")])
for answered_with, name in zip((0, 1), result.as_numpy("class_name")[:, 0], strict=True):
    print(f"tau {answered_with}: {name.decode()}")
