"""Costs in the console: the decision that Try shows, and the editor that takes them as JSON."""

import httpx
import numpy as np
import pytest

from service.contract.members.body import parse_prior
from service.contract.prior import resolve_prior
from tests.service.console.conftest import serious

NAMES = ["cat", "lynx", "dog", "fox"]


@pytest.fixture(scope="module")
def blank(chromium, served):
    """A page on which only the console's modules are used."""
    page = chromium.new_page()
    page.goto(served.url)
    yield page
    page.close()


@pytest.mark.parametrize(
    "costs",
    [
        {"reject": 0.4},
        {"miss": {"lynx": 5}, "pairs": [["fox", "cat", 9.5], ["cat", "dog", 0.1]]},
        {"miss": [1, 2, 3, 0.5], "reject": 0.9},
        {"matrix": [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1], [2, 3, 4, 0.1]], "reject": 1.2},
    ],
)
def test_the_page_decides_by_cost_as_the_contract_does(blank, costs):
    probabilities = np.random.default_rng(0).dirichlet(np.full(4, 0.7), 200)
    found = blank.evaluate(
        """async ([rows, costs, names]) => {
            const f = await import("/console/formula.js");
            return rows.map((row) => f.decide(row, costs, names));
        }""",
        [probabilities.tolist(), costs, NAMES],
    )
    body = parse_prior({"costs": costs})
    checked = resolve_prior(body, class_names=NAMES, class_counts=[1] * 4, loss_tau=0.0).costs
    expected = checked.decide(probabilities)
    assert [-1 if one["index"] is None else one["index"] for one in found] == (
        expected.index.tolist()
    )
    assert [one["cost"] for one in found] == pytest.approx(expected.expected_cost.tolist())


def test_costs_are_edited_as_json_kept_by_later_edits_and_shown_in_try(open_page, served):
    path = f"{served.url}/models/digits/priors/dear"
    httpx.put(path, json={"note": "begin"}).raise_for_status()
    open_page.allow("422")
    page = open_page("/#/priors?model=digits&name=dear&tab=edit")
    page.get_by_text("Costs of wrong decisions").click()
    box = page.get_by_label("Costs of wrong decisions as JSON")
    box.fill('{"reject": ')
    assert "Not used yet" in page.get_by_role("alert").inner_text()
    box.fill('{"miss": {"no such class": 2}}')
    page.get_by_role("button", name="Save on top of revision 1").click()
    page.wait_for_selector("text=unknown class 'no such class'")
    box.fill('{"reject": 0.000001}')
    assert serious(page) == []
    page.get_by_role("button", name="Save on top of revision 1").click()
    drastic = page.get_by_role("button", name="Save it anyway")
    drastic.or_(page.get_by_text("Saved as revision 2")).first.wait_for()
    if drastic.is_visible():
        drastic.click()
    page.wait_for_selector("text=Its costs:")
    page.goto(f"{served.url}/#/priors?model=digits&name=dear&tab=edit")
    page.get_by_label("Why").fill("the costs stay")
    page.get_by_role("button", name="Save on top of revision 2").click()
    page.wait_for_selector("text=Saved as revision 3")
    assert httpx.get(path).json()["as_written"]["costs"]["reject"] == 0.000001
    page.goto(f"{served.url}/#/try?model=digits")
    page.wait_for_selector(".verdict")
    assert page.locator(".decision").count() == 0
    page.get_by_text("dear @3").click()
    page.wait_for_selector(".decision >> text=the row is rejected")
    httpx.delete(path).raise_for_status()
