"""Trains a classifier of irises on 50, 20 and 5 flowers, and writes iris.onnx and counts.json.

Serve it with:

    priordial import iris.onnx --name iris --class-counts counts.json
    priordial serve
"""

import json
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

COUNTS = {"setosa": 50, "versicolor": 20, "virginica": 5}

flowers = load_iris()
names = np.array(flowers.target_names)[flowers.target]
rows = np.concatenate([np.flatnonzero(names == name)[:count] for name, count in COUNTS.items()])
model = LogisticRegression(max_iter=1000).fit(flowers.data[rows], names[rows])

graph = to_onnx(model, flowers.data[:1].astype(np.float32), options={"zipmap": False})
Path("iris.onnx").write_bytes(graph.SerializeToString())
Path("counts.json").write_text(json.dumps(COUNTS) + "\n", encoding="utf-8")
print("wrote iris.onnx and counts.json")
