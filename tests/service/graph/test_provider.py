"""The provider that was asked for is the one that runs, or the start says what is missing."""

import importlib.metadata
import subprocess
import sys

import onnxruntime
import pytest

from service.commands import doctor
from service.contract.bundle import load_bundle
from service.graph import providers
from service.graph import session as graph
from service.settings import Settings
from tests.support.server import ROOT, running, starting
from tests.support.small_models import publish_model


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def gpu_package_without_gpu(monkeypatch):
    """What onnxruntime-gpu does on a machine without a GPU: it lists CUDA and silently opens a CPU session."""
    opened = onnxruntime.InferenceSession

    def silently_on_the_cpu(model, options, providers):
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
    with pytest.raises(providers.ProviderUnavailable, match="asked for cuda"):
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
    told = capsys.readouterr().out
    assert "ok   provider cpu" in told
    assert "ok   model linear/1" in told
    (models / "linear" / "1" / "model.onnx").write_bytes(b"damaged")
    broken = Settings(
        models=models, store=f"sqlite:///{models}/linear/1/model.onnx/p.db", provider="cpu"
    )
    assert doctor.run(broken) == 1
    told = capsys.readouterr().out
    assert "BAD  model linear/1" in told
    assert "sha256" in told
    assert "BAD  prior store" in told
