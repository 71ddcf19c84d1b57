"""The private parts of onnxruntime that the service uses still work as it expects."""

import inspect
import subprocess
import sys

import numpy as np
import onnxruntime as ort

from service.contract.bundle import load_bundle
from service.graph import session
from service.graph.session import open_graph
from tests.support.server import ROOT
from tests.support.small_models import publish_model


def test_a_session_still_keeps_the_bytes_of_its_model_where_they_are_released(tmp_path):
    """Else `_release_model_bytes` sets an attribute that nobody reads, and memory doubles
    unseen.
    """
    folder = publish_model(tmp_path)
    content = (folder / "model.onnx").read_bytes()
    opened = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert opened._model_bytes == content
    session._release_model_bytes(opened)
    assert opened._model_bytes is None


def test_a_session_runs_without_the_bytes_of_its_model(tmp_path):
    folder = publish_model(tmp_path)
    opened = ort.InferenceSession(
        (folder / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )
    session._release_model_bytes(opened)
    name = opened.get_inputs()[0].name
    width = opened.get_inputs()[0].shape[1]
    assert len(opened.run(None, {name: np.zeros((2, width), np.float32)})[0]) == 2


def test_the_arena_is_still_shrunk_by_the_entry_that_returning_memory_sets():
    """onnxruntime ignores an unknown entry, so a rename would go unseen."""
    assert session._SHRINK.encode() in _libraries()


def test_telemetry_is_still_switched_off_by_the_variable_that_the_packages_set():
    assert b"ORT_DISABLE_TELEMETRY" in _libraries()
    code = "import os, service; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.strip() == b"1"


def test_a_session_still_has_the_call_behind_its_checks(tmp_path):
    folder = publish_model(tmp_path)
    opened = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (given,) = opened.get_inputs()
    names = [output.name for output in opened.get_outputs()]
    feeds = {given.name: np.ones((2, given.shape[1]), np.float32)}
    for found, expected in zip(
        opened._sess.run(names, feeds, None), opened.run(names, feeds), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_the_graph_of_a_published_model_has_released_its_bytes(tmp_path):
    folder = publish_model(tmp_path)
    graph = open_graph(folder, load_bundle(folder), provider="cpu")
    assert graph._session._model_bytes is None


def _libraries() -> bytes:
    """onnxruntime's native library."""
    folder = inspect.getfile(ort).rsplit("/", 1)[0]
    found = sorted(ROOT.joinpath(folder, "capi").glob("onnxruntime_pybind11_state*"))
    return b"".join(path.read_bytes() for path in found)


def test_threads_of_a_session_that_wait_do_not_spin(tmp_path):
    """A spinning thread takes a core that the event loop needs."""
    folder = publish_model(tmp_path)
    graph = open_graph(folder, load_bundle(folder), provider="cpu", intra_op_threads=2)
    options = graph._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
