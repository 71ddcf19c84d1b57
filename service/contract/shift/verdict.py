"""Whether an estimate of a class prior can be trusted, and whether adopting it is likely to help.

Every estimate carries one verdict with the numbers behind it and what to do. `may_adopt` is the
rule that decides without labels whether the estimate should become the target.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from service.contract.adjustment import Vector
from service.contract.shift.estimation import ClassExcess, Estimation, SelfTest, SurestRows
from service.contract.shift.label_shift import (
    MAX_CLASSES_WITH_COVARIANCE,
    NotConverged,
    PriorEstimate,
    bbse_prior,
    climb,
    estimate_prior,
    inputs_of,
    less_sure,
    likelihood_ratios,
    no_surer,
)
from service.contract.shift.misfit import Misfit, misfit_of
from service.contract.shift.tracking import Tracked, estimate_of

Verdict = Literal[
    "usable",
    "too_little_traffic",
    "too_many_classes",
    "uncalibrated",
    "ill_conditioned",
    "suspect",
    "not_explained",
]

ROWS_PER_CLASS = 10
"""Fewest unlabelled rows per class, on average: with fewer, an estimate is mostly noise."""
FEWEST_ROWS = 50
VALIDATION_ROWS_PER_CLASS = 20
"""Fewest split rows of the rarest class: with fewer, the intervals cover less than they claim."""
SHRINKAGE = 5.0
"""Pseudo-rows per class that pull the candidate toward the target in force."""
REFUSED_BELOW, SUSPECT_BELOW = 0.001, 0.01
SMALLEST_MISFIT = 0.008
LARGEST_SELF_TEST = 0.1
SEES_LITTLE = 200.0
"""A test worth fewer rows than this misses most streams of which a tenth is of no class."""
SAME_MIX = 1e-9
"""L1 distance within which a mix is one of the self-test's."""
SMALLEST_GAIN = 0.003
GAIN_DRAWS = 60
NO_BLOCK = (
    "the model has no `estimation` block, so nothing says how wrong this estimate is; "
    "add one with `training calibrate models/NAME/VERSION --data …`"
)
_CLASSES_MISSING = (
    "the split that the model's `estimation` block was measured on has no row of some classes, so "
    "the block is not used; calibrate again on labelled rows of every class"
)
_OWN_FREQUENCIES = (
    "the prior has label_frequencies of its own, which replace the source prior of the model's "
    "`estimation` block, so nothing says how wrong this estimate is; set them to null to use the "
    "block"
)


@dataclass(frozen=True)
class Gain:
    """Share of the rows that would be answered right instead of wrong: mean, and 5 % quantile."""

    mean: float
    low: float


@dataclass(frozen=True)
class Assessment:
    """An estimate with its verdict."""

    estimate: PriorEstimate
    candidate: Vector
    """[C] the estimate pulled toward the target in force: what adopting it would write."""
    verdict: Verdict
    reason: str
    """What the verdict rests on, and what to do."""
    step: float
    """L1 distance of the candidate from the target in force."""
    misfit: Misfit | None
    self_test: float | None
    """Mean L1 error of estimates on validation, for the tested mix nearest to this estimate."""
    bbse_distance: float | None
    """L1 distance from the estimate by the confusion matrix (BBSE), as a cross-check."""
    gain: Gain
    calibrated: bool = False
    """Whether an estimation block was used."""

    def evidence(self) -> dict[str, Any]:
        """The numbers behind the verdict, ready for JSON."""
        return {
            "p": None if self.misfit is None else self.misfit.p,
            "phi2": None if self.misfit is None else self.misfit.phi2,
            "tested_rows": None if self.misfit is None else self.misfit.rows,
            "self_test": self.self_test,
            "em_bbse_l1": self.bbse_distance,
            "rows_per_class": self.estimate.n / len(self.candidate),
            "step_l1": self.step,
            "gain": {"mean": self.gain.mean, "low": self.gain.low},
        }


def assess(
    logits: ArrayLike,
    *,
    temperature: float,
    log_source: ArrayLike,
    current: ArrayLike,
    calibration: Estimation | None,
    class_frequencies: ArrayLike | None,
    capacity: int | None = None,
    shrinkage: float = SHRINKAGE,
    tracked: Tracked | None = None,
    uncalibrated: str = NO_BLOCK,
) -> Assessment:
    """Estimate the prior of rows of logits [n, C], n > 0, and judge the estimate.

    temperature, log_source: what the rows are adjusted with. They are those of `calibration` where
    the model has one; its replicates, sketch and self-test are used only then.
    current: [C] the target in force, toward which the candidate is pulled.
    class_frequencies: [C] of training, None when unknown. capacity: the most rows that are kept.
    shrinkage: pseudo-rows per class that pull the candidate toward `current`. tracked: a tracker's
    estimate of the stream, used where there are too few rows here and the tracker has seen more.
    uncalibrated: the reason to give where `calibration` is None.
    """
    f = np.asarray(logits, np.float64)
    source, target = np.asarray(log_source, np.float64), np.asarray(current, np.float64)
    ratios = likelihood_ratios(f, temperature=temperature, log_source=source)
    replicates = None if calibration is None else calibration.replicates
    inputs = None
    if calibration is not None and len(target) <= MAX_CLASSES_WITH_COVARIANCE:
        inputs = inputs_of(f) if calibration.validation.tells_rows_apart else None
    settled, made_up = True, shrinkage * len(target)
    few, different = len(f) < rows_wanted(len(target)), None
    if tracked is not None and few and tracked.effective_rows > len(f):
        estimate = estimate_of(tracked)
        candidate = (estimate.n * estimate.prior + made_up * target) / (estimate.n + made_up)
    else:
        try:
            estimate = estimate_prior(
                f,
                temperature=temperature,
                log_source=source,
                replicates=replicates,
                inputs=inputs,
            )
            different = None if inputs is None else int(inputs.max()) + 1
            candidate = climb(
                ratios, start=estimate.prior + target, toward=target, strength=made_up
            )
        except NotConverged:
            settled = False
            estimate, candidate = _nothing_known(len(f), target), target
    if calibration is not None and settled:
        known = calibration.source_prior if class_frequencies is None else class_frequencies
        estimate = with_self_test(estimate, calibration.self_test, known)
    misfit = bbse = self_test = None
    if calibration is not None and settled:
        misfit = misfit_of(
            f, estimate, calibration, temperature=temperature, ratios=ratios, inputs=inputs
        )
        bbse = _distance_to_bbse(f, estimate, calibration)
        self_test = nearest_self_test(estimate.prior, calibration, class_frequencies)
    step = float(np.abs(candidate - target).sum())
    verdict, reason = _judge(
        n=estimate.n,
        different=different,
        num_classes=len(target),
        capacity=None if tracked is not None else capacity,
        settled=settled,
        calibration=calibration,
        uncalibrated=uncalibrated,
        misfit=misfit,
        self_test=self_test,
        step=step,
    )
    return Assessment(
        estimate=estimate,
        candidate=candidate,
        verdict=verdict,
        reason=reason,
        step=step,
        misfit=misfit,
        self_test=self_test,
        bbse_distance=bbse,
        gain=gain_of(ratios, estimate, candidate=candidate, current=target),
        calibrated=calibration is not None,
    )


def block_for(block: Estimation | None, *, own_frequencies: bool) -> tuple[Estimation | None, str]:
    """Return (a model's block if estimates may use it, else None; the reason against it).

    own_frequencies: whether the prior's label frequencies replace the block's source prior.
    """
    if block is None:
        return None, NO_BLOCK
    if not block.calibrates_every_class:
        return None, _CLASSES_MISSING
    return (None, _OWN_FREQUENCIES) if own_frequencies else (block, "")


def rows_wanted(num_classes: int) -> int:
    """The fewest unlabelled rows that an estimate needs to be usable."""
    return max(FEWEST_ROWS, ROWS_PER_CLASS * num_classes)


def may_adopt(found: Assessment) -> str | None:
    """None when the candidate may be adopted; else the reason against it.

    The verdict must be usable, the step larger than twice the error of the self-test, and the
    5 % quantile of the gain more than SMALLEST_GAIN.
    """
    if found.verdict != "usable":
        return f"the verdict is {found.verdict}: {found.reason}"
    if found.self_test is not None and found.step <= 2 * found.self_test:
        return (
            f"the step (L1 {found.step:.3f}) is within the error of estimates on validation "
            f"(twice the self-test: {2 * found.self_test:.3f}); keep the target in force"
        )
    if found.gain.low <= SMALLEST_GAIN:
        return (
            f"the expected gain is at least {100 * found.gain.low:.2f} points of error with 95 % "
            f"probability; more than {100 * SMALLEST_GAIN:.1f} are needed"
        )
    return None


def nearest_self_test(
    prior: Vector, calibration: Estimation, class_frequencies: ArrayLike | None
) -> float | None:
    """The self-test's error at the mix, of its three, that is nearest to the prior [C] in L1."""
    test = calibration.self_test
    if test is None:
        return None
    known = calibration.source_prior if class_frequencies is None else class_frequencies
    mixes = target_mixes(known)
    errors = {"training": test.training, "uniform": test.uniform, "reversed": test.reversed}
    return errors[min(mixes, key=lambda name: float(np.abs(mixes[name] - prior).sum()))]


def with_self_test(
    estimate: PriorEstimate, test: SelfTest | None, class_frequencies: ArrayLike
) -> PriorEstimate:
    """The estimate, with its variance raised by how far estimates of the self-test missed near its
    mix.

    The variance is the mean of two: the one that all classes have together (`surest_rows`), and
    each class's own, which few streams of the self-test have measured. class_frequencies: [C] of
    training.
    """
    if test is None or test.surest_rows is None:
        return estimate
    prior = estimate.prior
    most = surest_near(prior, test.surest_rows, class_frequencies)
    if test.class_excess is None:
        return no_surer(estimate, most)
    shared = 0.0 if most is None else 1 / most
    own = _excess_near(prior, test.class_excess, class_frequencies)
    return less_sure(estimate, prior * (1 - prior) * (shared + own) / 2)


def surest_rows(
    prior: Vector, calibration: Estimation, class_frequencies: ArrayLike | None
) -> float | None:
    """The most labelled rows that an estimate near the prior [C] can be worth, by the self-test.

    None where no excess was found.
    """
    test = calibration.self_test
    if test is None or test.surest_rows is None:
        return None
    known = calibration.source_prior if class_frequencies is None else class_frequencies
    return surest_near(prior, test.surest_rows, known)


def surest_near(prior: Vector, surest: SurestRows, class_frequencies: ArrayLike) -> float | None:
    """The most labelled rows that an estimate near the prior [C] can be worth, or None.

    The excess errors (one over the rows) of the four mixes are averaged. Between two mixes an
    estimate is as wrong as both suggest, not as the nearer one alone does.
    """
    weights = _nearness(prior, class_frequencies)
    found: dict[str, float | None] = {name: getattr(surest, name) for name in weights}
    nearest = max(weights, key=weights.__getitem__)
    if weights[nearest] == 1:
        return found[nearest]
    excess = sum(weights[name] / rows for name, rows in found.items() if rows is not None)
    return 1 / excess if excess > 0 else None


def _excess_near(prior: Vector, found: ClassExcess, class_frequencies: ArrayLike) -> Vector:
    """[C] the excess of each class near the prior [C].

    It is the mean over the self-test's mixes, weighted by how near each is (`_nearness`).
    """
    total = np.zeros(len(prior))
    for name, weight in _nearness(prior, class_frequencies).items():
        measured = found.others if name == "dominant" else getattr(found, name)
        excess = np.zeros(len(prior)) if measured is None else np.array(measured, np.float64)
        if name == "dominant":
            excess[prior.argmax()] = found.dominant
        total += weight * excess
    return total


def _nearness(prior: Vector, class_frequencies: ArrayLike) -> dict[str, float]:
    """Weights of the self-test's four mixes near the prior [C]: 1 / distance², with the sum 1."""
    mixes = target_mixes(class_frequencies)
    mixes["dominant"] = dominant_mix(int(prior.argmax()), len(prior))
    distances = {name: float(np.abs(mix - prior).sum()) for name, mix in mixes.items()}
    nearest = min(distances, key=distances.__getitem__)
    if distances[nearest] < SAME_MIX:
        return {name: float(name == nearest) for name in mixes}
    weights = {name: distance**-2 for name, distance in distances.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def dominant_mix(which: int, classes: int) -> Vector:
    """[C] the mix in which one class has 90 %."""
    mix = np.full(classes, 0.1 / max(1, classes - 1))
    mix[which] = 0.9
    normal: Vector = mix / mix.sum()
    return normal


def target_mixes(class_frequencies: ArrayLike) -> dict[str, Vector]:
    """The class mixes of the self-test: training's, uniform, and training's with ranks reversed."""
    training = np.asarray(class_frequencies, np.float64)
    training = training / training.sum()
    order = np.argsort(training, kind="stable")
    turned = np.empty_like(training)
    turned[order] = training[order[::-1]]
    return {
        "training": training,
        "uniform": np.full(len(training), 1 / len(training)),
        "reversed": turned,
    }


def gain_of(ratios: Vector, estimate: PriorEstimate, *, candidate: Vector, current: Vector) -> Gain:
    """Estimate what deciding by the candidate instead of the current target gains, with its
    uncertainty.

    Priors are drawn from the estimate's covariance; each gives the probability that either decision
    is right.
    """
    before, after = (ratios * current).argmax(axis=1), (ratios * candidate).argmax(axis=1)
    changed = np.flatnonzero(before != after)
    if len(changed) == 0:
        return Gain(0.0, 0.0)
    some, rows = ratios[changed], np.arange(len(changed))
    priors = np.vstack([estimate.prior, _draws(estimate)])
    mixed = some @ priors.T
    better = some[rows, after[changed], None] * priors.T[after[changed]]
    worse = some[rows, before[changed], None] * priors.T[before[changed]]
    gains = ((better - worse) / mixed).sum(axis=0) / len(ratios)
    return Gain(float(gains[0]), float(np.quantile(gains[1:], 0.05)))


def _draws(estimate: PriorEstimate) -> Vector:
    """[GAIN_DRAWS, C] priors drawn from the estimate and its covariance; the same at every call."""
    noise = np.random.default_rng(0).standard_normal((GAIN_DRAWS, len(estimate.prior)))
    if estimate.covariance.ndim == 1:
        moves = noise * np.sqrt(estimate.covariance)
    else:
        values, vectors = np.linalg.eigh(estimate.covariance)
        moves = (noise * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    drawn = np.maximum(estimate.prior + moves, 0.0)
    priors: Vector = drawn / drawn.sum(axis=1, keepdims=True)
    return priors


def _nothing_known(n: int, target: Vector) -> PriorEstimate:
    """The estimate when none was found: the target in force, with intervals of 0 … 1."""
    size = len(target)
    return PriorEstimate(target, np.zeros(size), np.ones(size), n, 1.0, np.full(size, 0.25))


def _distance_to_bbse(
    logits: Vector, estimate: PriorEstimate, calibration: Estimation
) -> float | None:
    if calibration.confusion is None:
        return None
    predicted = np.bincount(logits.argmax(axis=1), minlength=len(estimate.prior))
    other = bbse_prior(calibration.confusion, predicted)
    return None if other is None else float(np.abs(other - estimate.prior).sum())


def _judge(
    *,
    n: int,
    different: int | None,
    num_classes: int,
    capacity: int | None,
    settled: bool,
    calibration: Estimation | None,
    uncalibrated: str,
    misfit: Misfit | None,
    self_test: float | None,
    step: float,
) -> tuple[Verdict, str]:
    """The first verdict that applies, the most serious first, with its reason."""
    found = (
        _too_few_rows(n, different, num_classes, capacity)
        or _not_calibrated(calibration, uncalibrated)
        or _unexplained(misfit, calibration)
        or _ill_conditioned(self_test, step, settled=settled)
    )
    if found is not None:
        return found
    if misfit is not None and misfit.p < SUSPECT_BELOW and misfit.phi2 > SMALLEST_MISFIT / 2:
        return "suspect", (
            f"the rows fit a mix of the known classes badly (p = {misfit.p:.2g}); "
            "estimate again on fresh rows before you act on it"
        )
    return "usable", "the rows look like a mix of the known classes" + _blindness(misfit, n)


def _blindness(misfit: Misfit | None, n: int) -> str:
    """Return what to add to a reason if the split, not the rows, limits what the test can see."""
    if misfit is None or misfit.rows >= min(SEES_LITTLE, n / 2):
        return ""
    return (
        f", but the test sees only as much as {misfit.rows:.0f} of the {n} rows could show: the "
        "split has few rows of classes that are common here; calibrate on more labelled rows of "
        "them, or look at some rows yourself"
    )


def _too_few_rows(
    n: int, different: int | None, num_classes: int, capacity: int | None
) -> tuple[Verdict, str] | None:
    """Return the reason for too few rows. different: the number of distinct inputs, if some are
    repeated.
    """
    wanted = rows_wanted(num_classes)
    if capacity is not None and max(capacity, n) < wanted:
        return "too_many_classes", (
            f"{num_classes} classes need {wanted} rows, but at most {capacity} are kept; "
            "estimate offline from a file, with `training estimate`"
        )
    if n < wanted:
        return "too_little_traffic", (
            f"there are {n} rows, but {num_classes} classes need {wanted}; wait for more traffic"
        )
    if different is not None and different < wanted:
        return "too_little_traffic", (
            f"the {n} rows are of {different} different inputs, but {num_classes} classes need "
            f"{wanted}; wait for other inputs"
        )
    return None


def _not_calibrated(
    calibration: Estimation | None, uncalibrated: str
) -> tuple[Verdict, str] | None:
    if calibration is None:
        return "uncalibrated", uncalibrated
    fewest = calibration.validation.fewest
    if fewest < VALIDATION_ROWS_PER_CLASS:
        return "uncalibrated", (
            f"the rarest class has {fewest} validation rows, but {VALIDATION_ROWS_PER_CLASS} are "
            "needed for reliable intervals; calibrate again on more labelled rows"
        )
    return None


def _unexplained(
    misfit: Misfit | None, calibration: Estimation | None
) -> tuple[Verdict, str] | None:
    if misfit is None or misfit.p >= REFUSED_BELOW:
        return None
    test = None if calibration is None else calibration.self_test
    if misfit.phi2 <= max(SMALLEST_MISFIT, 0.0 if test is None else test.misfit_99):
        return None
    return "not_explained", (
        "no mix of the known classes explains these rows: look for new classes, "
        "a broken source or changed inputs before you change a prior"
    )


def _ill_conditioned(
    self_test: float | None, step: float, *, settled: bool
) -> tuple[Verdict, str] | None:
    if not settled:
        return "ill_conditioned", (
            "the model hardly separates some classes in this traffic, so the estimate did not "
            "converge; keep the target in force"
        )
    if self_test is not None and 2 * self_test > max(step, 2 * LARGEST_SELF_TEST):
        return "ill_conditioned", (
            f"on validation, estimates near this mix are wrong by L1 {self_test:.2f}; "
            "calibrate on more labelled rows, or keep the target in force"
        )
    return None
