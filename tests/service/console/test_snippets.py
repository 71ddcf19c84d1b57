"""A copied snippet does what the page does; its key comes from the environment."""

import json
import os
import subprocess
import sys

import httpx
import numpy as np
import pytest

from service.api.edge.keys import make_key
from tests.service.console.conftest import shipped
from tests.support.server import running

SHELLS = {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"]}
NOTE = 'it\'s 5 $ for "two" – no `more`\\'


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A service with keys, two revisions of a prior, and a key for everything."""
    given, key = make_key("everything", ["predict", "operate", "observe"])
    models = shipped(tmp_path_factory.mktemp("snippets") / "models", "digits")
    with running(models, api_keys=key.line()) as server:
        for weight in (2, 3):
            body = {"target": {"3": weight}, "others": 1, "note": NOTE}
            path = f"{server.url}/models/digits/priors/shelf"
            headers = {"Authorization": f"Bearer {given}"}
            httpx.put(path, json=body, headers=headers).raise_for_status()
        row = {"instances": np.zeros((1, 64)).tolist()}
        httpx.post(f"{server.url}/predict", json=row, headers=headers).raise_for_status()
        yield server, given


@pytest.fixture
def page_of(open_page, keyed):
    """A page of the console in a tab that has the key."""
    server, given = keyed
    open_page.allow("401")

    def opened(address, sign):
        page = open_page("/#/priors?model=digits", base=server.url)
        page.get_by_label("API key").fill(given)
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("text=All priors")
        page.goto(f"{server.url}/{address}")
        page.wait_for_selector(sign)
        return page

    return opened


def pasted(page, kind, keyed):
    """What the page's last snippet of a kind answers where it is pasted."""
    page.get_by_role("button", name=f"Copy as {kind}").last.click()
    page.wait_for_selector("text=Copied")
    program = page.evaluate("navigator.clipboard.readText()")
    page.wait_for_selector("text=Copied", state="detached")
    _, given = keyed
    assert given not in program
    environment = {**os.environ, "PRIORDIAL_KEY": given}
    done = subprocess.run(
        [*SHELLS[kind], program], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


@pytest.mark.parametrize(
    ("address", "sign", "answered"),
    [
        ("#/try?model=digits", ".verdict", "predictions"),
        ("#/priors?model=digits&name=shelf", ".before-after", "target"),
        ("#/priors?model=digits&name=shelf&tab=history", ".history tbody tr", "revisions"),
        ("#/model?model=digits", ".chart canvas", "class_names"),
    ],
)
def test_a_snippet_of_every_page_is_answered(page_of, keyed, address, sign, answered):
    page = page_of(address, sign)
    for kind in SHELLS:
        assert answered in json.loads(pasted(page, kind, keyed))


def test_the_snippet_of_the_traffic_page_asks_for_what_it_was_made_of(page_of, keyed):
    page = page_of("#/traffic?model=digits", ".tiles")
    for kind in SHELLS:
        assert 'priordial_predictions_total{class="0"' in pasted(page, kind, keyed)


def test_the_snippet_of_a_draft_stores_it_whatever_its_note_says(page_of, keyed):
    page = page_of("#/priors?model=digits&name=shelf&tab=edit", "text=Save on top of")
    page.get_by_label("Weight of 3").fill("7")
    page.get_by_label("Why").fill(NOTE)
    stored = json.loads(pasted(page, "curl", keyed))
    assert stored["note"] == NOTE
    assert stored["target"]["3"] == pytest.approx(7 / 16)
