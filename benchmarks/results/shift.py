"""How close the estimate of a class prior comes, and how adopting it changes the error.

python -m benchmarks.results.shift [--model models/fashion/1 --data fashion-mnist --draws 10]

For each of six class mixes, `--rows` rows are drawn from the test split as a stream, and the same
number of other rows is scored. Only the validation split is used for calibration. Where the package
quapy is installed, its EMQ, PACC and KDEyML get the same posteriors, and the service's calibrated
source turns their priors into decisions.
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.adjustment import Vector, log_target_prior, softmax
from service.contract.estimation import Estimation
from service.contract.label_shift import em_prior
from service.contract.verdict import assess, may_adopt, target_mixes
from training.run.published import Published
from training.scores.source import measure

Rows = np.ndarray[Any, np.dtype[np.intp]]


def main() -> None:
    """Print one table for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/fashion/1"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2000])
    options = parser.parse_args()
    model = Published.open(options.model)
    log_source = model.training_source_prior()
    assert log_source is not None
    logits, labels = {}, {}
    for split in ("val", "test"):
        data, rows = model.rows(options.data, split=split)
        logits[split], labels[split] = model.logits(data, rows).astype(np.float64), rows.labels
    counts = np.asarray(model.bundle.class_counts, np.float64)
    block, _ = measure(
        logits["val"], labels["val"], log_source_prior=log_source, class_frequencies=counts
    )
    peers = _peers(logits["val"], labels["val"], block)
    for n in options.rows:
        print(f"n = {n}, {options.draws} draws: mean L1 / plain error %, mean ± sd over draws")
        for target in ("training", "uniform", "reversed", "dirichlet", "absent", "dominant"):
            lines: dict[str, list[tuple[float, float]]] = {}
            covered, verdicts, adopted = [], [], 0
            for draw in range(options.draws):
                rng = np.random.default_rng([n, draw, len(target)])
                prior = _mix(target, counts, rng)
                stream, fresh = (_rows(labels["test"], prior, size, rng) for size in (n, 5000))
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
                    softmax(logits["test"][stream] / model.bundle.temperature),
                    source_prior=np.exp(log_source),
                )
                answers = {
                    "as trained": (counts / counts.sum(), f),
                    "known prior": (prior, _decide(f, prior, block)),
                    "EM with class_counts": (
                        old,
                        f / model.bundle.temperature - log_source + log_target_prior(old),
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
            print(
                f"  {target}: usable {usable} of {options.draws}, adopted {adopted}, "
                f"95 % intervals hold {np.mean(covered):.2f} of the classes"
            )
            for name, values in lines.items():
                (l1, wrong), (_, sd) = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
                print(f"    {name:24}{l1:8.3f}{100 * wrong:8.2f} ± {100 * sd:.2f}", flush=True)


def _mix(target: str, counts: Vector, rng: np.random.Generator) -> Vector:
    mixes = target_mixes(counts)
    if target in mixes:
        return mixes[target]
    classes = len(counts)
    prior = np.full(classes, 1 / classes)
    if target == "dirichlet":
        prior = rng.dirichlet(np.ones(classes))
    elif target == "absent":
        prior[rng.integers(classes)] = 0.0
    else:
        prior = np.full(classes, 0.1 / (classes - 1))
        prior[rng.integers(classes)] = 0.9
    normal: Vector = prior / prior.sum()
    return normal


def _rows(labels: Any, prior: Vector, size: int, rng: np.random.Generator) -> Rows:
    """Rows of the split, drawn with replacement to match a class mix."""
    members = [np.flatnonzero(labels == y) for y in range(len(prior))]
    drawn = rng.choice(len(prior), size=size, p=prior)
    return np.array([rng.choice(members[y]) for y in drawn])


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
