"""The Try page: one scoring; the dial then shows the answers that the service would give."""

import json
import subprocess
import sys

import httpx
import numpy as np
import pytest

from service.contract.adjustment import adjust_logits, log_source_prior, log_target_prior, softmax
from tests.service.console.conftest import serious


@pytest.mark.parametrize("loss_tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 7.0])
def test_the_page_adjusts_as_the_contract_does(blank, tau, loss_tau):
    rng = np.random.default_rng(0)
    logits, counts = rng.normal(0, 4, 12), rng.integers(1, 5000, 12).astype(float)
    target = rng.random(12)
    target[3] = 0.0
    found = blank.evaluate(
        """async ([logits, counts, target, lossTau, tau]) => {
            const f = await import("/console/formula.js");
            const source = f.logSource(counts, lossTau, counts.length);
            return f.adjusted(logits, source, f.logNormalised(target), tau);
        }""",
        [logits.tolist(), counts.tolist(), target.tolist(), loss_tau, tau],
    )
    expected = softmax(
        adjust_logits(
            logits,
            log_source_prior=log_source_prior(counts, loss_tau=loss_tau),
            log_target_prior=log_target_prior(target),
            tau=tau,
        )
    )
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def blank(chromium, served):
    """A page on which only the console's modules are used."""
    page = chromium.new_page()
    page.goto(served.url)
    yield page
    page.close()


def test_the_places_where_the_dial_changes_the_answer_are_exact(blank):
    rng = np.random.default_rng(1)
    log_sigma = log_source_prior(np.exp(rng.uniform(0, 7, 30)), loss_tau=0)
    logits = log_sigma * rng.uniform(0.5, 2, 30)
    log_rho = np.zeros(30)
    flips = blank.evaluate(
        """async ([logits, sigma, rho]) =>
            (await import("/console/formula.js")).flips(logits, sigma, rho, 3)""",
        [logits.tolist(), log_sigma.tolist(), log_rho.tolist()],
    )
    assert len(flips) >= 2
    taus = np.linspace(0, 3, 3001)
    best = (logits + taus[:, None] * (log_rho - log_sigma)).argmax(axis=1)
    changes = np.flatnonzero(np.diff(best))
    assert [flip["to"] for flip in flips] == best[changes + 1].tolist()
    assert [flip["tau"] for flip in flips] == pytest.approx(taus[changes], abs=1.1e-3)


def shown(page):
    """Class → (as trained, now) as the table shows them."""
    rows = page.locator(".before-after tbody tr")
    names = page.locator(".before-after tbody th .name").all_inner_texts()
    numbers = [row.locator(".number").all_inner_texts() for row in rows.all()]
    return {
        name: tuple(float(n.removesuffix("\N{NO-BREAK SPACE}%")) / 100 for n in pair)
        for name, pair in zip(names, numbers, strict=True)
    }


def chances(answer):
    return {top["label"]: top["probability"] for top in answer["predictions"][0]["top"]}


def test_the_dial_redraws_without_asking_and_shows_what_the_service_would_answer(open_page, served):
    page = open_page("/#/try?model=fashion")
    page.get_by_role("button", name="Sample 7").click()
    page.wait_for_selector(".verdict")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("τ as a number").fill("1.7")
    page.get_by_label("as in training").check(force=True)
    page.get_by_label("uniform").check(force=True)
    found = shown(page)
    assert [url for url in asked if not url.startswith("data:")] == []
    sample = httpx.get(f"{served.url}/models/fashion/report").json()["samples"][6]
    body = {"instances": [{"b64": sample["png"]}]}
    query = f"{served.url}/models/fashion/predict?top_k=10&prior=uniform"
    for column, tau in ((0, 0), (1, 1.7)):
        answer = chances(httpx.post(f"{query}&tau={tau}", json=body).json())
        for name, pair in found.items():
            assert pair[column] == pytest.approx(answer[name], abs=6e-4)


def test_a_target_made_by_hand_is_answered_as_the_service_would(open_page, served):
    page = open_page("/#/try?model=digits")
    page.wait_for_selector(".verdict")
    page.get_by_text("by hand").click()
    page.get_by_role("button", name="training reversed").click()
    page.locator(".weights input").first.press("Home")
    found = shown(page)
    page.get_by_role("button", name="Copy as curl").click()
    page.wait_for_selector("text=Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    answered = chances(json.loads(answer.stdout))
    assert len(answered) == 5
    assert "never" in page.locator(".weights").inner_text()
    for name, chance in answered.items():
        assert found[name][1] == pytest.approx(chance, abs=6e-4)


@pytest.mark.parametrize("model", ["digits", "fashion"])
def test_the_copied_programs_answer_what_the_page_shows(open_page, tmp_path, model):
    page = open_page(f"/#/try?model={model}")
    page.wait_for_selector(".verdict")
    page.get_by_label("τ as a number").fill("0.6")
    label = page.locator(".verdict b").first.inner_text()
    for button, run in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        page.get_by_role("button", name=f"Copy as {button}").click()
        page.wait_for_selector("text=Copied")
        program = page.evaluate("navigator.clipboard.readText()")
        done = subprocess.run(
            [*run, program], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        answer = json.loads(done.stdout)
        assert answer["tau"] == pytest.approx(0.6)
        assert answer["predictions"][0]["label"] == label
        page.wait_for_selector("text=Copied", state="detached")


def test_images_can_be_chosen_dropped_and_pasted(open_page, served):
    import base64

    page = open_page("/#/try?model=fashion")
    page.wait_for_selector(".verdict")
    before = page.locator(".sample").count()
    sample = httpx.get(f"{served.url}/models/fashion/report").json()["samples"][8]
    file = {"name": "bag.png", "mimeType": "image/png", "buffer": base64.b64decode(sample["png"])}
    page.locator("input[type=file]").first.set_input_files(file)
    page.get_by_role("button", name="bag.png").wait_for()
    page.locator(".verdict b", has_text="bag").first.wait_for()
    hand_over = """([png, kind]) => {
        const bytes = Uint8Array.from(atob(png), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], `${kind}.png`, {type: "image/png"}));
        const event = kind === "drop"
            ? new DragEvent("drop", {dataTransfer: data, bubbles: true})
            : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
        (kind === "drop" ? document.querySelector(".drop") : window).dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.evaluate(hand_over, [sample["png"], kind])
        page.get_by_role("button", name=f"{kind}.png").wait_for()
    assert page.locator(".sample").count() == before + 3


def test_a_digit_can_be_drawn(open_page, screenshots):
    page = open_page("/#/try?model=digits")
    page.wait_for_selector(".verdict")
    pad = page.get_by_label("A pad to draw on")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.15 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.85 * box["height"], steps=8)
    page.mouse.up()
    page.get_by_role("button", name="Drawing").wait_for()
    page.locator(".sample[aria-pressed=true][aria-label*='answer 1']").wait_for()
    page.screenshot(path=screenshots / "try-drawn.png", full_page=True)


def test_the_arrow_keys_turn_the_dial(open_page):
    page = open_page("/#/try?model=fashion")
    dial = page.get_by_label("τ: how much")
    dial.focus()
    for _ in range(3):
        dial.press("ArrowRight")
    assert page.locator(".dial .value").text_content() == "1.03"


def test_a_row_is_typed_into_a_field_for_each_column(open_page):
    page = open_page("/#/try?model=wide")
    form = page.get_by_role("form", name="Your row")
    for number in range(1, 6):
        form.get_by_label(f"value {number}").fill(str(number))
    form.get_by_label("value 6").fill("six")
    form.get_by_role("button").click()
    page.wait_for_selector("text=value 6: expected a number, not 'six'")
    form.get_by_label("value 6").fill("6")
    form.get_by_role("button").click()
    page.wait_for_selector(".verdict")
    assert page.locator(".before-after tbody tr").count() == 10


def test_a_row_on_another_scale_than_that_of_training_carries_a_warning(open_page, tmp_path):
    from tests.support.server import running
    from tests.support.small_models import FEATURES, fields, publish_model

    uniform = {"mean": [0.5] * FEATURES, "sd": [0.3] * FEATURES, "rows": 900}  # of 0 … 1
    publish_model(tmp_path / "models", input={**fields()["input"], "statistics": uniform})
    with running(tmp_path / "models") as server:
        page = open_page("/#/try", base=server.url)
        form = page.get_by_role("form", name="Your row")
        notes = page.get_by_label("Input", exact=True).locator(".note")

        def score(scale):
            for number in range(1, FEATURES + 1):
                value = scale * number / (FEATURES + 1)
                form.get_by_label(f"value {number}").fill(f"{value:.2f}")
            form.get_by_role("button").click()

        score(1)
        page.wait_for_selector(".verdict")
        assert notes.count() == 0
        score(255)
        notes.wait_for()
        assert "far from those that the model was trained on" in notes.inner_text()
        page.close()


def test_a_model_of_named_columns_has_a_form_and_takes_a_csv_by_its_header(
    open_page, tmp_path, screenshots
):
    from tests.support.server import running
    from tests.support.table_models import CLASSES, ROWS, publish_table, table_probabilities

    publish_table(tmp_path / "models")
    with running(tmp_path / "models") as server:
        page = open_page("/#/try?model=table", base=server.url)
        form = page.get_by_role("form", name="Your row")
        for name, value in ROWS[0].items():
            form.get_by_label(name).fill(str(value))
        form.get_by_role("button").click()
        page.wait_for_selector(".verdict")
        shown = page.locator(".before-after tbody .number.quiet").all_inner_texts()
        assert shown == [f"{100 * p:.1f}\N{NO-BREAK SPACE}%" for p in table_probabilities()[0]]
        assert form.get_by_label("fare").input_value() == "7.25", (
            "to change one value and ask again"
        )
        page.get_by_text("Many rows from a CSV").click()
        rows = [f"{CLASSES[1]},{r['sex']},{r['fare']},{r['age']}" for r in ROWS]
        page.get_by_label("Rows as CSV").fill("\n".join(["label,sex,fare,age", *rows]))
        page.get_by_role("button", name="Score the rows").click()
        page.wait_for_selector("text=Your 3 labelled inputs")
        page.screenshot(path=screenshots / "try-columns.png", full_page=True)
        assert serious(page) == []
        page.close()


def test_labelled_rows_of_a_csv_give_the_balanced_error_and_the_confusion_at_each_tau(
    open_page, tmp_path, screenshots
):
    from service.contract.scores import balanced_error
    from tests.support.server import running
    from tests.support.small_models import CLASSES, FEATURES, publish_model

    publish_model(tmp_path / "models")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, FEATURES)).round(4)
    labels = rng.integers(0, CLASSES, 60)
    lines = [",".join([*map(str, row), f"class-{y}"]) for row, y in zip(x, labels, strict=True)]
    file = tmp_path / "rows.csv"
    file.write_text("\n".join([",".join([*"abcdef"[:FEATURES], "label"]), *lines, "1,2,oops"]))
    with running(tmp_path / "models") as server:

        def error_at(tau):
            body = {"instances": x.tolist(), "parameters": {"tau": tau}}
            answer = httpx.post(f"{server.url}/predict", json=body).json()
            answers = np.array([p["index"] for p in answer["predictions"]])
            return balanced_error(answers, labels, CLASSES)

        page = open_page("/#/try", base=server.url)
        page.get_by_text("Many rows from a CSV").click()
        page.locator(".csv input[type=file]").set_input_files(file)
        page.wait_for_selector("text=Scored 60 rows")
        page.wait_for_selector("text=line 62")
        shown = page.get_by_label("Your labelled inputs")
        shown.get_by_text("Your 60 labelled inputs").wait_for()
        for tau in (0.0, 1.0, 2.5):
            page.get_by_label("τ as a number").fill(str(tau))
            shown.get_by_text(f"Balanced error at τ = {tau:.2f}").wait_for()
            reported = shown.locator("b").first.inner_text().removesuffix("\N{NO-BREAK SPACE}%")
            assert float(reported) == pytest.approx(100 * error_at(tau), abs=0.051)
        tile = page.locator(".sample").first
        across = "(e) => e.querySelector('.excerpt').getBoundingClientRect().right"
        assert tile.evaluate(across) <= tile.locator(".tick").bounding_box()["x"], "none hidden"
        cells = shown.locator(".confusion td").all_inner_texts()
        assert sum(int(cell) for cell in cells if cell) == 60
        page.screenshot(path=screenshots / "try-labelled.png", full_page=True)
        assert serious(page) == []
        page.close()


@pytest.mark.parametrize(
    ("content", "fields", "rows", "problems"),
    [
        ("1,2\n3,4", "x y", [([1, 2], None), ([3, 4], None)], 0),
        ("x,y,label\n1,2,cat", "x y", [([1, 2], "cat")], 0),
        ("label,x,y\ncat,1,2\ndog,3,4", "x y", [([1, 2], "cat"), ([3, 4], "dog")], 0),
        ("y,other,x\n1,9,2", "x y", [([2, 1], None)], 0),
        ("1,2,cow\n1\n1,b", "x y", [], 3),
        ("1,\n,NA", "x y?", [([1, None], None)], 1),
        ('"a, b"\nc', "text", [("a, b", None), ("c", None)], 0),
        ("text,label\nhello,cat", "text", [("hello", "cat")], 0),
    ],
)
def test_rows_of_a_table_are_read_with_and_without_classes(blank, content, fields, rows, problems):
    found = blank.evaluate(
        """async ([content, names]) => {
            const { tableOf } = await import("/console/rows.js");
            const fields = names.map((name) => (
                { name: name.replace("?", ""), text: name === "text",
                  missing: name.endsWith("?") }));
            const { inputs, problems } = tableOf(content, { fields, names: ["cat", "dog"] });
            return [inputs.map((i) => [i.instance, i.label ?? null]), problems.length];
        }""",
        [content, fields.split()],
    )
    assert [tuple(row) for row in found[0]] == rows
    assert found[1] == problems


def test_images_in_a_folder_for_each_class_are_labelled_by_it(open_page, served, tmp_path):
    import base64

    samples = httpx.get(f"{served.url}/models/fashion/report").json()["samples"]
    for number, sample in enumerate(samples):
        folder = tmp_path / "pictures" / sample["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(base64.b64decode(sample["png"]))
    page = open_page("/#/try?model=fashion")
    page.wait_for_selector(".verdict")
    page.locator("input[webkitdirectory]").set_input_files(tmp_path / "pictures")
    page.wait_for_selector(f"text=Your {len(samples)} labelled inputs")
    assert page.locator(".sample").count() == 2 * len(samples)


def test_another_model_answers_the_same_input_beside_the_one_of_the_page(open_page, served):
    page = open_page("/#/try?model=fashion")
    page.wait_for_selector(".verdict")
    page.get_by_text("Compare with other models or versions").click()
    page.get_by_text("fashion-la version 2").click()
    assert page.get_by_text("digits version 2").count() == 0, "it takes no images"
    shown = page.get_by_label("The answer of fashion-la version 2")
    for tau in (0.0, 1.5):
        page.get_by_label("τ as a number").fill(str(tau))
        pressed = page.locator(".sample[aria-pressed=true]")
        number = int(pressed.get_attribute("aria-label").split(":")[0].removeprefix("Sample ")) - 1
        sample = httpx.get(f"{served.url}/models/fashion/report").json()["samples"][number]
        body = {
            "instances": [{"b64": sample["png"]}],
            "parameters": {"tau": tau, "prior": "uniform", "top_k": 1},
        }
        url = f"{served.url}/models/fashion-la/predict"
        best = httpx.post(url, json=body).json()["predictions"][0]
        expected = f"answers {best['label']} ({100 * best['probability']:.1f} %)"
        shown.get_by_text(expected).wait_for()
    assert serious(page) == []
