"""The tracker of a stream's prior: it follows, it forgets, and it survives a restart."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from service.contract.shift import tracking
from service.contract.shift.label_shift import estimate_prior
from service.contract.shift.tracking import OtherState, PriorTracker, Ranked, Tracked

SOURCE = np.array([0.7, 0.2, 0.1])
OTHER = np.array([0.1, 0.2, 0.7])


def logits(prior, n, seed=0, separation=1.6):
    """Logits of exact posteriors under SOURCE, of rows that follow `prior`."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(prior), n, p=prior)
    x = rng.normal(size=(n, len(prior))) + separation * np.eye(len(prior))[labels]
    return (separation * x + np.log(SOURCE)).astype(np.float32)


def tracker(fixed=None):
    return PriorTracker(temperature=1.0, log_source=np.log(SOURCE), fixed=fixed)


def test_on_a_steady_stream_it_comes_near_to_the_estimate_of_all_rows():
    rows = logits(OTHER, 6000)
    followed = tracker()
    followed.update(rows)
    whole = estimate_prior(rows, temperature=1.0, log_source=np.log(SOURCE))
    found = followed.estimate()
    assert found.prior == pytest.approx(whole.prior, abs=0.03)
    assert found.rows == 6000
    assert 500 < found.effective_rows <= 6000


def test_after_an_abrupt_change_it_forgets_within_hundreds_of_rows():
    followed = tracker()
    followed.update(logits(SOURCE, 10_000, seed=1))
    steady = followed.estimate().effective_rows
    followed.update(logits(OTHER, 700, seed=2))
    found = followed.estimate()
    assert found.prior == pytest.approx(OTHER, abs=0.12)
    assert found.effective_rows < steady


def test_it_returns_to_a_fixed_prior_sooner_than_without_knowing_it():
    distances = []
    for fixed in (SOURCE[None], np.empty((0, 3))):
        followed = tracker(fixed)
        followed.update(logits(OTHER, 8000, seed=3))
        followed.update(logits(SOURCE, 256, seed=4))
        distances.append(np.abs(followed.prior - SOURCE).sum())
    assert distances[0] < distances[1]


def test_its_intervals_hold_the_truth_of_steady_streams():
    held = []
    for seed in range(40):
        followed = tracker(np.empty((0, 3)))
        followed.update(logits(OTHER, 2000, seed=seed))
        low, high = followed.estimate().interval()
        held.append((low <= OTHER) & (high >= OTHER))
    assert 0.88 <= np.mean(held) <= 1.0


def test_without_a_row_any_prior_is_possible():
    low, high = tracker().estimate().interval()
    assert (low == 0).all()
    assert (high > 0.9).all()
    assert tracker().estimate().effective_rows == 0


def test_a_restored_tracker_goes_on_as_if_nothing_had_happened():
    whole, first, second = tracker(), tracker(), tracker()
    before, after = logits(OTHER, 640, seed=5), logits(SOURCE, 320, seed=6)
    whole.update(before)
    first.update(before)
    second.restore(first.state())
    for one in (whole, second):
        one.update(after)
    assert second.estimate().prior == pytest.approx(whole.estimate().prior, abs=1e-6)
    assert second.rows == whole.rows == 960


@pytest.mark.parametrize(
    "state",
    [b"", b"no state", PriorTracker.state(tracker())[:200], b"PK", None, "text", 3],
)
def test_what_is_no_state_is_refused(state):
    with pytest.raises(OtherState):
        tracker().restore(state)


def test_the_state_of_another_class_list_is_refused():
    other = PriorTracker(temperature=1.0, log_source=np.zeros(4))
    with pytest.raises(OtherState, match="priors"):
        tracker().restore(other.state())


def test_workers_that_share_a_stream_know_as_much_together_as_one_that_sees_it_all():
    rows = logits(OTHER, 4000, seed=7)
    alone, halves = tracker(), [tracker(), tracker()]
    alone.update(rows)
    for one, half in zip(halves, (rows[::2], rows[1::2]), strict=True):
        one.update(half)
    together = Tracked.combined([one.estimate() for one in halves])
    single = alone.estimate()
    assert together.prior == pytest.approx(single.prior, abs=0.05)
    assert together.rows == single.rows == 4000
    assert together.variance.sum() < halves[0].estimate().variance.sum()
    with pytest.raises(ValueError, match="nothing"):
        Tracked.combined([])


def test_many_classes_are_followed_with_variances_of_their_own():
    classes = 2000
    followed = PriorTracker(temperature=1.0, log_source=np.full(classes, -np.log(classes)))
    rng = np.random.default_rng(8)
    labels = rng.integers(classes // 2, size=4096)
    followed.update(30.0 * np.eye(classes, dtype=np.float32)[labels])
    found = followed.estimate()
    assert found.prior[: classes // 2].sum() > 0.9
    assert found.variance.shape == (classes,)
    assert found.prior.sum() == pytest.approx(1)


def test_rows_that_no_class_explains_leave_finite_numbers():
    followed = tracker()
    followed.update(np.full((64, 3), -1e30, np.float32))
    followed.update(np.array([[1e30, 0.0, 0.0]] * 64, np.float32))
    found = followed.estimate()
    assert np.isfinite(found.prior).all()
    assert np.isfinite(found.variance).all()


def test_a_combination_needs_a_part_and_one_part_is_itself():
    with pytest.raises(ValueError, match="nothing to combine"):
        Tracked.combined([])
    followed = tracker()
    followed.update(logits(SOURCE, 100))
    assert followed.num_classes == 3
    alone = followed.estimate()
    assert Tracked.combined([alone]) is alone


def test_a_state_with_other_half_lives_is_refused():
    followed = tracker()
    with np.load(io.BytesIO(followed.state())) as found:
        state = {name: found[name] for name in found.files}
    file = io.BytesIO()
    np.savez(file, **{**state, "half_lives": state["half_lives"] * 2})
    with pytest.raises(OtherState, match="other half-lives"):
        followed.restore(file.getvalue())


@pytest.mark.parametrize("classes", [20, 400])
def test_best_classes_and_an_equal_rest_teach_as_much_as_all_ratios(classes):
    rng = np.random.default_rng(9)
    top = np.stack([rng.permutation(classes)[:8] for _ in range(60)])
    ratios = rng.random((60, 8)).astype(np.float32)
    rows = Ranked(top, ratios, np.full(60, 0.01, np.float32))
    source = np.log(rng.dirichlet(np.ones(classes)))
    by_best, by_all = (PriorTracker(temperature=1.0, log_source=source) for _ in range(2))
    by_best.update_ranked(rows)
    by_all.update(np.log(rows.dense(classes)) + source)
    one, other = by_best.estimate(), by_all.estimate()
    np.testing.assert_allclose(one.prior, other.prior, rtol=1e-3)
    np.testing.assert_allclose(one.variance, other.variance, rtol=1e-3)
    assert (one.rows, one.effective_rows) == (other.rows, other.effective_rows)


@pytest.mark.parametrize("written", [3, 100_000])
def test_a_state_is_what_numpy_would_save_however_it_is_cut(written, monkeypatch):
    monkeypatch.setattr(tracking, "_WRITTEN_AT_ONCE", written)
    followed = tracker()
    followed.update(np.random.default_rng(0).normal(size=(200, 3)))
    with np.load(io.BytesIO(followed.state())) as found:
        arrays = {name: found[name] for name in found.files}
    assert arrays["priors"].shape == (len(tracking.HALF_LIVES) + 1, 3)
    other = tracker()
    other.restore(followed.state())
    assert np.array_equal(other.prior, followed.prior)
    saved = io.BytesIO()
    np.savez(saved, **arrays)
    other.restore(saved.getvalue())  # as an older release stores it
    assert np.array_equal(other.prior, followed.prior)


def test_a_stored_state_that_would_become_large_is_refused_before_it_does():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("priors", "weights", "seen", "information", "half_lives", "rows"):
            with archive.open(f"{name}.npy", "w") as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
                np.lib.format.write_array_header_1_0(member, header)
                member.write(bytes(2**26))

    followed, state = tracker(), file.getvalue()
    tracemalloc.start()
    try:
        with pytest.raises(OtherState):
            followed.restore(state)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "value"),
    [("priors", 0.0), ("weights", 0.0), ("weights", -1.0), ("seen", np.nan), ("information", -1.0)],
)
def test_a_state_of_impossible_numbers_is_refused(name, value):
    followed = tracker()
    followed.update(logits(OTHER, 100))
    with np.load(io.BytesIO(followed.state())) as found:
        arrays = {key: found[key] for key in found.files}
    arrays[name] = np.full_like(arrays[name], value)
    saved = io.BytesIO()
    np.savez(saved, **arrays)
    before = followed.prior
    with pytest.raises(OtherState):
        followed.restore(saved.getvalue())
    assert np.array_equal(followed.prior, before)


@pytest.mark.parametrize("change", [lambda array: array[:-1], lambda array: array + b"\0"])
def test_a_state_whose_array_is_shorter_or_longer_than_it_says_is_refused(change):
    followed, changed = tracker(), io.BytesIO()
    followed.update(logits(OTHER, 100))
    with (
        zipfile.ZipFile(io.BytesIO(followed.state())) as stored,
        zipfile.ZipFile(changed, "w") as archive,
    ):
        for name in stored.namelist():
            array = stored.read(name)
            archive.writestr(name, change(array) if name == "priors.npy" else array)
    with pytest.raises(OtherState, match="another 'priors'"):
        followed.restore(changed.getvalue())
