"""How often streams are refused as `not_explained`: true mixes of the classes, and broken inputs.

python -m benchmarks.results.alarms [--model models/fashion/2 --data fashion-mnist]
    [--broken FILE.npz] [--draws 110] [--rows 2000]
python -m benchmarks.results.alarms --thin [--draws 10] [--rows 2000]

Six class mixes, with `--draws` streams of `--rows` of the test split each, are true label shift.
In other streams some rows are of no class. For images these are 20 % that are blurred, 10 % noise
or 10 % digits. `--broken` names a file with arrays of other inputs instead, and 10 and 20 % of each
are tried. `by misfit alone` counts the streams that the test of the sketch refuses, whatever else
the verdict rests on, such as a split with too few rows of a class.

`--thin` needs no model. It makes sets of 58 Gaussians with a long tail, and calibrates logistic
regressions on splits with 1 to 100 rows of the rarest class. It prints the verdicts that there
would be without the rule that a class needs 20 rows, and how many shares the intervals hold. In
broken streams 10 % of the rows are wide noise, or 20 % have inputs of 0.6 times their size.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.results.coverage import long_tail
from benchmarks.results.shift import TARGETS, Scored, drawn, mix_of, scored
from service.contract.adjustment import Vector
from service.contract.shift import verdict
from service.contract.shift.verdict import (
    REFUSED_BELOW,
    SEES_LITTLE,
    SMALLEST_MISFIT,
    Assessment,
    assess,
)
from training.data.dataset import Split
from training.run.published import Published
from training.scores.source import measure

WRONG = "not_explained"
ROWS = 2_000
THIN = (1, 2, 5, 10, 20, 100)
"""Validation rows of the rarest class."""
THIN_CLASSES, THIN_FEATURES, THIN_SETS = 58, 24, 3


def main() -> None:
    """Print the shares of refused streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/fashion/2"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--broken", type=Path)
    parser.add_argument("--draws", type=int, default=110)
    parser.add_argument("--rows", type=int, nargs="+", default=[ROWS])
    parser.add_argument("--thin", action="store_true")
    options = parser.parse_args()
    if options.thin:
        thin_splits(draws=options.draws, sizes=options.rows)
        return
    others = (
        broken(options.model, options.data)
        if options.broken is None
        else other_inputs(options.model, options.data, options.broken)
    )
    case = scored(options.model, options.data)
    for rows in options.rows:
        alarms(case, others, draws=options.draws, rows=rows)


def other_inputs(folder: Path, spec: str, file: Path) -> dict[str, tuple[float, Vector]]:
    """The logits of each array of the file, with shares of 10 and of 20 %."""
    model = Published.open(folder)
    data, _ = model.rows(spec, split="test")
    found = {}
    for kind, inputs in np.load(file).items():
        plain = inputs.astype(object) if inputs.dtype.kind == "U" else inputs
        rows = model.logits(data, Split(plain, np.zeros(len(plain), np.int64)))
        for share in (0.1, 0.2):
            found[f"{share:.0%} {kind}"] = (share, rows.astype(np.float64))
    return found


def broken(folder: Path, spec: str) -> dict[str, tuple[float, Vector]]:
    """Streams that are not label shift, by name: the share of broken rows, and their logits.

    The images of the test split with Gaussian blur of 1 pixel; images of uniform noise; digits.
    """
    from sklearn.datasets import load_digits

    model = Published.open(folder)
    data, rows = model.rows(spec, split="test")
    images = np.asarray(rows.inputs)
    rng = np.random.default_rng(11)
    kernel = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    kernel /= kernel.sum()
    wide = np.pad(
        images.astype(np.float64), ((0, 0), (3, 3), (3, 3), *[(0, 0)] * (images.ndim - 3))
    )
    tall = sum(w * wide[:, i : i + images.shape[1]] for i, w in enumerate(kernel))
    blurred = sum(w * tall[:, :, i : i + images.shape[2]] for i, w in enumerate(kernel))
    digits = np.kron(load_digits().images * 255 / 16, np.ones((3, 3)))
    digits = np.pad(digits, ((0, 0), (2, 2), (2, 2))).reshape(-1, *images.shape[1:])
    largest = 255 if images.dtype == np.uint8 else float(images.max())
    kinds = {
        "20 % blurred": (0.2, blurred),
        "10 % noise": (0.1, rng.uniform(0, largest, (2000, *images.shape[1:]))),
        "10 % digits": (0.1, digits * (largest / 255)),
    }
    return {
        name: (
            share,
            model.logits(
                data, Split(some.astype(images.dtype), np.zeros(len(some), np.int64))
            ).astype(np.float64),
        )
        for name, (share, some) in kinds.items()
    }


def alarms(
    case: Scored, others: dict[str, tuple[float, Vector]], *, draws: int, rows: int = ROWS
) -> None:
    """Print how often streams of `rows` rows are refused as not explained by any mix."""
    logits, labels, _, counts, *_ = case
    f, y = logits["test"], labels["test"]
    print(f"refused as not_explained, n = {rows}, {draws} draws a target")
    total = alone = 0
    for target in TARGETS[:6]:
        found = []
        for draw in range(draws):
            rng = np.random.default_rng([3, draw, len(target)])
            found.append(judged(f[drawn(y, mix_of(target, counts, rng), rows, rng)], case))
        alarm, misfit = refused(found), sum(unexplained(each, case) for each in found)
        total, alone = total + alarm, alone + misfit
        print(f"  label shift, {target}: {alarm} of {draws}; by misfit alone {misfit}", flush=True)
    print(
        f"  false alarms: {total} of {6 * draws} = {total / (6 * draws):.4f}; "
        f"by misfit alone {alone / (6 * draws):.4f}"
    )
    for name, (share, broken_rows) in others.items():
        seen: dict[str, list[Assessment]] = {}
        for draw in range(3 * draws // 5):
            rng = np.random.default_rng([4, draw, len(name)])
            target = ("training", "uniform", "reversed")[draw % 3]
            mix = mix_of(target, counts, rng)
            stream = f[drawn(y, mix, rows, rng)]
            changed = rng.choice(rows, int(share * rows), replace=False)
            if "blurred" in name:
                own = drawn(y, mix, rows, rng)
                stream[changed] = broken_rows[own[: len(changed)]]
            else:
                stream[changed] = broken_rows[rng.integers(len(broken_rows), size=len(changed))]
            seen.setdefault(target, []).append(judged(stream, case))
        every = [each for some in seen.values() for each in some]
        reported = ", ".join(f"{k} {refused(some) / len(some):.2f}" for k, some in seen.items())
        unusable = np.mean([each.verdict != "usable" for each in every])
        by_misfit = np.mean([unexplained(each, case) for each in every])
        print(
            f"  {name}: {refused(every) / len(every):.3f} of {len(every)} streams refused "
            f"({reported}); {unusable:.3f} not usable; by misfit alone {by_misfit:.3f}",
            flush=True,
        )


@dataclass
class Tally:
    """The verdicts on all streams with the same number of rows."""

    true: list[Assessment] = field(default_factory=list)
    covers: list[float] = field(default_factory=list)
    """For each stream of true label shift, the share of its intervals that contain the true
    value.
    """
    alone: int = 0
    """The number of streams of true label shift that the sketch's test alone refuses."""
    broken: list[tuple[float, bool]] = field(default_factory=list)
    """For each broken stream: (how many rows the test is worth, whether it refuses the stream)."""


def thin_splits(*, draws: int, sizes: Sequence[int] = (ROWS,), sets: int = THIN_SETS) -> None:
    """Print the verdicts without the rule of 20 rows a class, for each number in THIN."""
    streams = sets * len(TARGETS) * draws
    print(f"a line: {streams} streams of true label shift from {sets} sets, and as many broken")
    for rarest in THIN:
        found = {rows: Tally() for rows in sizes}
        for seed in range(sets):
            case = thin_set(rarest, seed)
            for rows, target, draw in product(sizes, TARGETS, range(draws)):
                thin_stream(case, found[rows], target=target, key=[5, seed, draw], rows=rows)
        for rows, tally in found.items():
            usable = [
                cover
                for one, cover in zip(tally.true, tally.covers, strict=True)
                if one.verdict == "usable"
            ]
            share = f"{np.mean(usable):.3f}" if usable else "none"
            seen = [good for _, good in tally.broken]
            sharp = [good for worth, good in tally.broken if worth >= SEES_LITTLE]
            print(
                f"  {rarest:3} rows of the rarest class, n = {rows}: intervals hold "
                f"{np.mean(tally.covers):.3f} of the shares; {len(usable)} usable, "
                f"theirs hold {share}; {refused(tally.true)} called {WRONG}, {tally.alone} by "
                f"misfit alone; broken: {sum(seen)} of {len(seen)}, where the test is worth "
                f"{SEES_LITTLE:.0f} rows {sum(sharp)} of {len(sharp)}",
                flush=True,
            )


def thin_stream(case: Scored, tally: Tally, *, target: str, key: list[int], rows: int) -> None:
    """Judge a stream of true label shift, and then a broken copy: with noise if the draw's number
    is even, else with faint rows.
    """
    f = case.logits
    rng = np.random.default_rng([*key, len(target)])
    prior = mix_of(target, case.counts, rng)
    own = drawn(case.labels["test"], prior, rows, rng)
    changed = f["test"][own]
    if key[-1] % 2 == 0:
        at = rng.choice(rows, rows // 10, replace=False)
        changed[at] = f["noise"][rng.integers(len(f["noise"]), size=len(at))]
    else:
        at = rng.choice(rows, rows // 5, replace=False)
        changed[at] = f["faint"][own[at]]
    with patch.object(verdict, "VALIDATION_ROWS_PER_CLASS", 1):
        true, broken_one = judged(f["test"][own], case), judged(changed, case)
    tally.true.append(true)
    tally.covers.append(
        float(((true.estimate.low <= prior) & (prior <= true.estimate.high)).mean())
    )
    tally.alone += unexplained(true, case)
    worth = 0.0 if broken_one.misfit is None else broken_one.misfit.rows
    tally.broken.append((worth, unexplained(broken_one, case)))


def thin_set(rarest: int, seed: int) -> Scored:
    """Answers of a logistic regression to Gaussians, calibrated on a split with a long tail.

    There are 1,000 to 2 training rows of a class, 400 to 1 for validation but at least `rarest`,
    and 200 for the test. `faint` are the rows of the test with 0.6 times their inputs, and `noise`
    are of no class.
    """
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng([58, seed])
    centres = 0.8 * rng.normal(size=(THIN_CLASSES, THIN_FEATURES))
    rows = {
        "train": long_tail(THIN_CLASSES, 1000, 500),
        "val": np.maximum(long_tail(THIN_CLASSES, 400, 400), rarest),
        "test": np.full(THIN_CLASSES, 200),
    }
    labels = {split: np.repeat(np.arange(THIN_CLASSES), n) for split, n in rows.items()}
    inputs = {
        split: centres[y] + rng.normal(size=(len(y), THIN_FEATURES)) for split, y in labels.items()
    }
    fitted = LogisticRegression(max_iter=2000).fit(inputs["train"], labels["train"])
    inputs["faint"] = 0.6 * inputs["test"]
    inputs["noise"] = 2.0 * rng.normal(size=(3000, THIN_FEATURES))
    logits = {split: fitted.decision_function(inputs[split]) for split in inputs}
    counts = rows["train"].astype(np.float64)
    log_source = np.log(counts / counts.sum())
    block, _ = measure(
        logits["val"], labels["val"], log_source_prior=log_source, class_frequencies=counts
    )
    return Scored(logits, labels, block, counts, log_source, block.temperature)


def judged(rows: Vector, case: Scored) -> Assessment:
    """Assess rows of logits [n, C], with the training mix as the target in force."""
    return assess(
        rows,
        temperature=case.block.temperature,
        log_source=case.block.log_source,
        current=case.counts / case.counts.sum(),
        calibration=case.block,
        class_frequencies=case.counts,
    )


def refused(found: list[Assessment]) -> int:
    """How many verdicts are `not_explained`."""
    return sum(each.verdict == WRONG for each in found)


def unexplained(found: Assessment, case: Scored) -> bool:
    """Whether the test of the sketch refuses the rows, whatever else the verdict rests on."""
    test, misfit = case.block.self_test, found.misfit
    if misfit is None:
        return False
    largest = max(SMALLEST_MISFIT, 0.0 if test is None else test.misfit_99)
    return misfit.p < REFUSED_BELOW and misfit.phi2 > largest


if __name__ == "__main__":
    main()
