"""Served models and a browser to look at them with."""

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.server import running
from tests.support.small_models import linear_model, publish_model

CHROMIUM = Path("/usr/bin/chromium")
ROOT = Path(__file__).parents[3]
WIDE = 2000
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")


def shipped(models: Path, *names: str) -> Path:
    """A repository with copies of shipped models."""
    for name in names:
        shutil.copytree(ROOT / "models" / name, models / name)
    return models


def publish_wide(models: Path) -> None:
    """Two versions of a classifier of 2,000 classes, without a report."""
    counts = np.maximum(1, 5000 * 0.996 ** np.arange(WIDE)).round().tolist()
    for seed in (0, 1):
        publish_model(
            models,
            "wide",
            model=linear_model(classes=WIDE, seed=seed),
            classes=WIDE,
            class_counts=counts,
            description=f"Random, seed {seed}",
        )


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """digits, fashion (the default), fashion-la, quiet, which gets no requests, and wide."""
    models = shipped(
        tmp_path_factory.mktemp("console") / "models", "digits", "fashion", "fashion-la"
    )
    publish_wide(models)
    publish_model(models, "quiet")
    with running(models, default_model="fashion") as server:
        yield server


@pytest.fixture(scope="session")
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
    """Open a page of the console; errors, warnings and requests to other hosts fail the test."""
    contexts, troubles, allowed = [], [], []

    def opened(path="/", *, width=1440, scheme="light", base=None, context=None):
        base = base or served.url
        if context is None:
            context = chromium.new_context(
                viewport={"width": width, "height": 900},
                color_scheme=scheme,
                reduced_motion="reduce",
                permissions=["clipboard-read", "clipboard-write"],
                timezone_id="UTC",
            )
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda m: m.type in ("error", "warning") and troubles.append(m.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda r: r.url.startswith((base, "data:", "blob:")) or troubles.append(r.url),
        )
        page.goto(base + path)
        return page

    opened.allow = allowed.append
    yield opened
    for context in contexts:
        context.close()
    assert [t for t in troubles if not any(words in t for words in allowed)] == []


@pytest.fixture(scope="session")
def screenshots():
    folder = ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def traffic(served):
    """Send some requests to every model, for the pages about traffic to show."""
    samples = httpx.get(f"{served.url}/models/fashion/report").json()["samples"]
    with httpx.Client(base_url=served.url) as client:
        for tau in (0.5, 1, 1.5, 2):
            body = {"instances": [{"b64": s["png"]} for s in samples], "parameters": {"tau": tau}}
            for _ in range(3):
                assert client.post("/models/fashion/predict", json=body).status_code == 200
        rows = np.random.default_rng(0).normal(size=(40, 6)).tolist()
        assert client.post("/models/wide/predict", json={"instances": rows}).status_code == 200
    return served


def serious(page):
    """What axe-core calls a serious or critical violation: 'rule: element' each."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {node['html'][:120]}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
