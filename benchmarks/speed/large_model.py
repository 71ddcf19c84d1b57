"""Imports and serves a model of more than 2 GB whose weights lie in a separate file. Run by hand:

    python -m benchmarks.speed.large_model [--gib 2.2]

The script writes a network x → relu(x·A)·B with external data, where A has the given size. It
imports the network with `python -m service import`, serves it, and compares the answers with
NumPy's. All files are written to a temporary folder, which is deleted at the end.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES = 8192, 5
BLOCK = 512
READY = re.compile(r"ready on (http:[\d.:/]+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2.2, help="size of the weights (default 2.2)")
    hidden = int(parser.parse_args().gib * 2**30 / 4 / FEATURES) // BLOCK * BLOCK
    x = np.random.default_rng(1).normal(size=(3, FEATURES)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="priordial-large-") as name:
        folder = Path(name)
        wanted = write(folder, hidden, x)
        size = (folder / "weights.bin").stat().st_size
        print(f"weights            {size / 2**30:6.2f} GiB")
        begun = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "service",
                "import",
                folder / "large.onnx",
                "--name",
                "large",
                "--class-names",
                folder / "names.txt",
                "--models",
                folder / "models",
            ],
            check=True,
        )
        print(f"import             {time.perf_counter() - begun:6.1f} s")
        (folder / "weights.bin").unlink()
        begun = time.perf_counter()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "service",
                "serve",
                "--models",
                folder / "models",
                "--port",
                "0",
                "--store",
                f"sqlite:///{folder}/p.db",
                "--max-batch-rows",
                "4",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            url = next(m[1] for line in process.stderr if (m := READY.search(line)))
            print(f"ready after        {time.perf_counter() - begun:6.1f} s")
            begun = time.perf_counter()
            found = ask(f"{url}/predict?tau=0", x)
            print(f"three rows         {time.perf_counter() - begun:6.2f} s")
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024
            print(f"resident           {resident / 2**30:6.2f} GiB")
        finally:
            process.terminate()
            process.wait(60)
    difference = np.abs(found - wanted).max()
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-5


def write(folder: Path, hidden: int, x: np.ndarray) -> np.ndarray:
    """Write the model, and return the probabilities [n, CLASSES] of x, computed block by block."""
    rng = np.random.default_rng(0)
    scale = np.float32(1 / np.sqrt(FEATURES))
    b = (rng.normal(size=(hidden, CLASSES)) / np.sqrt(hidden)).astype(np.float32)
    logits = np.zeros((len(x), CLASSES))
    # Stored transposed, [hidden, FEATURES], so that a block of hidden units is a block of the file.
    with (folder / "weights.bin").open("wb") as file:
        for start in range(0, hidden, BLOCK):
            block = rng.standard_normal((BLOCK, FEATURES), np.float32) * scale
            file.write(block.tobytes())
            logits += np.maximum(x @ block.T, 0) @ b[start : start + BLOCK].astype(np.float64)
    weights = TensorProto(
        name="A",
        data_type=TensorProto.FLOAT,
        dims=[hidden, FEATURES],
        data_location=TensorProto.EXTERNAL,
    )
    entry = weights.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "A"], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "B"], ["logits"]),
        ],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [weights, numpy_helper.from_array(b, "B")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "large.onnx")
    (folder / "names.txt").write_text("\n".join("abcde"), encoding="ascii")
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def ask(url: str, x: np.ndarray) -> np.ndarray:
    body = json.dumps({"instances": x.tolist()}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        predictions = json.load(answer)["predictions"]
    found = np.zeros((len(x), CLASSES))
    for row, prediction in enumerate(predictions):
        for item in prediction["top"]:
            found[row, item["index"]] = item["probability"]
    return found


if __name__ == "__main__":
    main()
