"""The Traffic and Model pages: the numbers are those of the service."""

import httpx
import numpy as np
import pytest

from tests.support.server import running
from tests.support.small_models import CLASSES, COUNTS, FEATURES, publish_model


def test_the_traffic_page_counts_what_was_answered(open_page, tmp_path):
    publish_model(tmp_path / "models")
    with running(tmp_path / "models") as server:
        page = open_page("/#/traffic", base=server.url)
        page.wait_for_selector("text=No predictions yet")
        x = np.random.default_rng(0).normal(size=(300, FEATURES)).astype(np.float32)
        answer = httpx.post(f"{server.url}/predict", json={"instances": x.tolist()}).json()
        labels = [p["label"] for p in answer["predictions"]]
        changed = sum(p["label"] != p["unadjusted"]["label"] for p in answer["predictions"])
        assert 0 < changed < 300
        page.wait_for_selector("text=300 since start")
        page.wait_for_selector(f"text={changed} of 300 answers")
        rows = page.locator(".before-after tbody tr").all()
        assert len(rows) == CLASSES
        for row in rows:
            name = row.locator(".name").inner_text()
            assert row.locator(".number").last.inner_text() == str(labels.count(name))
        page.close()  # so that it does not miss the server


def test_a_quiet_service_can_be_given_its_first_traffic(open_page, tmp_path):
    from tests.service.console.conftest import shipped

    with running(shipped(tmp_path / "models", "digits")) as server:
        page = open_page("/#/traffic", base=server.url)
        page.get_by_role("button", name="Score the model's").click()
        page.wait_for_selector("text=12 since start")
        page.close()


def test_other_classes_are_shown_as_one(open_page, tmp_path):
    publish_model(tmp_path / "models")
    x = np.random.default_rng(0).normal(size=(100, FEATURES)).astype(np.float32)
    with running(tmp_path / "models", max_class_series=2) as server:
        httpx.post(f"{server.url}/predict", json={"instances": x.tolist()}).raise_for_status()
        page = open_page("/#/traffic", base=server.url)
        page.wait_for_selector("text=all other classes")
        assert page.locator(".before-after tbody tr").count() == 3
        page.close()


@pytest.mark.parametrize(
    "text", ["a 1\n", 'a{b="c\\"d\\\\e\\nf,}g"} 2.5e3 # {request_id="x"} 1 2\n']
)
def test_the_page_reads_prometheus_text(open_page, text):
    found = open_page().evaluate(
        "async (text) => (await import('/console/scrape.js')).parse(text)", text
    )
    assert len(found) == 1
    assert found[0]["name"] == "a"
    assert found[0]["value"] == (1 if "{" not in text else 2500)
    assert found[0]["labels"] == ({} if "{" not in text else {"b": 'c"d\\e\nf,}g'})


def test_another_version_can_be_looked_at(open_page):
    page = open_page("/#/model?model=wide")
    page.wait_for_selector("text=Random, seed 1")
    page.get_by_label("version").select_option("1")
    page.wait_for_selector("text=Random, seed 0")


def test_the_model_page_shows_the_scores_of_its_report(open_page, served):
    report = httpx.get(f"{served.url}/models/fashion/report").json()
    page = open_page("/#/model?model=fashion")
    table = page.get_by_label("Table of scores")
    text = table.inner_text()
    for tau in ("0", "1", "chosen"):
        error = report["test"]["at_tau"][tau]["balanced_error"]
        assert f"{100 * error:.1f}\N{NO-BREAK SPACE}%" in text
    assert f"n = {report['test']['n']:,}" in text
    page.get_by_text("Errors are at τ = 1, the default, on the test split").wait_for()


def test_a_model_without_a_report_shows_what_the_adjustment_does_by_default(
    open_page, tmp_path, screenshots
):
    from service.contract.adjustment import log_source_prior

    publish_model(tmp_path / "models")
    publish_model(tmp_path / "models", "uncounted", class_counts=None)
    with running(tmp_path / "models") as server:
        page = open_page("/#/model?model=linear", base=server.url)
        shown = page.get_by_label("The adjustment")
        shown.locator(".before-after").wait_for()
        page.screenshot(path=screenshots / "model-imported.png", full_page=True)
        shift = -np.log(CLASSES) - log_source_prior(COUNTS, loss_tau=0)
        reported = shown.locator("tbody tr .number:last-child").all_inner_texts()
        assert [float(t.replace("−", "-")) for t in reported] == pytest.approx(shift, abs=0.006)
        page.goto(f"{server.url}/#/model?model=uncounted")
        page.wait_for_selector("text=class counts are unknown")
        page.goto(f"{server.url}/#/priors?model=uncounted")
        page.wait_for_selector("text=states no class counts, so its answers are not adjusted")
        page.goto(f"{server.url}/#/shift?model=uncounted")
        page.wait_for_selector("text=priordial train calibrate models/uncounted/1")
        page.close()


def test_a_chosen_tau_that_is_the_default_is_told_once(open_page, served):
    at_tau = httpx.get(f"{served.url}/models/fashion/report").json()["test"]["at_tau"]
    assert at_tau["chosen"]["tau"] == at_tau["1"]["tau"]
    page = open_page("/#/model?model=fashion")
    rows = page.get_by_label("Table of scores").locator("tbody tr")
    rows.first.wait_for()
    assert [row.split("\t")[1] for row in rows.all_inner_texts()] == [
        "0 as trained",
        "1 chosen",
    ] * 2
    assert page.get_by_label("τ = 1, chosen").is_checked()


def test_many_classes_over_many_readings_do_not_fill_the_tab(open_page):
    kept = open_page().evaluate(
        """async () => {
            const { keep } = await import('/console/scrape.js');
            let readings = [];
            for (let at = 0; at <= 300; at += 2) {
                const next = { at, answered: at, classes: { cat: at }, targets: { cat: 1 } };
                readings = keep(readings, next, 100);
            }
            return readings;
        }"""
    )
    newest, minutes = list(range(102, 302, 2)), [0, 60]
    assert [r["at"] for r in kept] == minutes + newest, "the newest, and one of each minute"
    assert [r["answered"] for r in kept] == [r["at"] for r in kept]
    last_minute = list(range(240, 302, 2))
    assert [r["at"] for r in kept if r["classes"]] == [0, 60, 120, 180, *last_minute]
    assert [r["at"] for r in kept if r["targets"]] == [300]


def test_traffic_opens_on_the_last_fifteen_minutes_that_the_service_remembers(open_page, tmp_path):
    publish_model(tmp_path / "models")
    x = np.random.default_rng(0).normal(size=(40, FEATURES)).astype(np.float32)
    body = {"instances": x.tolist()}
    with running(tmp_path / "models") as server:
        httpx.post(f"{server.url}/predict", json=body).raise_for_status()
        page = open_page("/#/traffic", base=server.url)
        page.wait_for_selector("text=of 40 answers in the last 15 minutes")
        answers = page.locator(".before-after tbody .number:last-child")
        assert sum(map(int, answers.all_inner_texts())) == 40
        page.get_by_label("counted").select_option("start")
        page.wait_for_selector("text=of 40 answers since the service started")
        page.close()


def test_a_key_that_is_given_on_traffic_brings_the_last_fifteen_minutes(open_page, tmp_path):
    from service.api.edge.keys import make_key

    publish_model(tmp_path / "models")
    given, key = make_key("night-shift", ["predict", "observe"])
    headers = {"Authorization": f"Bearer {given}"}
    body = {"instances": [[0.0] * FEATURES] * 40}
    open_page.allow("401")
    with running(tmp_path / "models", api_keys=key.line()) as server:
        httpx.post(f"{server.url}/predict", json=body, headers=headers).raise_for_status()
        page = open_page("/#/traffic", base=server.url)
        page.get_by_label("API key").fill(given)
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("text=of 40 answers in the last 15 minutes")
        page.close()


def test_a_span_is_counted_from_the_last_reading_before_it(open_page):
    found = open_page().evaluate(
        """async () => {
            const { readingBefore } = await import('/console/scrape.js');
            const at = [0, 60, 120, 900, 960, 970];
            const readings = at.map((at) => ({ at, classes: at === 120 ? null : {} }));
            return [60, 900, 2000, 5].map((seconds) => readingBefore(readings, seconds).at);
        }"""
    )
    assert found == [900, 60, 0, 960]


def test_confusion_says_which_side_is_the_truth_and_of_how_many(open_page, served):
    report = httpx.get(f"{served.url}/models/fashion/report").json()
    page = open_page("/#/model?model=fashion")
    shown = page.get_by_label("Reliability", exact=True)
    shown.locator(".axes").wait_for()
    assert shown.locator(".axes").inner_text().split() == ["truth", "↓", "answer", "→"]
    assert f"{report['test']['n']:,} examples" in shown.inner_text()
    cells = np.array(report["at_tau"]["1"]["confusion"])
    share = cells / cells.sum(1, keepdims=True)
    np.fill_diagonal(share, 0)
    truth, answer = np.unravel_index(share.argmax(), share.shape)
    names = report["class_names"]
    assert f"mistaken: {names[truth]} for {names[answer]}" in shown.inner_text()


def test_the_confusion_of_ten_classes_fits_a_phone(open_page):
    page = open_page("/#/model?model=fashion", width=360)
    matrix = page.get_by_label("Confusion matrix")
    matrix.wait_for()
    assert matrix.evaluate("(e) => e.scrollWidth <= e.clientWidth")


def test_a_mark_in_the_charts_names_prior_revision_author_and_time(open_page):
    found = open_page().evaluate(
        """async () => {
            const { marksOf } = await import('/console/traffic.js');
            const changes = [["2024-05-01T10:00:00Z", 7, false], ["2024-05-01T10:05:00Z", 8, true], ["2024-05-01T09:00:00Z", 6, false]];
            const change = ([at, revision, deleted]) => ({ at: Date.parse(at) / 1000, updated_at: at, prior: "default", by: "ann", revision, deleted });
            return marksOf(changes.map(change), [{ at: Date.parse("2024-05-01T09:59:00Z") / 1000 }]).map((mark) => mark.label);
        }"""  # noqa: E501
    )
    assert found == [
        "default 7, ann, 1 May 2024, 10:00",
        "default out of use, ann, 1 May 2024, 10:05",
    ]


def test_the_newest_mark_is_named_however_narrow_the_chart_and_no_name_crosses_a_newer_line(
    open_page,
):
    drawn = open_page().evaluate(
        """async () => {
            const { labels } = await import('/console/chart.js');
            const names = ["default 1, ann, 10:00", "default 2, ann, 10:05", "default 3, ann, 10:09"];
            return [[1500, [100, 600, 1100]], [240, [100, 190, 330]], [240, [100, 215, 220]]].map(([width, at]) => {
                const texts = [], ctx = document.createElement("canvas").getContext("2d");
                ctx.fillText = (text, left) => texts.push([text, left, left + ctx.measureText(text).width]);
                const marks = names.map((label, i) => ({ x: at[i], label, stroke: "alert" }));
                labels({ ctx, bbox: { left: 100, width, top: 0 }, valToPos: (x) => x }, marks);
                return { at, texts };
            });
        }"""  # noqa: E501
    )
    wide, phone, close = ([text for text, *_ in each["texts"]] for each in drawn)
    assert wide == ["default 3, ann, 10:09", "default 2, ann, 10:05", "default 1, ann, 10:00"]
    assert phone == ["default 3, ann, 10:09", "default 2"]
    assert close[0] == "default 3"
    for each in drawn:
        for number, (_, left, right) in enumerate(each["texts"]):
            later = each["at"][len(each["at"]) - number :]
            assert not [line for line in later if left < line < right]


def test_a_change_of_a_prior_is_named_with_time_and_author_and_marks_the_charts(
    open_page, tmp_path, screenshots
):
    publish_model(tmp_path / "models")
    x = np.random.default_rng(0).normal(size=(40, FEATURES)).astype(np.float32)
    body = {"instances": x.tolist()}
    with running(tmp_path / "models") as server:
        httpx.post(f"{server.url}/predict", json=body).raise_for_status()
        page = open_page("/#/traffic", base=server.url)
        page.wait_for_selector("text=40 since start")
        assert page.get_by_label("Changes of priors").count() == 0
        for _ in range(500):  # traffic while the page looks
            httpx.post(f"{server.url}/predict", json=body).raise_for_status()
            if page.locator(".chart canvas").count() == 2:
                break
        httpx.put(f"{server.url}/priors", json={"target": "training", "note": "night"})
        shown = page.get_by_label("Changes of priors")
        shown.get_by_text("marked above").wait_for()
        for words in ("default", "revision 1", "anonymous", "night"):
            assert words in shown.inner_text()
        page.screenshot(path=screenshots / "traffic-marked.png", full_page=True)
        assert page.locator(".chart canvas").count() == 2
        page.close()
