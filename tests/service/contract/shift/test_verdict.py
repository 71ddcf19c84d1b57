"""The verdict: a mix of the known classes is usable; every other stream gets its own reason."""

from dataclasses import replace

import numpy as np
import pytest

from service.contract.shift.estimation import Estimation, SelfTest
from service.contract.shift.label_shift import PriorEstimate, estimate_prior, likelihood_ratios
from service.contract.shift.misfit import chi_square_tail, misfit_of
from service.contract.shift.sketch import Moments, class_means_of, features_of, numbers_of
from service.contract.shift.tracking import PriorTracker
from service.contract.shift.verdict import (
    assess,
    block_for,
    gain_of,
    may_adopt,
    nearest_self_test,
    surest_rows,
    target_mixes,
    with_self_test,
)

SOURCE = np.array([0.7, 0.2, 0.1])
UNIFORM = np.full(3, 1 / 3)
CENTRES = 2.0 * np.eye(3)
EDGES = [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def rows(n, prior, *, seed=0, junk=0.0):
    """Exact logits under SOURCE of rows that follow `prior`; a share of them from elsewhere."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=prior)
    x = rng.normal(size=(n, 3)) + CENTRES[labels]
    strange = rng.random(n) < junk
    x[strange] = rng.normal(size=(strange.sum(), 3)) - 3.0
    return 2.0 * x + np.log(SOURCE), labels


def block(*, n=6000, fewest=None, self_test=0.05, **changes):
    logits, labels = rows(n, UNIFORM, seed=7)
    energy = np.log(np.exp(logits).sum(axis=1))
    cells = labels * 10 + np.searchsorted(EDGES, energy, side="right")
    counts = np.bincount(labels, minlength=3).tolist()
    if fewest is not None:
        counts[2] = fewest
    confusion = np.bincount(logits.argmax(1) * 3 + labels, minlength=9).reshape(3, 3)
    fields = {
        "calibration": "none",
        "temperature": 1.0,
        "bias": [0.0] * 3,
        "source_prior": SOURCE.tolist(),
        "validation": {"rows": n, "class_counts": counts},
        "sketch": {
            "statistic": "energy",
            "edges": EDGES,
            "counts": np.bincount(cells, minlength=30).reshape(3, 10).tolist(),
        },
        "self_test": {
            "rows": 2000,
            "training": self_test,
            "uniform": self_test,
            "reversed": self_test,
            "misfit_99": 0.005,
        },
        "confusion": confusion.tolist(),
    } | changes
    return Estimation.model_validate(fields)


def judged(logits, *, calibration="block", current=UNIFORM, capacity=4096, frequencies=SOURCE):
    return assess(
        logits,
        temperature=1.0,
        log_source=np.log(SOURCE),
        current=current,
        calibration=block() if calibration == "block" else calibration,
        class_frequencies=frequencies,
        capacity=capacity,
    )


@pytest.mark.parametrize("prior", [SOURCE, UNIFORM, [0.05, 0.15, 0.8], [0.5, 0.5, 0.0]])
def test_any_mix_of_the_known_classes_is_usable(prior):
    found = judged(rows(2000, prior)[0])
    assert found.verdict == "usable"
    assert found.estimate.prior == pytest.approx(prior, abs=0.05)
    assert found.bbse_distance < 0.1
    assert found.evidence()["rows_per_class"] == pytest.approx(2000 / 3)


def test_true_label_shift_is_hardly_ever_called_unexplained():
    rng = np.random.default_rng(0)
    verdicts = [
        judged(rows(800, rng.dirichlet(np.ones(3)), seed=seed)[0]).verdict for seed in range(60)
    ]
    assert verdicts.count("not_explained") <= 1
    assert verdicts.count("usable") >= 56


def test_rows_from_elsewhere_are_not_explained():
    found = judged(rows(2000, UNIFORM, junk=0.2)[0])
    assert found.verdict == "not_explained"
    assert found.misfit.p < 0.001
    assert "new classes" in found.reason
    assert "not_explained" in may_adopt(found)


def test_a_model_that_cannot_see_as_much_says_so_less_often():
    strange = rows(2000, UNIFORM, junk=0.04)[0]
    sharp = judged(strange)
    dull = block().model_copy(
        update={"self_test": block().self_test.model_copy(update={"misfit_99": 0.5})}
    )
    assert sharp.verdict == "not_explained"
    assert judged(strange, calibration=dull).verdict == "suspect"


def test_a_stream_drawn_from_few_rows_is_not_taken_for_one_that_no_mix_explains():
    """A client that sends the same inputs again and again sends fewer observations than rows."""
    blind, knowing = block(), counted_block()
    forgiven, blamed = 0, 0
    for seed in range(30):
        few = np.concatenate([rows(30, np.eye(3)[y], seed=3 * seed + y)[0] for y in range(3)])
        stream = few[np.random.default_rng(seed).integers(90, size=2000)]
        plain, corrected = (judged(stream, calibration=each) for each in (blind, knowing))
        blamed += plain.misfit.p < 0.01
        forgiven += corrected.misfit.p >= 0.01
        assert corrected.misfit.phi2 <= plain.misfit.phi2
        assert corrected.estimate.effective_n < 90 < plain.estimate.effective_n
    assert blamed >= 20
    assert forgiven >= 27


def counted_block(*, repeated=0):
    """The block of a split in which so many rows have the logits of an earlier one."""
    counts = {"rows": 6000, "class_counts": block().validation.class_counts, "repeated": repeated}
    return block(validation=counts)


def test_inputs_with_few_values_are_not_taken_for_inputs_that_come_again():
    """Rows of a table are often equal, and still as many observations."""
    few = rows(90, UNIFORM)[0]
    stream = few[np.random.default_rng(0).integers(90, size=2000)]
    every = judged(stream, calibration=counted_block(repeated=5000))
    assert every.estimate.effective_n > 500
    assert judged(stream, calibration=counted_block()).estimate.effective_n < 90


def moments_block():
    """The block with means of three numbers for each class instead of histograms."""
    logits, labels = rows(6000, UNIFORM, seed=7)
    numbers = numbers_of(logits)
    centre, scale = numbers.mean(axis=0), numbers.std(axis=0)
    means = class_means_of(features_of(numbers, centre=centre, scale=scale), labels, 3)
    sketch = {"statistic": "logits", "centre": centre.tolist(), "scale": scale.tolist()}
    return block(sketch=sketch | {"means": means.tolist()})


def thin_block(few, *, histograms=False, seed=7, apart=0.0):
    """The block of a split with so few rows of the last class, and 2,000 of each other class."""
    logits, labels = rows(6000, UNIFORM, seed=seed)
    logits += apart * (labels == 2)[:, None]
    kept = np.concatenate(
        [np.flatnonzero(labels == y)[: few if y == 2 else None] for y in range(3)]
    )
    logits, labels = logits[kept], labels[kept]
    seen = {"rows": len(kept), "class_counts": np.bincount(labels, minlength=3).tolist()}
    if histograms:
        energy = np.log(np.exp(logits).sum(axis=1))
        cells = labels * 10 + np.searchsorted(EDGES, energy, side="right")
        counts = np.bincount(cells, minlength=30).reshape(3, 10)
        sketch = {"statistic": "energy", "edges": EDGES, "counts": counts.tolist()}
    else:
        numbers = numbers_of(logits)
        centre, scale = numbers.mean(axis=0), numbers.std(axis=0)
        means = class_means_of(features_of(numbers, centre=centre, scale=scale), labels, 3)
        sketch = {"statistic": "logits", "centre": centre.tolist(), "scale": scale.tolist()}
        sketch["means"] = means.tolist()
    return block(sketch=sketch, validation=seen)


@pytest.mark.parametrize("few", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("histograms", [False, True])
def test_a_class_with_few_rows_in_the_split_is_no_reason_to_refuse_it(few, histograms):
    """Streams of true label shift, in which the class that the split hardly knows has 80 %."""
    found = [
        judged(
            rows(2000, [0.1, 0.1, 0.8], seed=200 + seed)[0],
            calibration=thin_block(few, histograms=histograms, seed=seed),
        ).misfit
        for seed in range(20)
    ]
    assert sum(each.p < 0.001 for each in found) == 0
    assert sum(each.p < 0.05 for each in found) <= 3
    # a sketch of so few rows shows little, and says so
    assert np.median([each.rows for each in found]) < 3 * max(few, 1)


@pytest.mark.parametrize("few", [5, 20])
def test_a_class_that_looks_like_no_other_is_not_refused_for_its_few_rows(few):
    """Means drawn towards those of all classes would put every such row in the wrong place."""
    found = []
    for seed in range(20):
        logits, labels = rows(2000, [0.1, 0.1, 0.8], seed=200 + seed)
        logits += 6.0 * (labels == 2)[:, None]
        found.append(judged(logits, calibration=thin_block(few, seed=seed, apart=6.0)).misfit.p)
    assert min(found) > 0.001


def test_a_stream_that_the_split_knows_well_is_tested_with_nearly_all_its_rows():
    known = judged(rows(2000, UNIFORM)[0], calibration=moments_block())
    assert 1000 < known.misfit.rows <= 2000
    assert known.evidence()["tested_rows"] == known.misfit.rows
    assert known.reason == "the rows look like a mix of the known classes"
    blind = judged(rows(2000, [0.1, 0.1, 0.8])[0], calibration=thin_block(20))
    assert (blind.verdict, blind.misfit.rows < 60) == ("usable", True)
    assert f"only as much as {blind.misfit.rows:.0f} of the 2000 rows could show" in blind.reason


def test_the_moments_of_the_logits_see_what_the_histograms_of_their_energy_do_not():
    seen = {"histograms": 0, "moments": 0}
    for seed in range(10):
        logits = rows(2000, UNIFORM, seed=100 + seed)[0]
        blurred = logits[:300]  # flatter, at nearly the same energy
        flat = 0.6 * blurred
        flat += (np.log(np.exp(blurred).sum(1)) - np.log(np.exp(flat).sum(1)))[:, None]
        changed = np.concatenate([flat, logits[300:]])
        for name, each in (("histograms", block()), ("moments", moments_block())):
            seen[name] += judged(changed, calibration=each).misfit.p < 0.001
            assert judged(logits, calibration=each).misfit.p > 0.001
    assert seen["moments"] >= seen["histograms"] + 5


def directed_block(*, repeated=0):
    """The block with means of three numbers and of three directions of the logits."""
    logits, labels = rows(6000, UNIFORM, seed=7)
    numbers = numbers_of(logits, directions=np.eye(3))
    centre, scale = numbers.mean(axis=0), numbers.std(axis=0)
    means = class_means_of(features_of(numbers, centre=centre, scale=scale), labels, 3)
    sketch = {"directions": np.eye(3).tolist(), "centre": centre.tolist(), "scale": scale.tolist()}
    seen = {"rows": 6000, "class_counts": np.bincount(labels).tolist(), "repeated": repeated}
    return block(sketch=sketch | {"statistic": "logits", "means": means.tolist()}, validation=seen)


def with_one_rival(logits, share):
    """A share of rows [n, 3] in which the second largest logit is that of the next class.

    Energy, spread and rest stay as they were.
    """
    order, at = np.argsort(logits, axis=1), np.arange(len(logits))
    moved = np.empty_like(logits)
    for place, rank in enumerate((2, 1, 0)):
        moved[at, (order[:, 2] + place) % 3] = logits[at, order[:, rank]]
    cut = int(share * len(logits))
    return np.concatenate([moved[:cut], logits[cut:]])


def test_directions_see_logits_that_change_places_where_three_numbers_do_not():
    for seed in range(5):
        changed = with_one_rival(rows(2000, UNIFORM, seed=100 + seed)[0], 0.6)
        assert judged(changed, calibration=moments_block()).verdict == "usable"
        assert judged(changed, calibration=directed_block()).verdict == "not_explained"


def test_directions_are_left_out_where_there_are_few_rows_for_so_many_numbers():
    few = with_one_rival(rows(200, UNIFORM, seed=100)[0], 1.0)
    three = judged(few, calibration=moments_block()).misfit
    assert judged(few, calibration=directed_block()).misfit == three


def test_directions_are_left_out_where_rows_that_come_again_cannot_be_told_from_others():
    changed = with_one_rival(rows(2000, UNIFORM, seed=100)[0], 0.6)
    assert judged(changed, calibration=directed_block()).verdict == "not_explained"
    assert judged(changed, calibration=directed_block(repeated=600)).verdict == "usable"


def test_a_second_test_of_the_same_rows_makes_false_alarms_no_likelier():
    found = [
        judged(rows(1500, UNIFORM, seed=seed)[0], calibration=directed_block()).misfit.p
        for seed in range(60)
    ]
    assert np.mean(np.array(found) < 0.05) <= 0.1


def test_the_misfit_of_true_mixes_is_as_rare_as_its_probability_says():
    found = [
        judged(rows(1500, UNIFORM, seed=seed)[0], calibration=calibration).misfit.p
        for calibration in (moments_block(), block())
        for seed in range(120)
    ]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.10
    assert 0.35 <= np.mean(np.array(found) < 0.5) <= 0.65


def test_a_sketch_that_sees_no_difference_between_rows_finds_no_misfit():
    counts = [[1000] + [0] * 9] * 3
    same = block(
        sketch={"statistic": "energy", "edges": [100.0 + i for i in range(9)], "counts": counts}
    )
    assert judged(rows(300, UNIFORM)[0], calibration=same).misfit.p == 1


def test_a_block_is_used_unless_it_lacks_a_class_or_the_prior_has_frequencies_of_its_own():
    whole, lacking = block(), block(fewest=0)
    assert block_for(whole, own_frequencies=False) == (whole, "")
    for held, own, reason in (
        (None, False, "the model has no `estimation` block"),
        (lacking, False, "has no row of some classes"),
        (whole, True, "the prior has label_frequencies of its own"),
    ):
        used, why = block_for(held, own_frequencies=own)
        assert used is None
        assert reason in why


def test_too_few_rows_are_named_with_how_many_are_needed():
    found = judged(rows(49, UNIFORM)[0])
    assert found.verdict == "too_little_traffic"
    assert "there are 49 rows, but 3 classes need 50" in found.reason


def test_a_reservoir_that_cannot_hold_enough_rows_has_too_many_classes():
    found = judged(rows(40, UNIFORM)[0], capacity=40)
    assert found.verdict == "too_many_classes"
    assert "at most 40 are kept" in found.reason


def test_a_model_without_a_block_is_uncalibrated():
    found = judged(rows(500, UNIFORM)[0], calibration=None)
    assert found.verdict == "uncalibrated"
    assert "training calibrate" in found.reason
    assert found.misfit is found.self_test is found.bbse_distance is None
    assert found.evidence()["p"] is found.evidence()["tested_rows"] is None


def test_a_split_with_few_rows_of_a_class_is_uncalibrated():
    found = judged(rows(500, UNIFORM)[0], calibration=block(fewest=19))
    assert found.verdict == "uncalibrated"
    assert "has 19 validation rows, but 20 are needed" in found.reason


def test_a_self_test_that_fails_makes_an_estimate_ill_conditioned_unless_the_step_is_larger():
    bad = block(self_test=0.3)
    assert judged(rows(2000, UNIFORM)[0], calibration=bad).verdict == "ill_conditioned"
    far = judged(rows(2000, [0.02, 0.03, 0.95])[0], calibration=bad)
    assert far.step > 0.6
    assert far.verdict == "usable"


def test_an_estimate_that_does_not_settle_keeps_the_target_in_force(monkeypatch):
    monkeypatch.setattr("service.contract.shift.label_shift.MAX_ITERATIONS", 3)
    found = judged(rows(500, [0.1, 0.1, 0.8])[0])
    assert found.verdict == "ill_conditioned"
    assert found.candidate.tolist() == UNIFORM.tolist()
    assert found.step == found.gain.mean == 0


def test_without_sketch_self_test_and_confusion_nothing_is_tested():
    bare = block().model_copy(update={"sketch": None, "self_test": None, "confusion": None})
    found = judged(rows(500, UNIFORM, junk=0.3)[0], calibration=bare)
    assert found.verdict == "usable"
    assert found.misfit is found.self_test is found.bbse_distance is None
    singular = block(confusion=[[1] * 3] * 3)
    assert judged(rows(500, UNIFORM)[0], calibration=singular).bbse_distance is None


def test_a_misfit_that_no_self_test_has_measured_is_judged_by_its_size_alone():
    untested = block().model_copy(update={"self_test": None})
    found = judged(rows(2000, UNIFORM, junk=0.2)[0], calibration=untested)
    assert found.verdict == "not_explained"


def test_the_candidate_lies_between_the_estimate_and_the_target_in_force():
    found = judged(rows(100, [0.1, 0.1, 0.8])[0])
    apart = np.abs(found.estimate.prior - UNIFORM).sum()
    assert 0 < found.step < apart


def test_a_real_shift_may_be_adopted_and_no_shift_may_not():
    shifted = judged(rows(2000, [0.05, 0.15, 0.8])[0], current=SOURCE)
    assert may_adopt(shifted) is None
    assert shifted.gain.low > 0.003
    same = judged(rows(2000, SOURCE)[0], current=SOURCE)
    assert "within the error of estimates" in may_adopt(same)
    untested = block().model_copy(update={"self_test": None})
    unsure = judged(rows(2000, SOURCE)[0], current=SOURCE, calibration=untested)
    assert "points of error" in may_adopt(unsure)


def test_the_gain_is_what_labels_would_show():
    prior = np.array([0.05, 0.15, 0.8])
    logits, labels = rows(4000, prior)
    found = judged(logits, current=SOURCE)
    ratios = np.exp(logits - np.log(SOURCE))
    before = ((ratios * SOURCE).argmax(1) == labels).mean()
    after = ((ratios * found.candidate).argmax(1) == labels).mean()
    assert found.gain.mean == pytest.approx(after - before, abs=0.01)
    assert found.gain.low <= found.gain.mean


def test_many_rows_of_few_inputs_are_too_little_traffic():
    few = rows(30, UNIFORM)[0]
    found = judged(np.tile(few, (100, 1)), calibration=counted_block())
    assert (found.verdict, found.estimate.n) == ("too_little_traffic", 3000)
    assert "the 3000 rows are of 30 different inputs, but 3 classes need" in found.reason
    enough = rows(1500, UNIFORM)[0]
    assert judged(np.tile(enough, (2, 1)), calibration=counted_block()).verdict == "usable"


def test_variances_alone_also_give_a_gain_and_no_misfit():
    prior = np.array([0.1, 0.2, 0.7])
    alone = PriorEstimate(prior, prior, prior, 100, 50.0, np.full(3, 1e-3))
    ratios = np.exp(rows(200, prior)[0] - np.log(SOURCE))
    assert gain_of(ratios, alone, candidate=prior, current=SOURCE).mean > 0
    assert misfit_of(rows(200, prior)[0], alone, block(), temperature=1.0, ratios=ratios) is None


def test_an_estimate_made_elsewhere_is_tested_with_its_whole_covariance():
    logits = rows(2000, UNIFORM)[0]
    ratios = likelihood_ratios(logits, temperature=1.0, log_source=np.log(SOURCE))
    own = estimate_prior(logits, temperature=1.0, log_source=np.log(SOURCE))
    elsewhere = PriorEstimate(own.prior, own.low, own.high, own.n, own.effective_n, own.covariance)
    first, second = (
        misfit_of(logits, each, block(), temperature=1.0, ratios=ratios)
        for each in (own, elsewhere)
    )
    assert second.p > first.p


def test_a_calibration_without_an_error_of_its_own_adds_no_doubt():
    logits = rows(2000, UNIFORM)[0]
    ratios = likelihood_ratios(logits, temperature=1.0, log_source=np.log(SOURCE))
    own = estimate_prior(logits, temperature=1.0, log_source=np.log(SOURCE))
    exact, none, some = (
        misfit_of(
            logits,
            replace(own, calibration_covariance=doubt),
            block(),
            temperature=1.0,
            ratios=ratios,
        )
        for doubt in (0.0, np.zeros((3, 3)), np.eye(3))
    )
    assert exact == none
    assert some.p > exact.p


def test_the_tail_of_chi_square_is_that_of_the_tables():
    assert chi_square_tail(16.919, 9) == pytest.approx(0.05, abs=1e-4)
    assert chi_square_tail(3.841, 1) == pytest.approx(0.05, abs=1e-4)
    assert chi_square_tail(5.991, 2) == pytest.approx(0.05, abs=1e-4)
    assert chi_square_tail(12.592, 6) == pytest.approx(0.05, abs=1e-4)
    assert chi_square_tail(0.0, 9) == chi_square_tail(0.0, 6) == 1
    assert chi_square_tail(800.0, 9) < 1e-100


def test_mixes_of_the_self_test_reverse_ranks_and_the_nearest_is_taken():
    mixes = target_mixes([70, 20, 10])
    assert mixes["reversed"] == pytest.approx([0.1, 0.2, 0.7])
    tested = block().model_copy(
        update={
            "self_test": block().self_test.model_copy(
                update={"training": 0.1, "uniform": 0.2, "reversed": 0.3}
            )
        }
    )
    for prior, error in ((SOURCE, 0.1), (UNIFORM, 0.2), (SOURCE[::-1], 0.3)):
        assert nearest_self_test(prior, tested, [70, 20, 10]) == error
        assert nearest_self_test(prior, tested, None) == error


def test_a_tracker_stands_in_where_too_few_rows_of_many_classes_are_kept():
    classes = 300
    rng = np.random.default_rng(4)
    labels = rng.integers(classes // 3, size=8000)
    logits = 12.0 * np.eye(classes, dtype=np.float32)[labels]
    calibration = {"temperature": 1.0, "log_source": np.full(classes, -np.log(classes))}
    tracker = PriorTracker(**calibration)
    tracker.update(logits)
    current = np.full(classes, 1 / classes)
    common = {"current": current, "calibration": None, "class_frequencies": None, "capacity": 500}
    alone = assess(logits[:500], **calibration, **common)
    assert alone.verdict == "too_many_classes"
    known = tracker.estimate()
    found = assess(logits[:500], **calibration, **common, tracked=known)
    assert found.verdict == "uncalibrated"  # the next thing that is missing
    assert found.estimate.n == int(known.effective_rows) > 3000
    assert found.estimate.prior == pytest.approx(known.prior)
    toward = found.candidate - current
    assert (toward * (known.prior - current) >= 0).all()


def test_the_self_test_at_its_mixes_says_how_sure_an_estimate_can_be():
    tested = {"rows": 500, "training": 0.1, "uniform": 0.2, "reversed": 0.3, "misfit_99": 0.01}
    surest = {"training": 700.0, "uniform": None, "reversed": 90.0, "dominant": 50.0}

    def known_of(test):
        return Estimation.model_validate(block().model_dump() | {"self_test": test})

    known = known_of({**tested, "surest_rows": surest})
    assert surest_rows(SOURCE, known, SOURCE) == 700.0
    assert surest_rows(UNIFORM, known, SOURCE) is None
    assert surest_rows(SOURCE[::-1], known, SOURCE) == 90.0
    assert surest_rows(np.array([0.05, 0.9, 0.05]), known, SOURCE) == 50.0
    assert surest_rows(UNIFORM, known_of(tested), None) is None
    assert surest_rows(UNIFORM, known_of(None), None) is None
    # between mixes, as wrong as all suggest: the inverse squares of the distances weigh
    between = 0.75 * SOURCE + 0.25 * UNIFORM
    assert 90 < surest_rows(between, known, SOURCE) < 700
    nearer = 0.9 * SOURCE + 0.1 * UNIFORM
    assert surest_rows(between, known, SOURCE) < surest_rows(nearer, known, SOURCE) < 700


def test_a_class_that_estimates_get_wrong_has_a_wider_interval_than_the_others():
    tested = {"rows": 500, "training": 0.1, "uniform": 0.2, "reversed": 0.3, "misfit_99": 0.01}
    own = {
        "training": [0.0, 0.02, 0.0],
        "uniform": [0.0, 0.04, 0.0],
        "reversed": [0.0, 0.02, 0.0],
        "others": [0.0, 0.0, 0.5],
        "dominant": 0.1,
    }
    found = estimate_prior(rows(2000, UNIFORM)[0], temperature=1.0, log_source=np.log(SOURCE))

    def added(**more):
        test = SelfTest.model_validate(tested | more)
        return (
            with_self_test(found, test, SOURCE).covariance.diagonal() - found.covariance.diagonal()
        )

    q = found.prior * (1 - found.prior)
    shared = added(surest_rows={"uniform": 200.0})
    both = added(surest_rows={"uniform": 200.0}, class_excess=own)
    alone = added(surest_rows={}, class_excess=own)
    assert shared == pytest.approx(q / 200, rel=0.1)
    assert alone == pytest.approx([0.0, q[1] * 0.02, 0.0], abs=2e-4)
    assert both == pytest.approx(shared / 2 + alone)
    assert added(class_excess=own) == pytest.approx(0)
    nothing = added(surest_rows={}, class_excess={})
    assert nothing == pytest.approx(0)


def test_between_the_mixes_with_a_dominant_class_only_the_dominant_one_counts_as_such():
    tested = {"rows": 500, "training": 0.1, "uniform": 0.2, "reversed": 0.3, "misfit_99": 0.01}
    prior = np.array([0.05, 0.9, 0.05])
    found = PriorEstimate(prior, prior, prior, 100, 50.0, np.full(3, 1e-3))
    excess = {"others": [0.2, 0.3, 0.4], "dominant": 0.1}
    test = SelfTest.model_validate(tested | {"surest_rows": {}, "class_excess": excess})
    wider = with_self_test(found, test, SOURCE)
    q = prior * (1 - prior)
    assert wider.covariance - 1e-3 == pytest.approx(q * np.array([0.2, 0.1, 0.4]) / 2)


def test_the_class_means_of_a_sketch_without_validation_rows_are_those_that_it_holds():
    means = [[0.5, 1.0] * 3, [0.25, 2.0] * 3]
    sketch = Moments(means=means, centre=[0.0] * 3, scale=[1.0] * 3)
    assert sketch.class_means([0, 0]).tolist() == means
    assert sketch.class_means([4, 4]).tolist() == [[0.625, 0.5] * 3, [0.125, 2.5] * 3]
