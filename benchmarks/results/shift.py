"""The accuracy of class prior estimates, and the effect of adopting them on the error.

python -m benchmarks.results.shift [--model models/fashion/2 --data fashion-mnist --draws 10]
    [--studies estimates tracking adoptions many]

For each of seven class mixes, `--rows` rows are drawn from the test split as a stream, and the same
number of other rows is scored. Only the validation split is used for calibration. Where the package
quapy is installed, its EMQ, PACC and KDEyML get the same posteriors, and the service's calibrated
source turns their priors into decisions. `tracking`
follows seven streams of 24,000 rows. `adoptions` takes 100 automatic decisions without a shift and
100 with one. `many` needs no model: a tracker follows 153,600 made-up rows of 100,000 classes, of
which it gets the 16 best of each row.
"""

import argparse
import importlib.util
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service.contract.adjustment import Vector, log_target_prior, softmax
from service.contract.automatic import STRENGTH, AutoAdopt, next_step
from service.contract.shift.estimation import Estimation
from service.contract.shift.label_shift import climb, em_prior
from service.contract.shift.tracking import PriorTracker, Ranked
from service.contract.shift.verdict import assess, may_adopt, target_mixes
from training.run.published import Published
from training.scores.source import measure

Rows = np.ndarray[Any, np.dtype[np.intp]]
STUDIES = ("estimates", "tracking", "adoptions", "many")
TARGETS = ("training", "uniform", "reversed", "dirichlet", "absent", "dominant", "mild")


def main() -> None:
    """Run the requested studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/fashion/2"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2000])
    parser.add_argument(
        "--studies",
        nargs="+",
        choices=STUDIES,
        default=list(STUDIES),
    )
    options = parser.parse_args()
    if "many" in options.studies:
        many_classes()
    if options.studies == ["many"]:
        return
    case = scored(options.model, options.data)
    logits, labels, block, counts = case.logits, case.labels, case.block, case.counts
    if "tracking" in options.studies:
        tracking(logits["test"], labels["test"], block, counts)
    if "adoptions" in options.studies:
        adoptions(logits["test"], labels["test"], block, counts)
    if "estimates" in options.studies:
        estimates(case, sizes=options.rows, draws=options.draws)


class Scored(NamedTuple):
    """A model's answers to the splits `val` and `test`, and its calibration on `val`.

    logits: [N, C] of each split; labels: [N]. counts: [C] training examples. log_source: [C] as
    training implies it.
    """

    logits: dict[str, Vector]
    labels: dict[str, Any]
    block: Estimation
    counts: Vector
    log_source: Vector
    temperature: float


def scored(folder: Path, spec: str) -> Scored:
    """Score both splits of a data set with a model folder, and measure its estimation block."""
    model = Published.open(folder)
    log_source = model.training_source_prior()
    assert log_source is not None
    logits, labels = {}, {}
    for split in ("val", "test"):
        data, rows = model.rows(spec, split=split)
        logits[split], labels[split] = model.logits(data, rows).astype(np.float64), rows.labels
    counts = np.asarray(model.bundle.class_counts, np.float64)
    block, _ = measure(
        logits["val"], labels["val"], log_source_prior=log_source, class_frequencies=counts
    )
    return Scored(logits, labels, block, counts, log_source, model.bundle.temperature)


def estimates(case: Scored, *, sizes: list[int], draws: int) -> None:
    """Print a table of estimates and errors for each number of rows."""
    logits, labels, block, counts, log_source, temperature = case
    peers = _peers(logits["val"], labels["val"], block)
    for n in sizes:
        print(f"n = {n}, {draws} draws: mean L1 / plain error %, mean ± sd over draws")
        every: list[tuple[bool, float]] = []
        for target in TARGETS:
            lines: dict[str, list[tuple[float, float]]] = {}
            covered, verdicts, adopted = [], [], 0
            for draw in range(draws):
                rng = np.random.default_rng([n, draw, len(target)])
                prior = mix_of(target, counts, rng)
                stream, fresh = (drawn(labels["test"], prior, size, rng) for size in (n, 5000))
                found = assess(
                    logits["test"][stream],
                    temperature=block.temperature,
                    log_source=block.log_source,
                    current=counts / counts.sum(),
                    calibration=block,
                    class_frequencies=counts,
                )
                estimate = found.estimate
                covered.append(np.mean((estimate.low <= prior) & (prior <= estimate.high)))
                verdicts.append(found.verdict)
                allowed = may_adopt(found) is None
                adopted += allowed
                f, y = logits["test"][fresh], labels["test"][fresh]
                old = em_prior(
                    softmax(logits["test"][stream] / temperature),
                    source_prior=np.exp(log_source),
                )
                answers = {
                    "as trained": (counts / counts.sum(), f),
                    "known prior": (prior, _decide(f, prior, block)),
                    "EM with class_counts": (
                        old,
                        f / temperature - log_source + log_target_prior(old),
                    ),
                    "estimate": (estimate.prior, _decide(f, estimate.prior, block)),
                    "candidate": (found.candidate, _decide(f, found.candidate, block)),
                    "by the rule": (
                        found.candidate if allowed else counts / counts.sum(),
                        _decide(f, found.candidate, block) if allowed else f,
                    ),
                }
                for name, peer in peers.items():
                    guess = peer(logits["test"][stream])
                    answers[name] = (guess, _decide(f, guess, block))
                for name, (guess, scores) in answers.items():
                    wrong = float((scores.argmax(axis=1) != y).mean())
                    lines.setdefault(name, []).append((float(np.abs(guess - prior).sum()), wrong))
            usable = verdicts.count("usable")
            every += zip((each == "usable" for each in verdicts), covered, strict=True)
            print(
                f"  {target}: usable {usable} of {draws}, adopted {adopted}, "
                f"95 % intervals hold {np.mean(covered):.2f} of the classes"
            )
            for name, values in lines.items():
                (l1, wrong), (_, sd) = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
                print(f"    {name:24}{l1:8.3f}{100 * wrong:8.2f} ± {100 * sd:.2f}", flush=True)
        held = [cover for good, cover in every if good]
        share = f"hold {np.mean(held):.3f} of the classes" if held else "have no share to report"
        print(f"  intervals of {len(held)} usable estimates {share}")


STREAM_ROWS, BATCH = 24_000, 64
WINDOWS = (256, 512, 1024, 2048, 4096)


def tracking(f: Vector, labels: Any, block: Estimation, counts: Vector) -> None:
    """Excess plain error over the true prior of the tracker and of fixed windows of the rows."""
    print(
        f"tracking: excess error over the true prior, points, mean of 3 seeds, {STREAM_ROWS} rows"
    )
    mixes = target_mixes(counts)
    for name in (
        "steady training", "steady uniform", "abrupt", "there and back", "slow drift", "periodic",
        "12 jumps",
    ):  # fmt: skip
        found: dict[str, list[float]] = {}
        arrived = []
        for seed in range(3):
            rng = np.random.default_rng([seed, len(name)])
            truth = _stream(name, mixes, rng)
            classes = np.array([rng.choice(len(counts), p=prior) for prior in truth])
            members = [np.flatnonzero(labels == y) for y in range(len(counts))]
            rows = np.array([rng.choice(members[y]) for y in classes])
            scores = f[rows] / block.temperature - block.log_source
            priors = _followed(f[rows], block, mixes, scores)
            known = _wrong(scores, truth, classes)
            for method, prior in priors.items():
                found.setdefault(method, []).append(100 * (_wrong(scores, prior, classes) - known))
            if name == "abrupt":
                apart = np.abs(priors["tracker"] - truth).sum(axis=1)[STREAM_ROWS // 2 :] / 2
                arrived.append(int(np.argmax(apart < 0.1)))
        means = {method: float(np.mean(values)) for method, values in found.items()}
        windows = {k: v for k, v in means.items() if k.startswith("window")}
        best = min(windows, key=windows.__getitem__)
        more = f"; TV < 0.1 after {np.mean(arrived):.0f} rows" if arrived else ""
        print(
            f"  {name:16} tracker {means['tracker']:.2f}, without the fixed experts "
            f"{means['moving']:.2f}, best fixed {best} {windows[best]:.2f}, stay at training "
            f"{means['training']:.2f}{more}",
            flush=True,
        )


def _stream(name: str, mixes: dict[str, Vector], rng: np.random.Generator) -> Vector:
    """[STREAM_ROWS, C] the true prior of each row."""
    first, last = mixes["training"], mixes["reversed"]
    at = np.arange(STREAM_ROWS) / STREAM_ROWS
    if name == "steady uniform":
        return np.tile(mixes["uniform"], (STREAM_ROWS, 1))
    if name == "12 jumps":
        jumps = rng.dirichlet(np.ones(len(first)), 12)
        return np.repeat(jumps, STREAM_ROWS // 12, axis=0)
    share = {
        "steady training": np.zeros(STREAM_ROWS),
        "abrupt": (at >= 0.5).astype(float),
        "there and back": ((at >= 1 / 3) & (at < 2 / 3)).astype(float),
        "slow drift": at,
        "periodic": (1 - np.cos(8 * np.pi * at)) / 2,
    }[name][:, None]
    mixed: Vector = (1 - share) * first + share * last
    return mixed


def _followed(
    f: Vector, block: Estimation, mixes: dict[str, Vector], scores: Vector
) -> dict[str, Vector]:
    """[STREAM_ROWS, C] the prior that each method uses for a row, fixed before the row's batch."""
    calibration = {"temperature": block.temperature, "log_source": block.log_source}
    fixed = {"tracker": np.stack([mixes["uniform"], mixes["training"]])}
    fixed["moving"] = np.empty((0, f.shape[1]))
    trackers = {name: PriorTracker(**calibration, fixed=each) for name, each in fixed.items()}
    found = {name: np.empty_like(f) for name in trackers}
    found["training"] = np.tile(mixes["training"], (len(f), 1))
    windows = {f"window {size}": mixes["training"] for size in WINDOWS}
    found |= {name: np.empty_like(f) for name in windows}
    ratios = np.exp(scores - scores.max(axis=1, keepdims=True))
    for start in range(0, len(f), BATCH):
        batch = slice(start, start + BATCH)
        for name, tracker in trackers.items():
            found[name][batch] = tracker.prior
            tracker.update(f[batch])
        for size, name in zip(WINDOWS, windows, strict=True):
            found[name][batch] = windows[name]
            if start % (4 * BATCH) == 0:
                rows = ratios[max(0, start + BATCH - size) : start + BATCH]
                windows[name] = climb(rows, start=np.exp(block.log_source))
    return found


def _wrong(scores: Vector, priors: Vector, labels: Any) -> float:
    with np.errstate(divide="ignore"):
        decided = (scores + np.log(priors)).argmax(axis=1)
    return float((decided != labels).mean())


def adoptions(f: Vector, labels: Any, block: Estimation, counts: Vector) -> None:
    """Count automatic steps in 100 decisions without a shift, and in 100 with one."""
    rng = np.random.default_rng(7)
    mixes = target_mixes(counts)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    print("adoptions by the rule, n = 1,000 rows a decision, 5,000 fresh rows to score")
    for shifted in (False, True):
        adopted, hurt, gains = 0, 0, []
        for draw in range(100):
            current = mixes["training"] if draw % 2 else mixes["uniform"]
            truth = current
            if shifted:
                others = [
                    "uniform" if draw % 2 else "training",
                    "reversed",
                    "dirichlet",
                    "dominant",
                ]
                truth = mix_of(others[draw // 2 % 4], counts, rng)
            stream, fresh = (drawn(labels, truth, size, rng) for size in (1000, 5000))
            found = assess(
                f[stream],
                temperature=block.temperature,
                log_source=block.log_source,
                current=current,
                calibration=block,
                class_frequencies=counts,
                shrinkage=STRENGTH,
            )
            step = next_step(
                AutoAdopt(mode="on"), found, current=current, steady=True, now=now, changed_at=None
            )
            if step.target is None:
                continue
            adopted += 1
            before, after = (
                float((_decide(f[fresh], prior, block).argmax(axis=1) != labels[fresh]).mean())
                for prior in (current, step.target)
            )
            gains.append(100 * (before - after))
            hurt += gains[-1] < -0.1
        mean = f", mean gain {np.mean(gains):.2f} points, worst {min(gains):.2f}" if gains else ""
        print(
            f"  {'with' if shifted else 'without'} a shift: {adopted} of 100 adopted, "
            f"{hurt} of them raised the error by over 0.1 points{mean}",
            flush=True,
        )


def many_classes(*, classes: int = 100_000, batches: int = 600, rows: int = 256) -> None:
    """Print the error, CPU time and memory of a tracker of many classes, and its verdict.

    Each row is nearly certain of its class, which has a thousandth of a chance against 15 others.
    The true mix is that of training, moved on by one class.
    """
    rng = np.random.default_rng(0)
    source = rng.zipf(1.3, classes).clip(1, 10_000).astype(np.float64)
    source /= source.sum()
    truth = np.roll(source, 1)
    calibration = {"temperature": 1.0, "log_source": np.log(source)}
    fixed = np.stack([np.full(classes, 1 / classes), source])
    tracker = PriorTracker(**calibration, fixed=fixed)
    ratios = np.full((rows, 16), 1e-3)
    ratios[:, 0] = 1.0
    seconds, memory = [], []
    for batch in range(batches):
        own = rng.choice(classes, rows, p=truth)
        others = rng.permuted(np.tile(np.arange(1, 101), (rows, 1)), axis=1)[:, :15]
        best = np.concatenate([own[:, None], (own[:, None] + others) % classes], axis=1)
        start = time.process_time()
        tracker.update_ranked(Ranked(best, ratios, np.full(rows, 1e-6)))
        seconds.append(time.process_time() - start)
        if batch in (batches // 3, batches - 1):
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    found = tracker.estimate()
    judged = assess(
        rng.normal(size=(40, classes)).astype(np.float32),
        **calibration,
        current=source,
        calibration=None,
        class_frequencies=source,
        tracked=found,
    )
    print(
        f"{classes:,} classes, {tracker.rows:,} rows: {1000 * np.median(seconds):.1f} ms of a "
        f"processor for {rows} rows; at most {memory[0]} MiB after a third of them, {memory[1]} "
        f"MiB after all\n  L1 from the true mix {np.abs(found.prior - truth).sum():.2f}, of "
        f"training's {np.abs(source - truth).sum():.2f}; {judged.verdict}: {judged.reason}"
    )


def mix_of(target: str, counts: Vector, rng: np.random.Generator) -> Vector:
    """[C] a class mix by its name: of `target_mixes`, dirichlet, absent, dominant or mild."""
    mixes = target_mixes(counts)
    if target in mixes:
        return mixes[target]
    classes = len(counts)
    prior = np.full(classes, 1 / classes)
    if target == "dirichlet":
        prior = rng.dirichlet(np.ones(classes))
    elif target == "mild":
        prior = 0.8 * mixes["training"] + 0.2 * mixes["reversed"]
    elif target == "absent":
        prior[rng.integers(classes)] = 0.0
    else:
        prior = np.full(classes, 0.1 / (classes - 1))
        prior[rng.integers(classes)] = 0.9
    normal: Vector = prior / prior.sum()
    return normal


def drawn(labels: Any, prior: Vector, size: int, rng: np.random.Generator) -> Rows:
    """Rows of the split, drawn with replacement to match a class mix."""
    members = [np.flatnonzero(labels == y) for y in range(len(prior))]
    return np.array([rng.choice(members[y]) for y in rng.choice(len(prior), size=size, p=prior)])


def _decide(f: Vector, prior: Vector, block: Estimation) -> Vector:
    scores: Vector = f / block.temperature - block.log_source + log_target_prior(prior)
    return scores


def _peers(logits: Vector, labels: Any, block: Estimation) -> dict[str, Callable[[Vector], Vector]]:
    """QuaPy's estimators, fitted to the calibrated posteriors of validation; none without QuaPy."""
    if importlib.util.find_spec("quapy") is None:
        return {}
    import quapy
    from quapy.method.aggregative import EMQ, PACC, KDEyML
    from sklearn.base import BaseEstimator

    quapy.environ["N_JOBS"] = 1

    class Posteriors(BaseEstimator):  # type: ignore[misc]
        """The calibrated model in the form of a fitted scikit-learn classifier, whose inputs are
        logits.
        """

        classes_ = np.arange(logits.shape[1])

        def fit(self, f: Vector, y: Any) -> "Posteriors":
            """Return itself: the model is calibrated already."""
            del f, y
            return self

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def predict_proba(self, f: Vector) -> Vector:
            """The posteriors [n, C] of logits [n, C]."""
            return posteriors(f)

        def predict(self, f: Vector) -> Any:
            """The most probable class [n] of each row."""
            return posteriors(f).argmax(axis=1)

    def posteriors(f: Vector) -> Vector:
        return softmax(f / block.temperature + np.asarray(block.bias))

    found: dict[str, Callable[[Vector], Vector]] = {
        "QuaPy EMQ": lambda f: np.asarray(EMQ.EM(np.asarray(block.source_prior), posteriors(f))[0])
    }
    for name, kind in (("QuaPy PACC", PACC), ("QuaPy KDEyML", KDEyML)):
        method = kind(Posteriors(), fit_classifier=False, val_split=None)
        method.fit(logits, labels)
        found[name] = lambda f, method=method: np.asarray(method.predict(f))  # type: ignore[misc]
    return found


if __name__ == "__main__":
    main()
