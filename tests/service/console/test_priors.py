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
    page.get_by_role("button", name="Save on top of revision 1").click()
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
    one.get_by_role("button", name="Save on top of revision 1").click()
    one.wait_for_selector("text=Saved as revision 2")
    open_page.allow("412")
    two.get_by_role("button", name="Save on top of revision 1").click()
    conflict = two.locator(".conflict")
    conflict.wait_for()
    two.screenshot(path=screenshots / "priors-conflict.png", full_page=True)
    assert "saved revision 2 while you were editing revision 1" in conflict.inner_text()
    assert "coats" in conflict.inner_text()
    assert two.get_by_label("Weight of bag", exact=True).input_value() == "7"
    assert two.get_by_label("Why").input_value() == "bags"
    assert httpx.get(path).json()["revision"] == 2
    if way == "on top":
        two.get_by_role("button", name="Save mine on top of revision 2").click()
        two.wait_for_selector("text=Saved as revision 3")
        target = httpx.get(path).json()["target"]
        assert target["bag"] == pytest.approx(7 / 16)
        assert target["coat"] == pytest.approx(1 / 16)
    elif way == "go on":
        two.get_by_role("button", name="Go on editing").click()
        weigh_again = two.get_by_label("Weight of coat", exact=True)
        weigh_again.fill("5")
        two.get_by_role("button", name="Save on top of revision 2").click()
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
    assert row[1] == "0.0 %"
    assert httpx.get(f"{traffic.url}/models/fashion/priors/{name}").json()["revision"] == 1


def test_a_wrong_prior_is_named_field_by_field_and_stays_in_the_editor(open_page, name):
    page = edit(open_page, name)
    page.get_by_text("The same as JSON").click()
    page.get_by_label("The prior as JSON").fill('{"target": {"t-shirt": 1, "sock": 2}}')
    open_page.allow("422")
    page.get_by_role("button", name="Save on top of revision 1").click()
    page.locator(".note", has_text="sock").wait_for()
    assert "sock" in page.get_by_label("The prior as JSON").input_value()


def test_a_class_is_found_among_thousands(open_page):
    page = open_page("/#/priors?model=wide")
    page.get_by_label("Find a class").fill("class-1234")
    page.wait_for_selector("text=1 of 2,000 classes")
    assert page.locator(".before-after tbody th .name").all_inner_texts() == ["class-1234"]


def test_a_new_prior_begins_with_a_first_revision(open_page, served):
    page = open_page("/#/priors?model=digits")
    page.get_by_label("Name of a new prior").fill("Bad Name")
    page.wait_for_selector("text=Small letters")
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
    assert shown == [
        "0.0 %", "1.0e-10 %", "0.0000022 %", "0.0004 %", "0.0200 %", "1.2 %", "50.0 %",
    ]  # fmt: skip


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
    page.get_by_text("The same as JSON").click()
    page.get_by_label("The prior as JSON").fill(DRASTIC)
    page.get_by_role("button", name="Save on top of revision 1").click()
    warned = page.locator(".conflict")
    warned.wait_for()
    page.screenshot(path=screenshots / "priors-drastic.png", full_page=True)
    assert "recent answers would have had another label" in warned.inner_text()
    assert "200,000 times" in warned.inner_text()
    assert httpx.get(path).json()["revision"] == 1
    page.get_by_role("button", name="Go on editing").click()
    warned.wait_for(state="detached")
    page.get_by_role("button", name="Save on top of revision 1").click()
    page.get_by_role("button", name="Save it all the same").click()
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
    httpx.delete(path).raise_for_status()


def test_a_prior_that_is_out_of_use_can_be_taken_back_from_its_history(open_page, served, name):
    path = f"{served.url}/models/fashion/priors/{name}"
    httpx.delete(path).raise_for_status()
    page = open_page(f"/#/priors?model=fashion&name={name}&tab=history")
    page.get_by_role("button", name="Go back to revision 1").click()
    page.get_by_role("button", name="Go back to 1").click()
    page.wait_for_selector("text=Revision 3 is now in force")
    assert httpx.get(path).json()["revision"] == 3
