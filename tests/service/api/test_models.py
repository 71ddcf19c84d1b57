"""GET /models/{model} shows model.json, whether its class list is short or made in slices."""

import httpx
import pytest

from service.contract.bundle import load_bundle
from tests.support.server import running
from tests.support.small_models import linear_model, publish_model


@pytest.mark.parametrize("classes", [5, 9000])
def test_a_model_is_shown_as_its_model_json_says(tmp_path, classes):
    publish_model(
        tmp_path,
        "many",
        model=linear_model(classes=classes),
        class_names=[f'é "{n}"' for n in range(classes)],
        class_counts=[n + 1 for n in range(classes)],
        estimation={
            "calibration": "bias",
            "temperature": 1.0,
            "bias": [0.0] * classes,
            "source_prior": [1 / classes] * classes,
            "validation": {"rows": classes, "class_counts": [1] * classes},
        },
    )
    with running(tmp_path) as server:
        shown = httpx.get(f"{server.url}/models/many", timeout=60)
    bundle = load_bundle(tmp_path / "many" / "1")
    assert shown.json()["bundle"] == bundle.model_dump(mode="json")
    assert list(shown.json()["bundle"]) == list(bundle.model_dump())
    assert shown.json()["classes"] == classes
