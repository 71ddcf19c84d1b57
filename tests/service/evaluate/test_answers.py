"""Answers are kept in a ring of bounded size, and feedback finds them in any worker's file."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from service.contract.adjustment import softmax
from service.evaluate import live, ring
from service.evaluate.answers import FILE, Answered, Answers, rows_of
from service.evaluate.feedback import Feedback, InvalidFeedback, Item, parse_items
from service.evaluate.live import Evaluation, Mix, predicted
from service.evaluate.ring import NO_LABEL, ROW, Ring, id_of
from service.priors.revisions import ChosenBy
from tests.support.priors import make_bundle

CLASSES = 3
UNIFORM = np.full(CLASSES, 1 / CLASSES)


@dataclass(frozen=True)
class Used:
    """A prior, as far as answers need it."""

    offset: np.ndarray | None
    chosen_by: ChosenBy | None = None


def answered(name="a", rows=1, *, logits=None, tau=1.0, offset=None, **more):
    """An answered request as the graph would return it."""
    logits = (
        np.random.default_rng(len(name)).normal(size=(rows, CLASSES)) if logits is None else logits
    )
    shift = np.zeros(CLASSES) if offset is None else np.asarray(offset, float)
    chance = softmax(logits - np.reshape(tau, (-1, 1)) * shift)
    top = np.argsort(-chance, axis=1)
    values = {
        "request_id": name,
        "top": top,
        "probability": np.take_along_axis(chance, top, axis=1).astype(np.float32),
        "decision": None,
        "start": 0,
        "stop": rows,
        "tau": tau,
        "priors": (Used(None if offset is None else shift.astype(np.float32)),),
        "prior_of_row": None,
    }
    return Answered(**{**values, **more})


def plain(count, start=0):
    rows = np.zeros(count, ROW)
    rows["row"] = start + np.arange(count)
    return rows


def test_a_ring_grows_to_its_bound_and_then_forgets_the_oldest_rows(tmp_path):
    ring = Ring(tmp_path / "r.bin", max_bytes=2000 * ROW.itemsize, owner=True)
    reader = Ring(tmp_path / "r.bin")
    first = (tmp_path / "r.bin").stat().st_size
    for start in range(0, 7000, 700):
        ring.add(plain(700, start))
        held = reader.held()
        wanted = range(max(0, start + 700 - 2000), start + 700)
        assert sorted(held["row"].tolist()) == list(wanted)
    size = (tmp_path / "r.bin").stat().st_size
    assert first < size <= 2000 * ROW.itemsize + 8192
    ring.add(plain(9000, 10_000))
    assert sorted(reader.held()["row"].tolist()) == list(range(17_000, 19_000))


def test_a_worker_that_takes_anothers_place_goes_on_in_its_file(tmp_path):
    Ring(tmp_path / "r.bin", max_bytes=10**6, owner=True).add(plain(5))
    again = Ring(tmp_path / "r.bin", max_bytes=10**6, owner=True)
    again.add(plain(2, 5))
    assert again.held()["row"].tolist() == list(range(7))


def test_the_kept_scores_give_the_posterior_under_any_mix():
    """Answers of several priors and taus, one request at a time or together, come out the same."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4, CLASSES))
    offset, other = np.array([0.5, -1.0, 2.0]), np.array([-0.3, 0.1, 0.2])
    log_source = np.log([0.5, 0.3, 0.2])
    mix = Mix(np.array([0.2, 0.2, 0.6]), log_source, "estimate")
    wanted = softmax(logits + np.log(mix.prior) - log_source)
    by_row = answered(
        "c",
        4,
        logits=logits,
        tau=np.array([0.0, 1.0, 0.5, 2.0], np.float32),
        offset=offset,
        prior_of_row=np.array([0, 0, 0, 0]),
    )
    requests = [
        answered("a", 4, logits=logits, tau=1.0, offset=offset),
        answered("b", 4, logits=logits, tau=0.5, offset=other),
        answered("d", 4, logits=logits, tau=0.0),
        by_row,
    ]
    rows = rows_of(requests, 1.0)
    assert rows["id"].tolist() == [b"a"] * 4 + [b"b"] * 4 + [b"d"] * 4 + [b"c"] * 4
    assert rows["row"].tolist() == [0, 1, 2, 3] * 4
    found = predicted(rows, mix)
    for row in range(16):
        there = found.classes[row] >= 0
        np.testing.assert_allclose(
            found.probabilities[row][there], wanted[row % 4][found.classes[row][there]], atol=2e-5
        )
    assert rows["decided"][:4].tolist() == requests[0].top[:, 0].tolist()


def test_decisions_by_cost_are_what_was_decided():
    by_cost = np.array([-1, 2, -2])
    rows = rows_of([answered("a", 3, decision=by_cost), answered("b", 1)], 1.0)
    first = answered("a", 3).top[:, 0].tolist()
    assert rows["decided"].tolist() == [-1, 2, first[2], answered("b", 1).top[0, 0]]


@pytest.fixture
def two_workers(tmp_path) -> Iterator[tuple[Answers, Answers]]:
    """The answers of two workers that share a folder."""

    def worker(number):
        return Answers(
            lambda model, version: tmp_path / f"worker-{number}" / f"{model}@{version}",
            lambda: sorted(tmp_path.glob("*/*@*")),
            max_bytes=10**6,
            seconds=3600,
        )

    return worker(0), worker(1)


def test_feedback_labels_rows_of_any_worker_and_says_what_it_did(two_workers):
    bundle = make_bundle()
    one, other = two_workers
    keeper = one.of(bundle)
    keeper.note(answered("first", 2))
    keeper.note(answered("x" * 60, 1))
    one.flush()
    classes = bundle.class_names
    feedback = Feedback(other, lambda *_: classes)
    items = [
        Item("first", 1, classes[0], 0.5),
        Item("x" * 60, 0, classes[1], None),
        Item("first", 7, classes[0], None),
        Item("nobody", 0, classes[0], None),
        Item("first", 0, "no such class", None),
    ]
    taken, missing = feedback.take(items)
    assert (taken.accepted, taken.changed, taken.unknown) == (2, 0, 2)
    assert [item.request_id for item in missing] == ["first", "nobody"]
    assert "no such class" in taken.faults[0]["reason"]
    assert sum(taken.counts.values()) == 2
    (_, _, rows), *_ = one.files()
    assert rows["label"].tolist() == [NO_LABEL, 0, 1]
    assert rows["sampled"][1] == 0.5
    again, _ = feedback.take([Item("first", 1, classes[2], 0.5)])
    assert (again.accepted, again.changed, again.counts) == (1, 1, {})
    assert feedback.take(items[:1], model="another")[0].unknown == 1


def test_a_label_for_a_version_that_is_not_loaded_says_so(two_workers):
    bundle = make_bundle()
    one, _ = two_workers
    one.of(bundle).note(answered("a"))
    one.flush()
    taken, _ = Feedback(one, lambda *_: None).take([Item("a", 0, bundle.class_names[0], None)])
    assert taken.accepted == 0
    assert "is not loaded here now; load it" in taken.faults[0]["reason"]


def test_answers_that_are_too_old_are_no_longer_found(two_workers, tmp_path):
    bundle = make_bundle()
    one, _ = two_workers
    one.of(bundle).note(answered("old"))
    one.flush()
    one.files()[0][2]["at"] -= 3601
    taken, missing = Feedback(one, lambda *_: bundle.class_names).take(
        [Item("old", 0, bundle.class_names[0], None)]
    )
    assert (taken.accepted, len(missing)) == (0, 1)
    assert Evaluation(one, lambda _: Mix(UNIFORM, None, "training")).of(bundle).rows == 0
    assert (tmp_path / "worker-0" / f"{bundle.name}@{bundle.version}" / FILE).exists()


def test_the_newest_rows_of_all_workers_are_found_piece_by_piece(two_workers, monkeypatch):
    monkeypatch.setattr(ring, "_PIECE", 7)
    monkeypatch.setattr(live, "MAX_ROWS", 25)
    bundle, rng = make_bundle(), np.random.default_rng(0)
    for each in two_workers:
        each.of(bundle).note(answered("a", 30))
        each.flush()
    now, moments = time.time(), []
    for _, _, rows in two_workers[0].files():
        rows["at"] = now - rng.permutation(30)
        moments += rows["at"].tolist()
    found = Evaluation(two_workers[0], lambda _: Mix(UNIFORM, None, "training")).rows(bundle)
    assert found["at"].tolist() == sorted(moments)[-25:]


def test_a_version_that_is_loaded_again_goes_on_when_the_old_one_retires(two_workers):
    bundle = make_bundle()
    one, _ = two_workers
    old, new = one.of(bundle), one.of(bundle)
    one.forget(bundle)
    new.note(answered("after"))
    old.note(answered("before"))
    one.flush()
    assert sorted(one.files()[0][2]["id"].tolist()) == [b"after", b"before"]
    one.forget(bundle)
    new.note(answered("late"))
    one.flush()
    assert len(one.files()[0][2]) == 2


def test_a_version_whose_folder_was_removed_is_found_again_once_it_is_loaded_again(
    two_workers, tmp_path
):
    bundle, other_bundle = make_bundle(), make_bundle(version=2)
    one, reader = two_workers
    for each in (bundle, other_bundle):
        one.of(each).note(answered("before"))
    one.flush()
    assert len(reader.files()) == 2
    for each in (bundle, other_bundle):
        one.forget(each)
    shutil.rmtree(tmp_path / "worker-0")
    one.of(bundle).note(answered("after"))
    one.flush()
    ((_, _, rows),) = reader.files()
    assert rows["id"].tolist() == [b"after"]
    del rows
    assert f"{FILE} (deleted)" not in Path("/proc/self/maps").read_text()


def test_a_disk_that_cannot_be_written_costs_no_answer(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    answers = Answers(lambda *_: tmp_path / "file", list, max_bytes=10**6, seconds=1)
    keeper = answers.of(make_bundle())
    for _ in range(2):
        keeper.note(answered("a"))
        answers.flush()
    assert len(caplog.records) == 1
    assert len(keeper.waiting) == 0


def test_every_worker_shows_the_newest_figures_of_a_version_with_labels(two_workers):
    bundle = make_bundle()
    one, other = two_workers
    mine, theirs = (
        Evaluation(each, lambda _: Mix(UNIFORM, None, "training")) for each in two_workers
    )
    one.of(bundle).note(answered("a", 40))
    one.flush()
    mine.refresh([bundle])
    assert theirs.published() == {}
    names = bundle.class_names
    Feedback(one, lambda *_: names).take([Item("a", row, names[0], 1.0) for row in range(40)])
    mine.refresh([bundle])
    other.of(bundle).note(answered("b"))
    found = theirs.of(bundle)
    assert (found.labels, found.sampled, found.rows) == (40, 40, 41)
    assert found.by_labels is not None
    assert mine.published() == theirs.published()
    (shown,) = mine.published().values()
    assert shown["value"] == found.by_labels.balanced_error.value
    mine.refresh([])


@pytest.mark.parametrize(
    ("items", "field"),
    [
        (None, "items"),
        ([], "items"),
        ([3], "items.0"),
        ([{"request_id": "a", "label": "x", "prior": 1}], "items.0.prior"),
        ([{"request_id": "", "label": "x"}], "items.0.request_id"),
        ([{"request_id": "a" * 257, "label": "x"}], "items.0.request_id"),
        ([{"request_id": "a", "label": 3}], "items.0.label"),
        ([{"request_id": "a", "label": "x", "row": -1}], "items.0.row"),
        ([{"request_id": "a", "label": "x", "row": True}], "items.0.row"),
        ([{"request_id": "a", "label": "x", "sampled": 0}], "items.0.sampled"),
        ([{"request_id": "a", "label": "x", "sampled": 1.5}], "items.0.sampled"),
        ([{"request_id": "a", "label": "x", "sampled": float("nan")}], "items.0.sampled"),
        ([{"request_id": "a", "label": "x"}] * 100_001, "items"),
    ],
)
def test_wrong_items_are_named(items, field):
    with pytest.raises(InvalidFeedback) as caught:
        parse_items(items)
    assert caught.value.errors[0]["field"] == field


def test_many_wrong_items_are_told_a_few_at_a_time():
    with pytest.raises(InvalidFeedback) as caught:
        parse_items([3] * 5000)
    assert len(caught.value.errors) == 100


def test_a_long_id_is_kept_as_a_digest_of_all_of_it():
    assert id_of("a" * 32) == b"a" * 32
    assert len(id_of("a" * 33)) == 32
    assert id_of("a" * 33 + "b") != id_of("a" * 33 + "c")
