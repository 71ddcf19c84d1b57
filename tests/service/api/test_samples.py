"""A model's sample pictures can be fetched by their number."""

import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.server import ROOT, running
from tests.support.small_models import publish_model


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(ROOT / "models/fashion", models / "fashion")
    odd = [{"png": 7}, "text", {"png": "no base64!"}, {"png": "aGVsbG8="}, {"instance": [1.0]}]
    for name, report in (("odd", {"samples": odd}), ("none", {"samples": 3})):
        (publish_model(models, name) / "report.json").write_text(json.dumps(report))
    with running(models) as started:
        yield started


def test_the_picture_of_the_readme_is_sample_7_of_the_shipped_model(server):
    answer = httpx.get(f"{server.url}/models/fashion/samples/7.png")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == Path(ROOT, "examples/shirt.png").read_bytes()


@pytest.mark.parametrize("scale", [1.0, 1 / 255], ids=["bytes", "0 to 1"])
def test_the_shipped_model_warns_of_pixels_that_were_not_normalised(server, scale):
    pixels = np.asarray(Image.open(ROOT / "examples/shirt.png").convert("L"), float) * scale
    body = {"instances": [[pixels.tolist()]] * 4}
    answer = httpx.post(f"{server.url}/models/fashion/predict", json=body).json()
    assert "check scaling and normalisation" in answer["warnings"][0]


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("fashion/samples/0.png", "model 'fashion' has no sample 0; expected 1 to 12"),
        ("fashion/samples/13.png", "model 'fashion' has no sample 13; expected 1 to 12"),
        (
            "odd/samples/1.png",
            "model 'odd' was published without sample pictures; publish it again to have some",
        ),
        (
            "none/samples/1.png",
            "model 'none' was published without sample pictures; publish it again to have some",
        ),
    ],
)
def test_a_sample_that_is_not_there_is_answered_with_those_that_are(server, path, detail):
    answer = httpx.get(f"{server.url}/models/{path}")
    assert (answer.status_code, answer.json()["detail"]) == (404, detail)
