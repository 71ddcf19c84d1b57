"""Every page opens for a model of 200,000 classes: no script fails, and a page stays small."""

import httpx
import pytest

from tests.support.server import running
from tests.support.small_models import inputs, linear_model, publish_model

CLASSES = 200_000
MOST_NODES = 5000


@pytest.fixture(scope="module")
def vast(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(
        models,
        "vast",
        model=linear_model(classes=CLASSES),
        class_names=[f"class-{n:06d}" for n in range(CLASSES)],
        class_counts=[10 + n % 7 for n in range(CLASSES)],
    )
    with running(models, shift_seconds=1) as server:
        rows = {"instances": inputs(8).tolist()}
        path = f"{server.url}/models/vast"
        httpx.post(f"{path}/predict?top_k=1", json=rows, timeout=60).raise_for_status()
        prior = {"target": {"class-000001": 5, "class-000002": 3}, "others": 1}
        httpx.put(f"{path}/priors/default", json=prior, timeout=60).raise_for_status()
        yield server


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("try", "Score the row"),
        ("priors", "Logit shift"),
        ("traffic", "Traffic of vast"),
        ("shift", "Shift of vast"),
        ("model", "imbalance ratio"),
    ],
)
def test_every_page_opens_for_very_many_classes(open_page, vast, page, words):
    opened = open_page(f"/#/{page}", base=vast.url)
    opened.get_by_text(words).first.wait_for(timeout=90_000)
    assert opened.evaluate("document.querySelectorAll('*').length") < MOST_NODES
