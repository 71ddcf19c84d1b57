"""The page Shift: the estimate of traffic, the effect of adopting it, and undoing that."""

import json

import httpx
import numpy as np
import pytest

from tests.service.console.conftest import serious, shipped
from tests.support.server import running

SCALES = """[...document.querySelectorAll("td.bars")].flatMap((cell) => {
    const [is, aim] = [cell.querySelector(".is"), cell.querySelector(".aim")];
    const start = cell.getBoundingClientRect().left;
    return [
        [is, is.getBoundingClientRect().right, is.style.width],
        [aim, aim.getBoundingClientRect().left, aim.style.left],
    ].filter(([, , share]) => parseFloat(share) > 20).map(([, at, share]) => (at - start) / parseFloat(share));
})"""  # noqa: E501
"""Pixels for one percent of a cell's width, by its bar and by the mark of the target."""


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A service whose traffic has been followed: the model's samples, many times."""
    models = shipped(tmp_path_factory.mktemp("shift") / "models", "fashion", "digits")
    with running(models, default_model="fashion", shift_seconds=1) as server:
        with httpx.Client(base_url=server.url) as client:
            samples = client.get("/models/fashion/report").json()["samples"]
            body = {"instances": [{"b64": sample["png"]} for sample in samples] * 20}
            for _ in range(6):
                client.post("/predict", json=body).raise_for_status()
        yield server


def test_a_model_without_traffic_says_that_nothing_was_followed_yet(open_page, followed):
    page = open_page("/#/shift?model=digits", base=followed.url)
    page.get_by_text("No traffic has been followed yet").wait_for()
    assert serious(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_shows_estimate_verdict_and_target(
    open_page, followed, screenshots, width, scheme
):
    page = open_page("/#/shift?model=fashion", base=followed.url, width=width, scheme=scheme)
    page.get_by_label("Verdict").get_by_text("Judged").wait_for()
    page.get_by_label("Over time").get_by_role("img").wait_for()
    rows = page.get_by_label("Classes").get_by_role("row")
    assert rows.count() == 11
    assert "dry run" in page.get_by_label("Automatic adoption").inner_text()
    scales = page.evaluate(SCALES)
    assert len(scales) > 5
    assert max(scales) - min(scales) < 0.02 * max(scales)
    page.get_by_role("button", name="Compute what it would change").click()
    page.get_by_text("Answers with another label").wait_for()
    page.screenshot(path=screenshots / f"shift-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious(page) == []


def test_the_verdict_shows_commands_as_code(open_page, tmp_path):
    """The reason of the service showed its backticks."""
    models = shipped(tmp_path / "models", "digits")
    for file in models.glob("digits/*/model.json"):
        bundle = json.loads(file.read_text(encoding="utf-8"))
        bundle.pop("estimation", None)
        file.write_text(json.dumps(bundle), encoding="utf-8")
    with running(models, default_model="digits", shift_seconds=1) as server:
        rows = np.random.default_rng(0).normal(size=(2_000, 64)).tolist()
        httpx.post(f"{server.url}/predict", json={"instances": rows}).raise_for_status()
        verdict = open_page("/#/shift?model=digits", base=server.url).get_by_label("Verdict")
        command = verdict.get_by_role("code").filter(has_text="training calibrate models/")
        command.wait_for()
        assert "`" not in verdict.inner_text()


def test_an_estimate_is_adopted_against_the_rule_and_taken_back(open_page, followed):
    page = open_page("/#/shift?model=fashion", base=followed.url)
    open_page.allow("409")
    page.get_by_role("button", name="Compute what it would change").click()
    page.get_by_role("button", name="Adopt as the target").click()
    page.get_by_text("Stored as revision 1").or_(
        page.get_by_role("button", name="Adopt it anyway")
    ).wait_for()
    if page.get_by_role("button", name="Adopt it anyway").count():
        page.get_by_role("button", name="Adopt it anyway").click()
    page.get_by_text("Stored as revision 1").wait_for()
    page.get_by_role("button", name="Roll back to the model's own rule").click()
    page.get_by_role("button", name="Roll back").wait_for(state="detached")
    view = httpx.get(f"{followed.url}/priors/default").json()
    assert view["revision"] == 0
