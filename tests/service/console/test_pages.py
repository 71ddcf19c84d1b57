"""Every page, in both themes, on a phone and on a desktop, shows its subject and is accessible."""

import httpx
import numpy as np
import pytest

from tests.service.console.conftest import serious

PAGES = {
    "try": ("#/try?model=fashion", ".verdict"),
    "try-digits": ("#/try?model=digits", ".verdict"),
    "try-wide": ("#/try?model=wide", "text=Nothing to score yet"),
    "priors": ("#/priors?model=fashion", ".before-after"),
    "priors-edit": ("#/priors?model=fashion&name=looked-at&tab=edit", "text=Save on top of"),
    "priors-history": ("#/priors?model=fashion&name=looked-at&tab=history", ".history tbody tr"),
    "priors-wide": ("#/priors?model=wide", ".chart canvas"),
    "traffic": ("#/traffic?model=fashion", ".tiles"),
    "traffic-quiet": ("#/traffic?model=quiet", "text=No predictions yet"),
    "model": ("#/model?model=fashion", ".chart canvas"),
    "model-wide": ("#/model?model=wide", "text=without a validation curve"),
}

CONTROLS = "main :is(button, a, input, select, textarea), header :is(a, button, summary)"
OUT_OF_VIEW = f"""[...document.querySelectorAll("{CONTROLS}")]
    .map((e) => [e, e.getBoundingClientRect()])
    .filter(([e, r]) => r.width > 1 && !e.classList.contains("skip"))
    .filter(([e, r]) => r.left < 0 || r.right > innerWidth)
    .map(([e]) => e.outerHTML.slice(0, 120))"""
"""Controls that would need the window, or a part of it, to be scrolled sideways."""


@pytest.fixture(scope="module")
def ready(traffic):
    path = f"{traffic.url}/models/fashion/priors/looked-at"
    for week in (1, 2, 3):
        body = {
            "target": {"shirt": week, "coat": 2},
            "others": 1,
            "note": f"Week {week} in the shop",
        }
        httpx.put(path, json=body).raise_for_status()
    return traffic


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_and_anybody_can_use_it(
    open_page, ready, screenshots, *, name, width, scheme
):
    address, sign = PAGES[name]
    page = open_page(f"/{address}", width=width, scheme=scheme)
    page.wait_for_selector(sign)
    page.wait_for_selector(".spinner", state="detached")
    if name == "priors-history":
        page.get_by_label("Compare revision 1").check()
        page.get_by_label("Compare revision 3").check()
        page.wait_for_selector(".diff")
    if name == "traffic":  # some traffic while the page looks
        row = {"instances": [np.random.default_rng(0).normal(size=(1, 28, 28)).tolist()]}
        for _ in range(500):
            httpx.post(f"{ready.url}/models/fashion/predict", json=row).raise_for_status()
            if page.locator(".chart canvas").count() == 2:
                break
        else:
            raise AssertionError("the page drew no charts")
    if name == "priors-edit":
        page.get_by_role("button", name="Preview on recent traffic").click()
        page.wait_for_selector("text=Answers that would change")
    page.screenshot(path=screenshots / f"{name}-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUT_OF_VIEW) == []
    assert serious(page) == []


def test_on_a_phone_the_way_back_to_a_revision_is_in_view_before_and_after_it_is_asked(
    open_page, ready, screenshots
):
    page = open_page("/#/priors?model=fashion&name=looked-at&tab=history", width=360)
    for asked, sure in (("revision 1", "1"), ("nothing stored", "nothing stored")):
        page.get_by_role("button", name=f"Go back to {asked}").click()
        page.get_by_text(f"Go back to {sure}", exact=True).wait_for()
        page.screenshot(path=screenshots / f"priors-history-asked-{sure[:7]}.png", full_page=True)
        edge = page.locator(".history").bounding_box()
        for name in ("Go back to revision 2", f"Go back to {sure}", "Cancel"):
            box = page.get_by_role("button", name=name, exact=name == "Cancel").bounding_box()
            assert box["x"] >= edge["x"]
            assert box["x"] + box["width"] <= edge["x"] + edge["width"]
        page.get_by_role("button", name="Cancel").click()


def test_on_a_phone_what_a_group_of_routes_is_for_has_the_width_of_the_page(open_page):
    page = open_page("/docs", width=360)
    page.wait_for_selector(".opblock-tag small")
    widths = page.eval_on_selector_all(
        ".opblock-tag small", "all => all.map((e) => e.getBoundingClientRect().width)"
    )
    assert widths
    assert min(widths) > 200


def test_the_theme_that_was_chosen_is_kept(open_page):
    page = open_page("/", scheme="light")
    for said in ("light", "dark"):
        page.get_by_role("button", name="Colours").click()
        page.wait_for_selector(f"text={said}")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_keyboard_reaches_the_page_past_the_header(open_page):
    page = open_page("/")
    page.wait_for_selector(".verdict")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_a_service_that_is_gone_is_said_to_be_gone(open_page, tmp_path):
    from tests.support.server import running
    from tests.support.small_models import publish_model

    publish_model(tmp_path / "models")
    open_page.allow("ERR_")
    with running(tmp_path / "models") as server:
        page = open_page("/", base=server.url)
        page.wait_for_selector("text=Nothing to score yet")
        server.terminate()
        page.get_by_role("link", name="Model").click()
        page.wait_for_selector("text=cannot be reached")
        assert serious(page) == []


def test_without_models_the_console_says_how_to_get_one(open_page, tmp_path, screenshots):
    from tests.support.server import running

    (tmp_path / "models").mkdir()
    with running(tmp_path / "models") as server:
        page = open_page("/", base=server.url)
        page.wait_for_selector("text=No model is served")
        page.screenshot(path=screenshots / "empty.png")
        assert serious(page) == []
        page.close()


def test_a_link_to_a_model_that_is_not_served_shows_no_other_model(open_page):
    page = open_page("/#/traffic?model=nosuch")
    page.get_by_role("heading", name="No model nosuch is served").wait_for()
    page.get_by_text("POST /v2/repository/models/nosuch/load").wait_for()
    assert page.get_by_label("Model").input_value() == ""
    page.get_by_role("link", name="quiet", exact=True).click()
    page.get_by_role("heading", name="Traffic of quiet").wait_for()
    assert page.get_by_label("Model").input_value() == "quiet"
    page.get_by_label("Model").select_option("digits")
    page.get_by_role("heading", name="Traffic of digits").wait_for()


def test_a_model_that_is_refused_is_named_with_its_reason_until_it_is_served(open_page, tmp_path):
    from tests.support.server import running
    from tests.support.small_models import publish_model

    publish_model(tmp_path, "sound")
    folder = publish_model(tmp_path, "late")
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(b"not a graph")
    with running(tmp_path) as server:
        page = open_page("/#/model?model=late", base=server.url)
        page.get_by_role("heading", name="No model late is served").wait_for()
        page.get_by_text("Version 1 is not served:").wait_for()
        (folder / "model.onnx").write_bytes(graph)
        httpx.post(f"{server.url}/v2/repository/models/late/load").raise_for_status()
        page.get_by_role("button", name="Look again").click()
        page.get_by_role("heading", name="late").wait_for()
        page.close()  # so that it does not miss the server


LONG = "Collected near the northern shore of the third of the smaller lakes"
BROKEN_WORDS = """[...document.querySelectorAll(".before-after tbody .name")].flatMap((name) => {
    const text = name.firstChild, words = [...text.data.matchAll(/[^ ]+/g)];
    return words.filter(({0: word, index}) => {
        const range = document.createRange();
        range.setStart(text, index);
        range.setEnd(text, index + word.length);
        return range.getClientRects().length > 1;
    }).map(([word]) => word);
})"""


def test_on_a_phone_long_names_and_notes_break_between_words(open_page, tmp_path):
    from tests.support.server import running
    from tests.support.small_models import inputs, publish_model

    names = [LONG, "species one", "species two", "subspecies", LONG.replace("northern", "eastern")]
    publish_model(tmp_path, "lakes", class_names=names)
    with running(tmp_path) as server:
        path = f"{server.url}/models/lakes"
        row = {"instances": inputs(4).tolist()}
        httpx.post(f"{path}/predict", json=row).raise_for_status()
        prior = {"target": {LONG: 3}, "others": 1, "note": LONG}
        httpx.put(f"{path}/priors/default", json=prior).raise_for_status()
        for page_of in ("priors", "priors?name=default&tab=edit", "traffic", "model"):
            page = open_page(f"/#/{page_of}", base=server.url, width=360)
            page.wait_for_selector(".before-after")
            assert page.evaluate(BROKEN_WORDS) == []
            assert page.evaluate(OUT_OF_VIEW) == []
            if page_of == "traffic":
                note = page.get_by_label("Changes of priors").get_by_text(LONG)
                assert note.bounding_box()["width"] > 240
            page.close()  # it asks the service every 2 s


@pytest.mark.parametrize("width", [360, 1440])
def test_names_without_a_space_do_not_widen_a_page(open_page, tmp_path, width):
    from tests.support.server import running
    from tests.support.small_models import inputs, publish_model

    publish_model(tmp_path, "vast", class_names=[f"{n}-{'x' * 150}" for n in range(5)])
    with running(tmp_path, shift_seconds=1) as server:
        path = f"{server.url}/models/vast"
        row = {"instances": inputs(200).tolist()}
        httpx.post(f"{path}/predict", json=row).raise_for_status()
        prior = {"target": [1, 2, 3, 4, 5], "note": "y" * 200}
        httpx.put(f"{path}/priors/{'p' * 64}", json=prior).raise_for_status()
        httpx.put(f"{path}/priors/default", json=prior).raise_for_status()
        for page_of, sign in (
            ("try", ".row-form"),
            ("priors", ".before-after"),
            ("priors?name=default&tab=edit", ".before-after"),
            ("priors?name=default&tab=history", ".history"),
            ("traffic", ".before-after"),
            ("shift", ".before-after"),
            ("model", ".before-after"),
        ):
            page = open_page(f"/#/{page_of}", base=server.url, width=width)
            page.wait_for_selector(sign)
            if page_of == "try":
                for field in page.locator(".row-form input").all():
                    field.fill("1")
                page.get_by_role("button", name="Score the row").click()
                page.wait_for_selector(".chart canvas")
                page.get_by_text("by hand").click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, page_of
            page.close()  # it asks the service every 2 s


def test_a_key_is_asked_for_and_stays_in_the_tab(open_page, tmp_path, screenshots):
    from service.api.edge.keys import make_key
    from tests.support.server import running
    from tests.support.small_models import publish_model

    publish_model(tmp_path / "models")
    look, looking = make_key("looker", ["observe"])
    change, changing = make_key("changer", ["operate"])
    lines = f"{looking.line()};{changing.line()}"
    open_page.allow("401")
    open_page.allow("403")
    with running(tmp_path / "models", api_keys=lines) as server:
        page = open_page("/#/priors", base=server.url)
        page.wait_for_selector("text=An API key is needed")
        page.screenshot(path=screenshots / "no-key.png")
        assert serious(page) == []
        page.get_by_label("API key").fill(look)
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("text=Nothing is stored under this name")
        page.get_by_role("link", name="Edit").click()
        page.get_by_role("button", name="Save the first revision").click()
        page.wait_for_selector("text=This key may not do that")
        page.screenshot(path=screenshots / "no-permission.png", full_page=True)
        assert serious(page) == []
        page.get_by_label("API key").fill(change)
        page.get_by_role("button", name="Use it").click()
        page.get_by_role("button", name="Save the first revision").click()
        page.wait_for_selector("text=Saved as revision 1")
        stored = page.evaluate("JSON.stringify({...localStorage}) + document.cookie")
        assert look not in stored
        assert change not in stored
        page.get_by_role("link", name="Edit").click()
        page.get_by_role("button", name="Copy as curl").click()
        page.wait_for_selector("text=Copied")
        assert change not in page.evaluate("navigator.clipboard.readText()")
        assert change not in server.log
        page.close()


def test_the_page_says_which_key_is_in_use_why_one_fails_what_is_missing_and_signs_out(
    open_page, tmp_path, screenshots
):
    from service.api.edge.keys import make_key
    from tests.service.console.conftest import shipped
    from tests.support.server import running

    given, key = make_key("night-shift", ["operate"])
    open_page.allow("401")
    open_page.allow("403")
    with running(shipped(tmp_path / "models", "digits"), api_keys=key.line()) as server:
        page = open_page("/#/priors?model=digits", base=server.url)
        page.locator(".who", has_text="No key").wait_for()
        page.get_by_label("API key").fill("pk-wrong")
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("text=The service does not accept this key")
        page.get_by_label("API key").fill(given)
        page.get_by_role("button", name="Use it").click()
        page.locator(".who summary", has_text="night-shift").click()
        panel = page.locator(".who .panel")
        assert "change priors and load models" in panel.inner_text()
        assert "It lacks:" in panel.inner_text()
        page.screenshot(path=screenshots / "who.png", full_page=True)
        assert serious(page) == []
        page.get_by_role("link", name="Try").click()
        page.wait_for_selector("text=lacks the role predict")
        page.screenshot(path=screenshots / "try-operate.png", full_page=True)
        page.wait_for_selector("text=This key may not do that")
        assert serious(page) == []
        if not panel.count():
            page.locator(".who summary").click()
        page.get_by_role("button", name="Sign out").click()
        page.locator(".who", has_text="No key").wait_for()
        page.wait_for_selector("text=An API key is needed")
        assert page.evaluate("sessionStorage.length") == 0
        page.close()


def test_a_key_that_may_only_predict_tries_without_samples_and_is_told_why(open_page, tmp_path):
    from service.api.edge.keys import make_key
    from tests.service.console.conftest import shipped
    from tests.support.server import running

    given, key = make_key("till", ["predict"])
    open_page.allow("401")
    open_page.allow("403")
    with running(shipped(tmp_path / "models", "digits"), api_keys=key.line()) as server:
        page = open_page("/#/try?model=digits", base=server.url)
        page.get_by_label("API key").fill(given)
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("text=lacks the role observe")
        page.wait_for_selector("text=Nothing to score yet")
        page.close()


def test_a_key_that_is_given_on_the_try_page_scores_every_sample_under_the_stored_prior(
    open_page, tmp_path
):
    from service.api.edge.keys import make_key
    from tests.service.console.conftest import shipped
    from tests.support.server import running

    given, key = make_key("both", ["predict", "operate"])
    open_page.allow("401")
    with running(shipped(tmp_path / "models", "digits"), api_keys=key.line()) as server:
        bearer = {"Authorization": f"Bearer {given}"}
        path = f"{server.url}/models/digits/priors/default"
        httpx.put(path, json={"target": "training"}, headers=bearer).raise_for_status()
        page = open_page("/#/try?model=digits", base=server.url)
        page.get_by_label("API key").fill(given)
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector(".verdict")
        page.wait_for_selector("text=of 12 as trained")
        assert page.get_by_label("default @1").is_checked()
        page.locator(".sample").nth(5).click()
        page.wait_for_selector(".verdict")
        assert page.get_by_label("API key").count() == 0
        page.close()
