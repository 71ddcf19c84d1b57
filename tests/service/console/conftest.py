"""A served digits model and a browser to look at it with."""

import base64
import io
from pathlib import Path

import numpy as np
import orjson
import pytest
from onnx import numpy_helper
from PIL import Image

from service.contract.bundle import publish
from tests.service.server import running
from tests.service.small_models import fields, linear_model

CHROMIUM = Path("/usr/bin/chromium")
ROOT = Path(__file__).parents[3]


def png(pixels) -> str:
    """uint8 [H, W] as the base64 text of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def publish_digits(models: Path) -> Path:
    """A long-tailed linear digits model with samples, as training publishes one."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x, y = load_digits(return_X_y=True)
    counts = [120, 90, 60, 40, 30, 20, 15, 10, 8, 5]
    rows = np.concatenate([np.flatnonzero(y == c)[:n] for c, n in enumerate(counts)])
    rest = np.setdiff1d(np.arange(len(y)), rows)
    fit = LogisticRegression(C=0.01, max_iter=300).fit(x[rows], y[rows])
    model = linear_model(features=64, classes=10)
    for tensor, value in zip(model.graph.initializer, (fit.coef_.T, fit.intercept_), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    samples = [
        {
            "label": str(c),
            "index": c,
            "instance": x[row].tolist(),
            "png": png((x[row].reshape(8, 8) * 255 / 16).astype(np.uint8)),
        }
        for c in range(10)
        for row in rest[y[rest] == c][:1]
    ]
    report = {"format_version": 1, "samples": samples, "tau": {"chosen": 1.2}}

    def write(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        (folder / "report.json").write_bytes(orjson.dumps(report))

    made = fields(
        class_names=[str(c) for c in range(10)],
        class_counts=counts,
        input={"name": "x", "kind": "tensor", "shape": [None, 64], "dtype": "float32"},
    )
    return publish(models, "digits", fields=made, write_files=write)


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    publish_digits(folder / "models")
    with running(folder / "models") as server:
        yield server


@pytest.fixture(
    scope="module"
)  # Playwright keeps a running event loop, which other tests' asyncio.run refuses
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed (Debian: chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, served):
    """Open a page of the console; a console error, a failed request or a foreign host fails the test."""
    contexts, troubles = [], []

    def opened(path="/", *, width=1440, scheme="light", base=None):
        base = base or served.url
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda m: m.type in ("error", "warning") and troubles.append(m.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda r: r.url.startswith((base, "data:", "blob:")) or troubles.append(r.url),
        )
        page.troubles = troubles
        page.goto(base + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture(scope="session")
def screenshots():
    folder = ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
