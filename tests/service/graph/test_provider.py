"""The provider that was asked for is the one that runs, or the start says what is missing."""

import importlib.metadata
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.commands import doctor
from service.contract.bundle import load_bundle
from service.graph import providers
from service.graph import session as graph
from service.process import stderr
from service.settings import Settings
from tests.support.server import ROOT, running, starting
from tests.support.small_models import inputs, publish_model


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def gpu_package_without_gpu(monkeypatch):
    """What onnxruntime-gpu does on a machine without a GPU: it lists CUDA and silently opens a CPU
    session.
    """
    opened = onnxruntime.InferenceSession

    def silently_on_the_cpu(model, options, **_asked):
        return opened(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(
        graph.ort,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(graph.ort, "InferenceSession", silently_on_the_cpu)


def test_cuda_that_silently_became_a_cpu_session_is_refused(gpu_package_without_gpu):
    with pytest.raises(providers.ProviderUnavailable, match="fell back to CPUExecutionProvider"):
        providers.resolve_provider("cuda")


def test_a_model_that_opens_on_another_provider_than_the_probe_did_is_refused(
    gpu_package_without_gpu, models, monkeypatch
):
    monkeypatch.setattr(providers, "probe", lambda _name: None)
    folder = models / "linear" / "1"
    with pytest.raises(providers.ProviderUnavailable, match="cuda was requested"):
        graph.open_graph(folder, load_bundle(folder), provider="cuda")


def test_auto_takes_the_cpu_where_cuda_does_not_work(gpu_package_without_gpu):
    assert providers.resolve_provider("auto") == "cpu"


def test_both_runtime_packages_at_once_are_an_error_that_says_how_to_mend_it(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "1.0")
    with pytest.raises(
        providers.ProviderUnavailable, match="pip uninstall -y onnxruntime onnxruntime-gpu"
    ):
        providers.check_runtime()


@pytest.mark.skipif(providers.probe("cuda") is None, reason="optional: this machine has a GPU")
def test_asking_for_cuda_without_a_gpu_ends_the_start_and_names_what_is_missing(models):
    with starting(models, provider="cuda") as server:
        assert server.exit() == 1
        assert "provider cuda does not work here" in server.log.splitlines()[-1]


@pytest.mark.skipif(providers.probe("cuda") is None, reason="optional: this machine has a GPU")
def test_auto_without_a_gpu_serves_on_the_cpu_and_says_so_once(models):
    with running(models, provider="auto") as server:
        assert server.log.count("serving on the CPU") == 1


@pytest.mark.skipif(providers.probe("cuda") is None, reason="optional: this machine has a GPU")
def test_the_gpu_tests_say_that_there_is_no_gpu_and_fail():
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "nothing was tested: CUDA does not work here" in done.stderr


def test_the_doctor_finds_what_works_and_what_does_not(models, tmp_path, capsys):
    fine = Settings(models=models, store=f"sqlite:///{tmp_path}/priors.db", provider="cpu")
    assert doctor.run(fine) == 0
    reported = capsys.readouterr().out
    assert "ok   provider cpu" in reported
    assert "ok   model linear/1" in reported
    (models / "linear" / "1" / "model.onnx").write_bytes(b"damaged")
    broken = Settings(
        models=models, store=f"sqlite:///{models}/linear/1/model.onnx/p.db", provider="cpu"
    )
    assert doctor.run(broken) == 1
    reported = capsys.readouterr().out
    assert "BAD  model linear/1" in reported
    assert "sha256" in reported
    assert "BAD  prior store" in reported


def test_the_probe_runs_a_convolution_and_a_matrix_product_and_compares_them(monkeypatch):
    kernel = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.float32).reshape(1, 1, 3, 3)
    weight = np.array([[1, 0, 2], [2, -1, 0], [3, 0, 1], [4, -1, 0]], np.float32)
    graph_of = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["c"]),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("Gemm", ["f", "weight", "bias"], ["y"]),
        ],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([1, 2, 3], np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph_of, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert onnx.load_model_from_string(providers._PROBE).graph == model.graph
    assert providers.probe("cpu") is None
    monkeypatch.setattr(providers, "_PROBE_OUTPUT", providers._PROBE_OUTPUT + 1)
    assert "no working kernels" in providers.probe("cpu")


def test_what_native_code_says_about_a_missing_library_is_the_reason_and_nothing_else_is_lost(
    monkeypatch, capfd
):
    opened = onnxruntime.InferenceSession

    def without_a_library(model, options, **_asked):
        os.write(2, b"[E:onnxruntime:, x.cc:1 Create] Failed to load library p.so with error: ")
        os.write(2, b"libcublasLt.so.13: cannot open shared object file\nanother thread's line\n")
        return opened(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(providers.ort, "InferenceSession", without_a_library)
    monkeypatch.setattr(
        providers.ort, "get_available_providers", lambda: [*providers.PROVIDERS.values()]
    )
    why = providers.probe("cuda")
    assert "libcublasLt.so.13" in why
    assert "pip install 'priordial[service,cuda]'" in why
    stderr.flush(60)  # a thread writes it
    assert capfd.readouterr().err == "another thread's line\n"


def test_a_session_never_falls_back_to_another_provider(models):
    folder = models / "linear" / "1"
    opened = graph.open_graph(folder, load_bundle(folder), provider="cpu")
    assert opened._session._enable_fallback is False


def test_a_device_is_told_by_number_memory_and_precision():
    (cuda, options), cpu = providers.provider_chain(
        "cuda", providers.Device(3, memory_mib=2048, tf32=False)
    )
    assert (cuda, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["device_id"] == "3"
    assert options["gpu_mem_limit"] == str(2 << 30)
    assert options["use_tf32"] == "0"
    assert "gpu_mem_limit" not in providers.Device().options()


def test_a_padded_batch_of_either_size_class_has_the_answers_of_its_rows(models):
    folder = models / "linear" / "1"
    bundle = load_bundle(folder)
    plain = graph.open_graph(folder, bundle, provider="cpu")
    classes = graph.open_graph(folder, bundle, provider="cpu", bound=True, size_classes=(4, 16))
    rng = np.random.default_rng(5)
    table = rng.normal(size=(8, len(bundle.class_names))).astype(np.float32)
    for rows in (1, 4, 5, 16, 20):
        asked = {
            "tau": rng.uniform(0, 2, rows).astype(np.float32),
            "prior_index": rng.integers(0, 8, rows),
            "prior_table": table,
            "top_k": 3,
            "full": True,
        }
        one, other = plain.run(inputs(rows), **asked), classes.run(inputs(rows), **asked)
        np.testing.assert_array_equal(one.top_index, other.top_index)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-7)
        assert other.logits.shape == (rows, len(bundle.class_names))
    assert classes._session_for(4) == (classes._small[1], 4)
    assert classes._session_for(5) == (classes._session, 16)


def test_only_the_rows_of_the_table_that_a_batch_names_go_to_the_device(models, monkeypatch):
    folder = models / "linear" / "1"
    bundle = load_bundle(folder)
    opened = graph.open_graph(folder, bundle, provider="cpu", bound=True)
    sent = []
    made = onnxruntime.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(
        graph.ort.OrtValue,
        "ortvalue_from_numpy",
        lambda rows, *place: sent.append(len(rows)) or made(rows, *place),
    )
    table = np.zeros((512, len(bundle.class_names)), np.float32)
    table[7, 2] = 3.0

    def ask(index, generation):
        return opened.run(
            inputs(3),
            tau=np.ones(3, np.float32),
            prior_index=np.array(index, np.int64),
            prior_table=table,
            top_k=1,
            generation=generation,
        )

    first = ask([500, 7, 7], 1)
    again = ask([500, 7, 7], 1)
    np.testing.assert_array_equal(first.top_probability, again.top_probability)
    assert sent == [2]
    table[7, 2] = 9.0
    changed = ask([500, 7, 7], 2)
    assert sent == [2, 2]
    assert not np.array_equal(first.top_probability, changed.top_probability)
    ask([0, 0, 0], 2)
    assert sent == [2, 2, 1]
