"""The Priors page: what is saved there is served, and nobody's draft is lost."""

import httpx
import pytest


@pytest.fixture
def name(served, request):
    """A prior of fashion for one test."""
    name = request.node.name.replace("_", "-")[:60]
    path = f"{served.url}/models/fashion/priors/{name}"
    httpx.put(path, json={"target": "uniform", "note": "begin"}).raise_for_status()
    return name


def edit(open_page, name, **more):
    page = open_page(f"/#/priors?model=fashion&name={name}&tab=edit", **more)
    page.wait_for_selector("text=Save on top of revision 1")
    return page


def weigh(page, label, weight):
    page.get_by_text("class by class").click()
    page.get_by_label(f"Weight of {label}", exact=True).fill(str(weight))


def save(page, button):
    """Save, and confirm a change that other tests' traffic makes drastic."""
    page.get_by_role("button", name=button).click()
    drastic = page.get_by_role("button", name="Save it anyway")
    done = page.get_by_text("Saved as revision").or_(page.get_by_text("while you were editing"))
    drastic.or_(done).first.wait_for()
    if drastic.is_visible():
        drastic.click()


def test_an_edited_prior_changes_the_next_answer_and_the_history(open_page, served, name):
    sample = httpx.get(f"{served.url}/models/fashion/report").json()["samples"][0]

    def chance(label):
        body = {"instances": [{"b64": sample["png"]}], "parameters": {"prior": name, "top_k": 10}}
        answer = httpx.post(f"{served.url}/models/fashion/predict", json=body).json()
        top = {t["label"]: t["probability"] for t in answer["predictions"][0]["top"]}
        return answer["prior"]["revision"], top[label]

    first = chance("shirt")
    page = edit(open_page, name)
    weigh(page, "shirt", 0)
    page.get_by_label("Why").fill("No shirts this week")
    save(page, "Save on top of revision 1")
    page.wait_for_selector("text=Saved as revision 2")
    assert first[1] > 0
    assert chance("shirt") == (2, 0.0)
    page.get_by_role("link", name="History", exact=True).click()
    page.wait_for_selector(".history >> text=No shirts this week")
    page.get_by_label("Compare revision 1").check()
    page.get_by_label("Compare revision 2").check()
    assert "never" in page.locator(".diff tbody tr").first.inner_text()
    page.get_by_role("button", name="Go back to revision 1").click()
    page.get_by_role("button", name="Go back to 1").click()
    page.wait_for_selector("text=Revision 3 is now in force. It equals revision 1")
    assert chance("shirt") == (3, pytest.approx(first[1]))


@pytest.mark.parametrize("way", ["on top", "go on", "theirs"])
def test_of_two_tabs_the_second_sees_the_conflict_and_loses_nothing(
    open_page, served, way, screenshots
):
    name = f"tabs-{way.replace(' ', '-')}"
    path = f"{served.url}/models/fashion/priors/{name}"
    httpx.put(path, json={"target": "uniform"}).raise_for_status()
    one, two = edit(open_page, name), edit(open_page, name)
    weigh(one, "coat", 5)
    one.get_by_label("Why").fill("coats")
    weigh(two, "bag", 7)
    two.get_by_label("Why").fill("bags")
    save(one, "Save on top of revision 1")
    one.wait_for_selector("text=Saved as revision 2")
    open_page.allow("412")
    save(two, "Save on top of revision 1")
    conflict = two.locator(".conflict", has_text="while you were editing")
    conflict.wait_for()
    two.screenshot(path=screenshots / "priors-conflict.png", full_page=True)
    assert "saved revision 2 while you were editing revision 1" in conflict.inner_text()
    assert "coats" in conflict.inner_text()
    assert two.get_by_label("Weight of bag", exact=True).input_value() == "7"
    assert two.get_by_label("Why").input_value() == "bags"
    assert httpx.get(path).json()["revision"] == 2
    if way == "on top":
        save(two, "Save mine on top of revision 2")
        two.wait_for_selector("text=Saved as revision 3")
        target = httpx.get(path).json()["target"]
        assert target["bag"] == pytest.approx(7 / 16)
        assert target["coat"] == pytest.approx(1 / 16)
    elif way == "go on":
        two.get_by_role("button", name="Keep editing").click()
        weigh_again = two.get_by_label("Weight of coat", exact=True)
        weigh_again.fill("5")
        save(two, "Save on top of revision 2")
        two.wait_for_selector("text=Saved as revision 3")
        assert httpx.get(path).json()["target"]["coat"] == pytest.approx(5 / 20)
    else:
        two.get_by_role("button", name="Take theirs").click()
        assert two.get_by_label("Weight of coat", exact=True).input_value() == "5"
        assert two.get_by_label("Weight of bag", exact=True).input_value() == "1"


def test_a_preview_tells_what_would_change_and_stores_nothing(open_page, traffic, name):
    page = edit(open_page, name)
    weigh(page, "t-shirt", 0)
    page.get_by_role("button", name="Preview on recent traffic").click()
    page.wait_for_selector("text=Answers that would change")
    row = page.locator(".preview tbody tr", has_text="t-shirt").locator(".number").all_inner_texts()
    assert row[1] == "0.0\N{NO-BREAK SPACE}%"
    assert httpx.get(f"{traffic.url}/models/fashion/priors/{name}").json()["revision"] == 1


def test_an_estimate_that_is_not_usable_says_why_before_it_becomes_a_draft(
    open_page, traffic, name
):
    found = httpx.get(f"{traffic.url}/models/fashion/priors/{name}/estimate").json()
    assert found["verdict"] != "usable", "a few samples are too little traffic, or no label shift"
    page = edit(open_page, name)
    page.get_by_role("button", name="Estimate from traffic").click()
    page.wait_for_selector("text=This estimate is not usable")
    assert found["reason"][:20] in page.locator(".note", has_text="not usable").inner_text()
    assert page.get_by_label("uniform", exact=True).is_checked()
    page.get_by_role("button", name="Use it as a draft anyway").click()
    page.wait_for_selector("text=It is a draft: nothing is saved yet")
    assert page.get_by_label("class by class").is_checked()


def test_a_wrong_prior_is_named_field_by_field_and_stays_in_the_editor(open_page, name):
    page = edit(open_page, name)
    page.get_by_text("The whole prior as JSON").click()
    page.get_by_label("The prior as JSON").fill('{"target": {"t-shirt": 1, "sock": 2}}')
    open_page.allow("422")
    page.get_by_role("button", name="Save on top of revision 1").click()
    page.locator(".note", has_text="sock").wait_for()
    assert "sock" in page.get_by_label("The prior as JSON").input_value()


def test_what_stands_in_the_form_and_cannot_be_used_is_named_and_nothing_is_saved_without_it(
    open_page, served, name
):
    path = f"{served.url}/models/fashion/priors/{name}"
    page = edit(open_page, name)
    page.get_by_text("class by class").click()
    weight = page.get_by_label("Weight of bag")
    for typed in ("-3", ""):
        weight.fill(typed)
        assert weight.input_value() == typed
        assert "not used" in page.locator("tr", has=weight).inner_text()
        for button in ("Save on top of revision 1", "Preview on recent traffic"):
            page.get_by_role("button", name=button).click()
            refused = page.get_by_text("Weight of bag: expected a number of at least 0")
            assert (f"got {typed}" in refused.last.inner_text()) == bool(typed)
    weight.fill("4")
    page.get_by_text("Costs of wrong decisions").click()
    costs = page.get_by_label("Costs of wrong decisions as JSON")
    costs.fill('{"miss": ')
    page.get_by_role("button", name="Save on top of revision 1").click()
    page.get_by_text("Correct these first").last.wait_for()
    assert httpx.get(path).json()["revision"] == 1
    costs.fill("")
    save(page, "Save on top of revision 1")
    page.wait_for_selector("text=Saved as revision 2")
    assert httpx.get(path).json()["as_written"]["target"]["bag"] == 4


def test_a_class_is_found_among_thousands(open_page):
    page = open_page("/#/priors?model=wide")
    page.get_by_label("Find a class").fill("class-1234")
    page.wait_for_selector("text=1 of 2,000 classes")
    assert page.locator(".before-after tbody th .name").all_inner_texts() == ["class-1234"]


def test_a_new_prior_begins_with_a_first_revision(open_page, served):
    page = open_page("/#/priors?model=digits")
    page.get_by_label("Name of a new prior").fill("Bad Name")
    page.wait_for_selector("text=lowercase letters")
    page.get_by_label("Name of a new prior").fill("night-shift")
    page.get_by_role("button", name="New prior").click()
    page.get_by_role("button", name="Save the first revision").click()
    page.wait_for_selector("text=Saved as revision 1")
    page.get_by_role("button", name="Take out of use").click()
    page.get_by_role("button", name="Take night-shift out of use").click()
    page.locator(".names", has_text="night-shift").wait_for(state="detached")
    assert httpx.get(f"{served.url}/models/digits/priors/night-shift").status_code == 404


def test_a_share_is_shown_as_nothing_only_when_it_is_nothing(open_page):
    shown = open_page().evaluate(
        """async () => {
            const { fine } = await import('/console/prior-view.js');
            return [0, 1e-12, 2.2e-8, 4e-6, 2e-4, 0.0123, 0.5].map(fine);
        }"""
    )
    numbers = ["0.0", "1.0e-10", "0.0000022", "0.0004", "0.0200", "1.2", "50.0"]
    assert shown == [f"{number}\N{NO-BREAK SPACE}%" for number in numbers], (
        "no line ends before the sign"
    )


def test_a_preview_of_what_is_in_force_names_no_class(open_page, traffic, name):
    page = edit(open_page, name)
    page.get_by_role("button", name="Preview on recent traffic").click()
    page.wait_for_selector("text=No class's share of the answers would change")
    assert page.locator(".preview tbody tr").count() == 0


DRASTIC = '{"target": {"t-shirt": 200000}, "others": 1}'


def test_a_drastic_target_is_warned_of_before_it_is_saved_with_the_answers_that_would_flip(
    open_page, traffic, name, screenshots
):
    path = f"{traffic.url}/models/fashion/priors/{name}"
    page = edit(open_page, name)
    page.get_by_text("The whole prior as JSON").click()
    page.get_by_label("The prior as JSON").fill(DRASTIC)
    page.get_by_role("button", name="Save on top of revision 1").click()
    warned = page.locator(".conflict")
    warned.wait_for()
    page.screenshot(path=screenshots / "priors-drastic.png", full_page=True)
    assert "recent answers would have had another label" in warned.inner_text()
    assert "200,000 times" in warned.inner_text()
    assert httpx.get(path).json()["revision"] == 1
    page.get_by_role("button", name="Keep editing").click()
    warned.wait_for(state="detached")
    page.get_by_role("button", name="Save on top of revision 1").click()
    page.get_by_role("button", name="Save it anyway").click()
    page.wait_for_selector("text=Saved as revision 2")
    assert httpx.get(path).json()["revision"] == 2


def test_history_goes_back_to_nothing_stored_and_from_there_to_a_revision_again(open_page, served):
    path = f"{served.url}/models/digits/priors/default"
    httpx.put(path, json={"target": "training"}).raise_for_status()
    page = open_page("/#/priors?model=digits&tab=history")
    page.get_by_role("button", name="Go back to nothing stored").click()
    page.get_by_role("button", name="Go back to nothing stored").click()
    page.wait_for_selector("text=Nothing is stored as default any more")
    assert httpx.get(path).json()["revision"] == 0
    page.locator(".history tr", has_text="in force").filter(has_text="nothing stored").wait_for()
    page.get_by_role("button", name="Go back to revision 1").click()
    page.get_by_role("button", name="Go back to 1").click()
    page.wait_for_selector("text=Revision 3 is now in force")
    page.locator(".history tr", has_text="= revision 1").wait_for()
    page.locator(".history tr", has_text="as in force").wait_for()  # revision 1
    backs = page.get_by_role("button", name="Go back to").all_inner_texts()
    assert len(backs) == 1, "to nothing stored; revision 1 equals the one in force"
    httpx.delete(path).raise_for_status()


def test_history_that_is_opened_after_somebody_elses_change_says_what_is_in_force(
    open_page, served
):
    path = f"{served.url}/models/digits/priors/default"
    httpx.delete(path)
    page = open_page("/#/priors?model=digits&name=default")
    page.wait_for_selector("text=not stored: the model's own rule")
    stored = httpx.put(path, json={"target": "training"}).json()["revision"]
    page.get_by_role("link", name="History", exact=True).click()
    page.locator(".history tr", has_text=f"{stored} in force").wait_for()
    page.wait_for_selector(f"h2 >> text=revision {stored}")
    page.get_by_role("button", name="Go back to nothing stored").wait_for()
    httpx.delete(path).raise_for_status()


def test_a_prior_that_is_out_of_use_can_be_taken_back_from_its_history(open_page, served, name):
    path = f"{served.url}/models/fashion/priors/{name}"
    httpx.delete(path).raise_for_status()
    page = open_page(f"/#/priors?model=fashion&name={name}&tab=history")
    page.get_by_role("button", name="Go back to revision 1").click()
    page.get_by_role("button", name="Go back to 1").click()
    page.wait_for_selector("text=Revision 3 is now in force")
    assert httpx.get(path).json()["revision"] == 3


@pytest.mark.parametrize(
    ("text", "values", "problems"),
    [
        ("class,weight\ncat,3\ndog,0.5\n", {"cat": 3, "dog": 0.5}, 0),
        ("cat;3\r\ndog;4\r\n", {"cat": 3, "dog": 4}, 0),
        ("cat\t3", {"cat": 3}, 0),
        ('"a, ""b""",7\ncat,1', {'a, "b"': 7, "cat": 1}, 0),
        ("1\n2\n3", {"cat": 1, "dog": 2, 'a, "b"': 3}, 0),
        ("1\n2", {}, 1),
        ("cow,1\ncat,-1\ndog,many\ncat,2\ncat,3", {"cat": 2}, 4),
        ("", {}, 1),
    ],
)
def test_weights_are_read_from_csv_line_by_line(open_page, text, values, problems):
    found = open_page().evaluate(
        """async ([text, names]) => (await import('/console/csv.js')).weightsOf(text, names)""",
        [text, ["cat", "dog", 'a, "b"']],
    )
    assert found["values"] == values
    assert len(found["problems"]) == problems


def test_a_csv_sets_the_weights_of_thousands_of_classes(open_page, served, tmp_path):
    path = f"{served.url}/models/wide/priors/from-csv"
    file = tmp_path / "weights.csv"
    file.write_text("class,weight\n" + "".join(f"class-{i},{i % 7 + 1}\n" for i in range(1500)))
    page = open_page("/#/priors?model=wide&name=from-csv&tab=edit")
    page.get_by_text("class by class").click()
    page.get_by_text("From a CSV").click()
    page.get_by_label("Weight as CSV").fill("class-1,1\nno-class,2\n")
    page.wait_for_selector("text='no-class' is not a class of the model")
    page.locator(".csv input[type=file]").set_input_files(file)
    page.get_by_label("the other 500").select_option("1")
    page.get_by_role("button", name="Use these 1,500 values").click()
    page.wait_for_selector("text=Filled in 1,500 of 2,000 classes")
    page.get_by_role("button", name="Save the first revision").click()
    saved = page.get_by_text("Saved as revision 1")
    again = page.get_by_role("button", name="Save it anyway")
    saved.or_(again).wait_for()  # asked again where other tests have left traffic that would flip
    if again.count():
        again.click()
    saved.wait_for()
    target = httpx.get(path).json()["target"]
    assert target["class-6"] == pytest.approx(7 * target["class-0"])
    assert target["class-1999"] == pytest.approx(target["class-0"])


def test_classes_are_sorted_and_filtered_by_group(open_page):
    page = open_page("/#/priors?model=wide&name=training")
    names = page.locator(".before-after tbody th .name")
    page.get_by_label("group").select_option("few")
    page.wait_for_selector("text=of 2,000 classes")
    assert set(page.locator(".before-after tbody .group").all_inner_texts()) == {"few"}
    page.get_by_label("group").select_option("")
    page.get_by_label("order").select_option("name")
    shown = names.all_inner_texts()
    assert shown[:2] == ["class-0", "class-1"]
    assert shown == sorted(shown)


def test_a_model_without_counts_gets_its_label_frequencies_from_a_form(
    open_page, tmp_path, screenshots
):
    from tests.support.server import running
    from tests.support.small_models import publish_model

    publish_model(tmp_path / "models", class_counts=None)
    with running(tmp_path / "models") as server:
        page = open_page("/#/priors?tab=edit", base=server.url)
        page.wait_for_selector("text=published without counts")
        page.get_by_label("your own numbers").check()
        page.get_by_label("Frequency of class-0", exact=True).fill("90")
        page.screenshot(path=screenshots / "priors-frequencies.png", full_page=True)
        page.get_by_role("button", name="Save the first revision").click()
        page.wait_for_selector("text=Saved as revision 1")
        source = httpx.get(f"{server.url}/priors/default").json()["source_prior"]
        assert source["class-0"] == pytest.approx(90 / 94)
        page.close()
