"""How often streams are refused as `not_explained`: true mixes of the classes, and broken inputs.

python -m benchmarks.results.alarms [--model models/fashion/2 --data fashion-mnist]
    [--broken FILE.npz] [--draws 110]
python -m benchmarks.results.alarms --thin [--draws 10]

Six class mixes, with `--draws` streams of 2,000 rows of the test split each, are true label shift.
In other streams some rows are of no class. For images these are 20 % that are blurred, 10 % noise
or 10 % digits. `--broken` names a file with arrays of other inputs instead, and 10 and 20 % of each
are tried. `by misfit alone` counts the streams that the test of the sketch refuses, whatever else
the verdict rests on, such as a split with too few rows of a class.

`--thin` needs no model. It makes sets of 58 Gaussians with a long tail, and calibrates logistic
regressions on splits with 1 to 20 rows of the rarest class. It prints the verdicts that there would
be without the rule that a class needs 20 rows, and how many shares the intervals hold.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.results.coverage import long_tail
from benchmarks.results.shift import TARGETS, Scored, drawn, mix_of, scored
from service.contract.adjustment import Vector
from service.contract.shift import verdict
from service.contract.shift.verdict import REFUSED_BELOW, SMALLEST_MISFIT, Assessment, assess
from training.data.dataset import Split
from training.run.published import Published
from training.scores.source import measure

WRONG = "not_explained"
ROWS = 2_000
THIN = (1, 2, 5, 10, 20)
"""Validation rows of the rarest class."""
THIN_CLASSES, THIN_FEATURES, THIN_SETS = 58, 24, 3


def main() -> None:
    """Print the shares of refused streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/fashion/2"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--broken", type=Path)
    parser.add_argument("--draws", type=int, default=110)
    parser.add_argument("--thin", action="store_true")
    options = parser.parse_args()
    if options.thin:
        thin_splits(draws=options.draws)
        return
    others = (
        broken(options.model, options.data)
        if options.broken is None
        else other_inputs(options.model, options.data, options.broken)
    )
    alarms(scored(options.model, options.data), others, draws=options.draws)


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


def alarms(case: Scored, others: dict[str, tuple[float, Vector]], *, draws: int) -> None:
    """Print how often streams of ROWS rows are refused as not explained by any mix."""
    logits, labels, _, counts, *_ = case
    f, y = logits["test"], labels["test"]
    print(f"refused as not_explained, n = {ROWS}, {draws} draws a target")
    total = alone = 0
    for target in TARGETS[:6]:
        found = []
        for draw in range(draws):
            rng = np.random.default_rng([3, draw, len(target)])
            found.append(judged(f[drawn(y, mix_of(target, counts, rng), ROWS, rng)], case))
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
            rows = f[drawn(y, mix, ROWS, rng)]
            changed = rng.choice(ROWS, int(share * ROWS), replace=False)
            if "blurred" in name:
                own = drawn(y, mix, ROWS, rng)
                rows[changed] = broken_rows[own[: len(changed)]]
            else:
                rows[changed] = broken_rows[rng.integers(len(broken_rows), size=len(changed))]
            seen.setdefault(target, []).append(judged(rows, case))
        every = [each for some in seen.values() for each in some]
        reported = ", ".join(f"{k} {refused(some) / len(some):.2f}" for k, some in seen.items())
        unusable = np.mean([each.verdict != "usable" for each in every])
        by_misfit = np.mean([unexplained(each, case) for each in every])
        print(
            f"  {name}: {refused(every) / len(every):.3f} of {len(every)} streams refused "
            f"({reported}); {unusable:.3f} not usable; by misfit alone {by_misfit:.3f}",
            flush=True,
        )


def thin_splits(*, draws: int) -> None:
    """Print the verdicts without the rule of 20 rows a class, for each number in THIN."""
    streams = THIN_SETS * len(TARGETS) * draws
    print(f"{streams} streams of true label shift a line, n = {ROWS}, {THIN_SETS} sets")
    for rarest in THIN:
        found: list[Assessment] = []
        covers: list[float] = []
        for seed in range(THIN_SETS):
            case = thin_set(rarest, seed)
            for target in TARGETS:
                for draw in range(draws):
                    rng = np.random.default_rng([5, seed, draw, len(target)])
                    prior = mix_of(target, case.counts, rng)
                    stream = drawn(case.labels["test"], prior, ROWS, rng)
                    with patch.object(verdict, "VALIDATION_ROWS_PER_CLASS", 1):
                        one = judged(case.logits["test"][stream], case)
                    held = (one.estimate.low <= prior) & (prior <= one.estimate.high)
                    found.append(one)
                    covers.append(float(held.mean()))
        usable = [
            cover for one, cover in zip(found, covers, strict=True) if one.verdict == "usable"
        ]
        share = f"{np.mean(usable):.3f}" if usable else "none"
        print(
            f"  {rarest:2} rows of the rarest class: intervals hold "
            f"{np.mean(covers):.3f} of the shares; {len(usable)} usable, "
            f"theirs hold {share}; {refused(found)} called {WRONG}",
            flush=True,
        )


def thin_set(rarest: int, seed: int) -> Scored:
    """Answers of a logistic regression to Gaussians, calibrated on a split with a long tail.

    There are 1,000 to 2 training rows of a class, 400 to 1 for validation but at least `rarest`,
    and 200 for the test.
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
    logits = {split: fitted.decision_function(inputs[split]) for split in ("val", "test")}
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
