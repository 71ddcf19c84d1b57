"""A client for Python can be generated from /openapi.json, and it works."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.server import running
from tests.support.small_models import inputs, publish_model

CONFIG = {
    "content_type_overrides": {
        "image/jpeg": "application/octet-stream",
        "image/png": "application/octet-stream",
        "image/webp": "application/octet-stream",
        "application/x-npy": "application/octet-stream",
    }
}
"""The generator knows no images; it takes them for bytes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models, "linear")
    with running(models) as started:
        yield started


@pytest.fixture(scope="module")
def generated(server, tmp_path_factory):
    """Imports a module of the generated client by its name."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_bytes(httpx.get(f"{server.url}/openapi.json").content)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    program = Path(sys.executable).with_name("openapi-python-client")
    command = [program, "generate", "--path", "openapi.json", "--config", "config.json"]
    command += ["--output-path", "priordial_client", "--meta", "none", "--fail-on-warning"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    unfinished = "ruff" in done.stderr  # it formats its files where ruff is on the path
    assert done.returncode == 0 or unfinished, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"priordial_client.{name}")
    sys.path.remove(str(folder))


def test_a_generated_client_predicts_stores_a_prior_and_reads_it(server, generated):
    models = generated("models")
    body = models.PredictRequest.from_dict(
        {"instances": inputs(2).tolist(), "parameters": {"top_k": 1}}
    )
    prior = models.PriorBody.from_dict({"target": "training", "note": "from a client"})
    with generated("client").Client(base_url=server.url) as client:
        answer = generated("api.prediction.predict").sync(client=client, body=body)
        generated("api.priors.prior_put_default").sync(client=client, body=prior)
        stored = generated("api.priors.prior_one").sync("default", client=client)
        listed = generated("api.models.models").sync(client=client)
    assert len(answer.predictions) == 2
    assert answer.prior.revision == 0
    assert (stored.revision, stored.note) == (1, "from a client")
    assert listed["models"][0]["name"] == "linear"
