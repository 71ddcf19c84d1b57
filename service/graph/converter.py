"""Brings an old model to the oldest opset that the head takes, in a process of its own.

onnx's converter is compiled code, and a file that it cannot take may end its process.
`python -m service.graph.converter` reads a model from stdin. It writes the result to stdout, or the
reason to stderr with the exit status 1.
"""

import signal
import subprocess
import sys

import onnx

from service.graph.foreign import MIN_OPSET, UnsupportedGraph
from service.process.exit_codes import DONE, FAILED


def convert(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at `foreign.MIN_OPSET`. Raises UnsupportedGraph with the converter's reason."""
    ended = subprocess.run(
        [sys.executable, "-m", "service.graph.converter"],
        input=model.SerializeToString(), capture_output=True, check=False,
    )  # fmt: skip
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise UnsupportedGraph(f"onnx's converter was ended by {name}")
    if ended.returncode != DONE:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        raise UnsupportedGraph(lines[-1] if lines else f"exit status {ended.returncode}")
    return onnx.load_from_string(ended.stdout)


def main() -> int:
    """Convert the model on stdin."""
    from onnx import version_converter

    from service.graph.reasons import first_line

    try:
        model = onnx.load_from_string(sys.stdin.buffer.read())
        found = version_converter.convert_version(model, MIN_OPSET)
    except Exception as error:  # noqa: BLE001 - the converter may raise anything
        sys.stderr.write(f"{first_line(error)}\n")
        return FAILED
    sys.stdout.buffer.write(found.SerializeToString())
    return DONE


if __name__ == "__main__":
    sys.exit(main())
