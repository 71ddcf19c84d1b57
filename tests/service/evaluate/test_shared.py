"""Answers that are kept in the store are found by other replicas and after a restart."""

import time
import zlib
from contextlib import closing

import numpy as np
import pytest

from service.evaluate import shared
from service.evaluate.answers import Answers
from service.evaluate.feedback import Feedback, Item
from service.evaluate.live import _fitting
from service.evaluate.ring import NO_LABEL, ROW
from service.evaluate.shared import SharedAnswers
from service.priors.store import open_store
from tests.service.evaluate.test_answers import answered
from tests.support.priors import make_bundle

NAMES = ["x", "y", "z"]
BUNDLE = make_bundle(class_names=NAMES)
OF = (BUNDLE.name, BUNDLE.version)


@pytest.fixture
def store(store_url):
    with closing(open_store(store_url)) as opened:
        opened.open()
        yield opened.answers


class Worker:
    """The answers of one worker of a replica, whose thread the test takes the part of."""

    def __init__(self, store, root, *, replica="a", max_rows=100, seconds=3600.0):
        shared = SharedAnswers(
            store, replica=replica, slot=0, workers=1, max_rows=max_rows, seconds=seconds
        )
        self.answers = Answers(
            lambda model, version: root / f"{model}@{version}",
            lambda: root.glob("*@*"),
            max_bytes=2**20,
            seconds=seconds,
            shared=shared,
        )
        self.version = self.answers.of(BUNDLE)
        self.feedback = Feedback(self.answers, lambda *_: NAMES)

    def answer(self, *names):
        for name in names:
            self.version.note(answered(name))
        self.answers.flush()

    def share(self):
        self.answers._share()

    def label(self, name, label, *, sampled):
        taken, _ = self.feedback.take([Item(name, 0, label, sampled)])
        return taken.accepted

    def labels(self):
        return {
            bytes(row["id"]).decode(): (NAMES[row["label"]], row["sampled"].item())
            for *_, rows in self.answers.files()
            for row in rows
            if row["label"] != NO_LABEL
        }

    def ids(self):
        return sorted(bytes(i).decode() for *_, rows in self.answers.files() for i in rows["id"])


def test_a_label_reaches_an_answer_through_another_replica(store, tmp_path):
    one, other = (Worker(store, tmp_path / name, replica=name) for name in "ab")
    one.answer("from-one", "also")
    other.answer("from-other")
    for worker in (one, other):
        worker.share()
    assert other.label("from-one", "y", sampled=0.5) == 1
    assert other.label("unknown", "y", sampled=0.5) == 0
    one.share()
    assert one.labels() == {"from-one": ("y", 0.5)}
    other.share()
    one.share()
    assert one.ids() == other.ids() == ["also", "from-one", "from-other"]
    assert one.labels() == other.labels()


def test_a_later_label_replaces_an_earlier_one_wherever_it_came(store, tmp_path):
    one, other = (Worker(store, tmp_path / name, replica=name) for name in "ab")
    one.answer("a")
    one.share()
    other.share()
    one.label("a", "x", sampled=1.0)
    other.label("a", "z", sampled=1.0)
    for worker in (one, other):
        worker.share()
        assert worker.labels() == {"a": ("z", 1.0)}


def test_a_correction_that_the_store_does_not_take_is_kept(store, tmp_path, monkeypatch):
    one = Worker(store, tmp_path / "a")
    one.answer("a")
    one.label("a", "x", sampled=1.0)
    one.share()

    def refuse(*_):
        raise OSError("the disk of the store is full")

    monkeypatch.setattr(store, "add_labels", refuse)
    one.label("a", "y", sampled=1.0)
    one.share()
    assert one.labels() == {"a": ("y", 1.0)}


def test_after_a_restart_answers_and_labels_are_there_once(store, tmp_path):
    first = Worker(store, tmp_path / "first")
    first.answer("a", "b")
    first.label("a", "x", sampled=1.0)
    first.share()
    first.label("b", "y", sampled=1.0)  # stored as a label alone
    second = Worker(store, tmp_path / "second")
    second.answer("c")
    second.share()
    second.share()
    assert second.ids() == ["a", "b", "c"]
    assert second.labels() == {"a": ("x", 1.0), "b": ("y", 1.0)}
    # A worker that was replaced within a run finds its file as it was.
    third = Worker(store, tmp_path / "second")
    third.answer("d")
    third.share()
    assert third.ids() == ["a", "b", "c", "d"]


def test_the_labels_of_all_versions_together_are_bounded(store, monkeypatch):
    monkeypatch.setattr(shared, "MAX_LABELS", 5)
    worker = SharedAnswers(store, replica="a", slot=0, workers=1, max_rows=9, seconds=3600.0)
    labels = np.zeros(3, shared.LABEL)
    for version in (1, 2, 1, 3):
        labels["id"] = [f"{version}-{number}" for number in range(3)]
        worker.add_labels(("pets", version), labels)
    worker.sync({})
    kept = {of[1]: held["id"].tolist() for of, held in worker._labels.items()}
    assert kept == {1: [b"1-1", b"1-2"], 3: [b"3-0", b"3-1", b"3-2"]}


def test_the_newest_answers_are_stored_and_old_ones_removed(store, tmp_path):
    one = Worker(store, tmp_path / "a", max_rows=3)
    one.answer(*"abcde")
    rows = one.version.held()
    rows["at"] = time.time() + np.arange(len(rows)) * 1e-3
    one.share()
    other = Worker(store, tmp_path / "b", replica="b")
    other.share()
    assert other.ids() == ["c", "d", "e"]
    one.label("e", "x", sampled=1.0)
    brief = Worker(store, tmp_path / "c", replica="c", seconds=0.0)
    brief.answer("z")
    brief.share()  # removes whatever was stored before this moment
    late = Worker(store, tmp_path / "d", replica="d")
    late.share()
    assert not {"c", "d", "e"} & set(late.ids())
    assert late.labels() == {}


def test_answers_in_the_form_of_another_release_are_left_out(store, tmp_path):
    one = Worker(store, tmp_path / "a")
    one.answer("a")
    one.share()
    store.keep(*OF, "newer/0", b"2 rows of another form", seconds=3600.0)
    one.share()
    assert one.ids() == ["a"]
    again = Worker(store, tmp_path / "b")
    again.answer("b")
    again.share()
    assert again.ids() == ["a", "b"]


def test_without_its_store_a_worker_keeps_answers_and_labels(tmp_path, caplog):
    opened = open_store(f"sqlite:///{tmp_path / 'none' / 'priors.db'}")
    one = Worker(opened.answers, tmp_path / "a")
    one.answer("a")
    one.share()
    one.share()
    assert one.label("a", "x", sampled=1.0) == 1
    assert one.labels() == {"a": ("x", 1.0)}
    warnings = [record.getMessage() for record in caplog.records]
    assert sum("answers cannot be shared through the store" in each for each in warnings) == 1
    text = "labels of 1 answers to pets version 1 did not reach the other replicas"
    assert any(text in each for each in warnings)


def test_stored_answers_that_are_damaged_or_would_become_too_many_are_left_out(monkeypatch):
    rows = np.zeros(20, ROW)
    good = shared._packed(rows)
    assert np.array_equal(shared._unpacked(good), rows)
    monkeypatch.setattr(shared, "MAX_COPIED", 10)
    assert len(shared._unpacked(good)) == 10
    for damaged in (b"", b"1", b"1junk", good[:-8], b"1" + zlib.compress(b"x" * 7), b"2" + good):
        assert len(shared._unpacked(damaged)) <= 10
    assert len(shared._labels_in(b"x" * (shared.LABEL.itemsize + 1))) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("label", 3), ("label", -2), ("decided", 99), ("top", 3), ("top", -2), ("at", np.inf),
     ("sampled", 0.0), ("sampled", 2.0)],
)  # fmt: skip
def test_rows_that_the_version_cannot_have_written_are_not_counted(field, value):
    rows = np.zeros(5, ROW)
    rows["sampled"] = np.nan
    assert len(_fitting(rows, 3)) == 5
    rows[field][2] = value
    assert len(_fitting(rows, 3)) == 4
