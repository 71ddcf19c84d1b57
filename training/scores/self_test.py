"""Tests a model's estimates on its labelled split: calibrated on one half, tested on the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.adjustment import Vector
from service.contract.scores import bootstrap_rng, class_totals
from service.contract.shift.estimation import ClassExcess, Estimation, SelfTest, SurestRows
from service.contract.shift.label_shift import NotConverged, estimate_prior, likelihood_ratios
from service.contract.shift.misfit import misfit_of
from service.contract.shift.verdict import dominant_mix, target_mixes, with_self_test
from training.scores.sketching import Labels, rounded

SELF_TEST_ROWS = 2000
SELF_TEST_DRAWS = 5
EXCESS_DRAWS = 10
FEWEST_EXCESS_ROWS = 200
_MOST_CELLS = 1_000_000  # the most logits of a stream


@dataclass(frozen=True)
class _Half:
    """The calibration of one half of a split, and the rows of the other."""

    block: Estimation
    members: list[NDArray[np.intp]]
    """[C] of the other half, which rows are of each class."""


def self_test(
    f: Vector,
    labels: Labels,
    *,
    block_of: Callable[[Vector, Labels], Estimation],
    class_frequencies: ArrayLike,
) -> SelfTest | None:
    """Calibrate on one half of each class, estimate streams drawn from the other half, and swap.

    f: logits [n, C]. block_of: measures a block, without a self-test, on some of the rows. Returns
    None when a class has fewer than two rows, so that one half would lack it, or when an estimate
    does not converge.
    """
    if class_totals(labels, f.shape[1]).min() < 2:
        return None
    halves = []
    for own, other in _halves(labels):
        members = [other[labels[other] == y] for y in range(f.shape[1])]
        halves.append(_Half(block_of(f[own], labels[own]), members))
    try:
        surest, excess = _missed(f, halves, class_frequencies) or (None, None)
        known = SelfTest(
            rows=min(SELF_TEST_ROWS, max(200, _MOST_CELLS // f.shape[1])),
            training=0,
            uniform=0,
            reversed=0,
            misfit_99=0,
            surest_rows=surest,
            class_excess=excess,
        )
        return _streams(f, halves, class_frequencies, known)
    except NotConverged:
        return None


def _streams(
    f: Vector, halves: list[_Half], class_frequencies: ArrayLike, known: SelfTest
) -> SelfTest:
    """Estimate streams of each half's other rows; complete the self-test. Raises NotConverged."""
    mixes = target_mixes(class_frequencies)
    distances: dict[str, list[float]] = {name: [] for name in mixes}
    misfits: list[float] = []
    rng = bootstrap_rng(1)
    mixes["random"] = rng.dirichlet(np.ones(f.shape[1]))
    mixes["dominant"] = dominant_mix(int(rng.integers(f.shape[1])), f.shape[1])
    for half in halves:
        block, pool = half.block, np.concatenate(half.members)
        there = np.array([len(each) for each in half.members])
        begins = np.cumsum(there) - there
        heat, source = block.temperature, block.log_source
        for name, mix in mixes.items():
            for _ in range(SELF_TEST_DRAWS):
                drawn = rng.choice(len(mix), size=known.rows, p=mix)
                inputs = pool[begins[drawn] + rng.integers(there[drawn])]
                stream = f[inputs]
                estimate = estimate_prior(
                    stream,
                    temperature=heat,
                    log_source=source,
                    replicates=block.replicates,
                    inputs=inputs,
                )
                if name in distances:
                    distances[name].append(float(np.abs(estimate.prior - mix).sum()))
                misfit = misfit_of(
                    stream,
                    with_self_test(estimate, known, class_frequencies),
                    block,
                    temperature=heat,
                    ratios=likelihood_ratios(stream, temperature=heat, log_source=source),
                    inputs=inputs,
                )
                misfits.append(0.0 if misfit is None else misfit.phi2)
    means = {name: float(f"{np.mean(values):.4g}") for name, values in distances.items()}
    quantile = float(f"{np.quantile(misfits, 0.99):.4g}")
    return known.model_copy(update={**means, "misfit_99": quantile})


def _missed(
    f: Vector, halves: list[_Half], class_frequencies: ArrayLike
) -> tuple[SurestRows, ClassExcess | None] | None:
    """Measure how far estimates miss beyond their intervals: together, and class by class.

    Streams of one half are estimated with the calibration of the other. Where the squared error
    exceeds the variance that the intervals claim, the excess equals the sampling error of so many
    labelled rows. A mix is left out if the half has too few rows of a class for it: drawing the
    same rows repeatedly would add an error even with exact posteriors. Returns None without
    replicates. Raises NotConverged.
    """
    classes = f.shape[1]
    if any(half.block.replicates is None for half in halves):
        return None
    mixes = {name: [mix] * EXCESS_DRAWS for name, mix in target_mixes(class_frequencies).items()}
    some = np.unique(np.linspace(0, classes - 1, EXCESS_DRAWS).round().astype(int))
    mixes["dominant"] = [dominant_mix(int(y), classes) for y in some]
    excess: dict[str, list[Vector]] = {name: [] for name in mixes}
    used: dict[str, list[Vector]] = {name: [] for name in mixes}
    rng = bootstrap_rng(3)
    for half in halves:
        block, members = half.block, half.members
        there = np.array([len(each) for each in members])
        for name, kinds in mixes.items():
            for mix in kinds:
                rows = min(int((there / mix).min()), SELF_TEST_ROWS)
                if rows < FEWEST_EXCESS_ROWS:
                    continue
                drawn = rng.multinomial(rows, mix)
                stream = np.concatenate(
                    [
                        rng.choice(members[y], n, replace=n > there[y])
                        for y, n in enumerate(drawn)
                        if n
                    ]
                )
                estimate = estimate_prior(
                    f[stream],
                    temperature=block.temperature,
                    log_source=block.log_source,
                    replicates=block.replicates,
                )
                said = np.asarray(estimate.covariance).diagonal()
                excess[name].append(np.square(estimate.prior - mix) - said)
                used[name].append(mix)
    done = {name: (np.array(excess[name]), np.array(used[name])) for name in mixes if used[name]}
    shared = {
        name: float(np.mean(over.sum(axis=1) / (mix * (1 - mix)).sum(axis=1)))
        for name, (over, mix) in done.items()
    }
    together = SurestRows(
        **{name: float(f"{1 / each:.4g}") if each > 0 else None for name, each in shared.items()}
    )
    own = {name: _shares(*found) for name, found in done.items() if name != "dominant"}
    excess_by_class = ClassExcess.model_validate(own)
    if "dominant" in done:
        over, mix = done["dominant"]
        most = mix == mix.max(axis=1, keepdims=True)
        others = _shares(np.where(most, 0.0, over), np.where(most, 0.0, mix))
        (one,) = _shares(over[most][:, None], mix[most][:, None])
        excess_by_class = excess_by_class.model_copy(update={"others": others, "dominant": one})
    return together, excess_by_class if done else None


def _shares(excess: Vector, mixes: Vector) -> list[float]:
    """Return [C] excess over q (1 - q), from both [draws, C]; 0 where there is none."""
    ratios = excess.sum(axis=0) / np.maximum((mixes * (1 - mixes)).sum(axis=0), 1e-300)
    return rounded(np.maximum(ratios, 0.0), digits=4)


def _halves(labels: Labels) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield every second row of each class with the other rows; then the same halves swapped."""
    order = np.argsort(labels, kind="stable")
    ranks = np.empty(len(labels), np.intp)
    starts = np.searchsorted(labels[order], labels[order])
    ranks[order] = np.arange(len(labels)) - starts
    even, odd = np.flatnonzero(ranks % 2 == 0), np.flatnonzero(ranks % 2 == 1)
    yield even, odd
    yield odd, even
