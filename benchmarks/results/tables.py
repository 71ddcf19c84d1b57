"""Compares the default networks with scikit-learn's classifiers on long-tailed public sets.

    python -m benchmarks.sets.people_data SETS --r-packages R
    python -m benchmarks.results.tables SETS OUT [--seeds 5] [--only NAME] [--seconds 400]
    python -m benchmarks.sets.unseen_data UNSEEN --packages R
    python -m benchmarks.results.tables UNSEEN OUT2 --unseen [--peers EARLIER/tables.json]

For each set and seed, 30 % of each class are the test rows. The other rows of balanced sets become
long-tailed: an exponential profile of ratio 50, with classes in random order and at least two rows
in the rarest. Sets with a long tail of their own stay as they are. All classifiers get the same raw
rows, and `training fit` with its default flags sets its validation rows aside from them. Each
classifier is scored unchanged, and adjusted to the uniform target by the frequencies of its
training rows. OUT keeps one file per set and seed, so that a stopped run can continue.
OUT/tables.json has the numbers that docs/results.md shows. The defaults were chosen on the first
sets. `--unseen` gives those of other sets, on which none was chosen, a section of their own.
"""

import argparse
import csv
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.results.text import spliced
from benchmarks.sets import unseen_data
from service.contract.adjustment import adjust_logits
from training.data.splits import FEW_ROWS
from training.loop.processes import Processes
from training.loop.train import Keeping
from training.pages.page import markdown_table
from training.run import recipe_file
from training.run.candidates import name_of
from training.run.run import Running, calibrated, run

TEXTS = {"manual", "source", "changelog", "licences", *unseen_data.TEXTS}
OWN_TAIL = {"shuttle", "soybean", "manual", "source", "changelog", "licences"}
OWN_TAIL |= unseen_data.OWN_TAIL
RATIO, TEST_SHARE, FEWEST = 50, 0.3, 2
SEEDS = 5
OURS = "training fit"
LATEST = "tfidf-split-words"  # a candidate for texts that earlier defaults did not have
CLIP = 1e-12  # a forest's probability of 0 would be -inf

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Set:
    """Raw rows of a set with the rows to learn from and to test on."""

    name: str
    columns: list[str]
    cells: NDArray[np.object_]
    labels: Rows
    names: list[str]
    train: Rows
    test: Rows

    @property
    def counts(self) -> Rows:
        """Training rows of each class."""
        return np.bincount(self.labels[self.train], minlength=len(self.names))


def drawn(file: Path, seed: int) -> Set:
    """A set with its rows divided; classes with fewer than four rows are left out."""
    csv.field_size_limit(10**9)
    with file.open(encoding="utf-8", newline="") as lines:
        head, *rows = csv.reader(lines)
    written = np.array([row[-1] for row in rows])
    names, labels = np.unique(written, return_inverse=True)
    keep = np.bincount(labels)[labels] >= 4
    names, labels = np.unique(written[keep], return_inverse=True)
    cells = np.array([row[:-1] for row in rows], dtype=object)[keep]
    generator = np.random.default_rng(seed)
    train, test = [], []
    for label in range(len(names)):
        own = generator.permutation(np.flatnonzero(labels == label))
        cut = max(1, round(TEST_SHARE * len(own)))
        test.append(own[:cut])
        train.append(own[cut:])
    if file.stem not in OWN_TAIL:
        order = generator.permutation(len(names))
        largest = min(map(len, train))
        for place, label in enumerate(order):
            count = max(FEWEST, round(largest * RATIO ** (-place / (len(names) - 1))))
            train[label] = train[label][:count]
    rows_of = [generator.permutation(np.concatenate(part)) for part in (train, test)]
    return Set(file.stem, head[:-1], cells, labels, list(names), *rows_of)


def ours(
    data: Set, seed: int, folder: Path
) -> tuple[NDArray[np.float64], NDArray[Any], dict[str, Any]]:
    """Calibrated logits of the test rows, log sigma, and facts of the run.

    These are the network that validation chose, all that it chose from, and whether the network was
    trained again on all rows.
    """
    file = folder / f"{data.name}-{seed}.csv"
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow([*data.columns, "label", "part"])
        for part, rows in (("train", data.train), ("test", data.test)):
            writer.writerows([*data.cells[row], data.names[data.labels[row]], part] for row in rows)
    text = "&text=text" if data.name in TEXTS else ""
    settings = {"data": f"table:{file}?label=label&split=part{text}", "name": "x", "seed": seed}
    finished = run(
        recipe_file.make(None, settings),
        running=Running(models=None, runs=None),
        keeping=Keeping(quiet=True),
        processes=Processes.join("cpu"),
    )
    assert finished is not None
    file.unlink()
    ready = finished.ready
    _, calibration = calibrated(finished)
    # the test rows of a CSV file stay in its order, and its classes are sorted as ours are
    order = [ready.data.class_names.index(name) for name in data.names]
    logits = finished.logits["test"].astype(np.float64)[:, order] / calibration.temperature
    source = calibration.log_source_prior(ready.log_source_prior)[order]
    facts = {
        "network": name_of(finished.recipe),
        "tried": [each.name for each in finished.tried],
        "refit": finished.held_out is not None,
    }
    return logits, source, facts


def features(data: Set) -> tuple[NDArray[Any], Any]:
    """Inputs for scikit-learn: (those of trees, those of linear classifiers and networks)."""
    if data.name in TEXTS:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectors = TfidfVectorizer().fit(data.cells[data.train, 0])
        found = vectors.transform(data.cells[:, 0]).tocsr()
        return found, found
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    parts = []
    for column in data.cells.T:
        try:
            numbers = np.array([np.nan if cell == "" else float(cell) for cell in column])
        except ValueError:
            encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
            parts.append(encoder.fit(column[data.train, None]).transform(column[:, None]))
            continue
        missing = np.isnan(numbers)
        mean = np.nanmean(numbers[data.train])
        parts += [np.where(missing, mean, numbers)[:, None]]
        parts += [missing[:, None].astype(float)] if missing.any() else []
    raw = np.concatenate(parts, axis=1)
    return raw, StandardScaler().fit(raw[data.train]).transform(raw)


def peers(data: Set, seed: int) -> dict[str, Callable[[], NDArray[np.float64]]]:
    """Log probabilities of the test rows by scikit-learn's classifiers, and a plain network."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.decomposition import TruncatedSVD
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import LinearSVC

    raw, scaled = features(data)
    labels = data.labels[data.train]

    def scored(model: Any, rows: Any) -> NDArray[np.float64]:
        model.fit(rows[data.train], labels)
        return np.log(np.maximum(model.predict_proba(rows[data.test]), CLIP))

    def dense() -> Any:
        if data.name not in TEXTS:
            return scaled
        return TruncatedSVD(256, random_state=0).fit(scaled[data.train]).transform(scaled)

    folds = int(min(3, data.counts.min()))
    plain = MLPClassifier((256,), alpha=0, batch_size=128, max_iter=40, random_state=seed)
    found = {
        "logistic regression": lambda: scored(LogisticRegression(max_iter=1000), scaled),
        "linear SVC, calibrated": lambda: scored(
            CalibratedClassifierCV(LinearSVC(), cv=folds), scaled
        ),
        "Adam MLP": lambda: scored(plain, dense()),
    }
    if data.name not in TEXTS:
        forest = HistGradientBoostingClassifier(random_state=seed)
        found["gradient boosting"] = lambda: scored(forest, raw)
    return found


def balanced(data: Set, logits: NDArray[np.float64], source: NDArray[Any], tau: float) -> float:
    """The balanced error of the test rows, in percent."""
    adjusted = adjust_logits(
        logits, log_source_prior=source, log_target_prior=np.zeros(len(source)), tau=tau
    )
    truth = data.labels[data.test]
    wrong = adjusted.argmax(axis=1) != truth
    return 100 * float(np.mean([wrong[truth == label].mean() for label in np.unique(truth)]))


def measured(file: Path, seed: int, out: Path, earlier: dict[str, Any]) -> dict[str, Any]:
    """Errors of all classifiers on one set and seed; those of scikit-learn's from `earlier`."""
    data = drawn(file, seed)
    if earlier and earlier["rows"] != [len(data.train), len(data.test)]:
        print(f"{data.name}: peers measured again")
        earlier = {}
    counts = np.log(data.counts / data.counts.sum())
    found: dict[str, Any] = {}
    began = time.monotonic()
    logits, source, facts = ours(data, seed, out)
    found[OURS] = [balanced(data, logits, source, tau) for tau in (0.0, 1.0)]
    seconds = {OURS: time.monotonic() - began}
    for name, score in peers(data, seed).items():
        if name in earlier.get("errors", {}):
            found[name], seconds[name] = earlier["errors"][name], earlier["seconds"][name]
            continue
        began = time.monotonic()
        logits = score()
        found[name] = [balanced(data, logits, counts, tau) for tau in (0.0, 1.0)]
        seconds[name] = time.monotonic() - began
    return {
        "set": data.name,
        "seed": seed,
        "rows": [len(data.train), len(data.test)],
        "classes": len(data.names),
        "counts": [int(data.counts.max()), int(data.counts.min())],
        **facts,
        "errors": found,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def gathered(out: Path) -> dict[str, Any]:
    """All measurements, by set."""
    found = defaultdict(list)
    for file in sorted(out.glob("*.json")):
        if file.name != "tables.json":
            one = json.loads(file.read_text(encoding="utf-8"))
            found[one["set"]].append(one)
    return dict(found)


HEADING = "Defaults on public data sets"
UNSEEN_HEADING = "Defaults on data sets that had no part in choosing them"
SEEN, UNSEEN = "tables.json", "unseen.json"
NEXT = "How often the intervals hold"


def section(found: dict[str, Any], lead: str) -> str:
    """A section of docs/results.md: adjusted balanced errors of all classifiers, set by set."""
    everyone = list(
        dict.fromkeys(n for runs in found.values() for one in runs for n in one["errors"])
    )
    rows = []
    columns: dict[str, list[float]] = {name: [] for name in everyone}
    for runs in found.values():
        errors = {
            name: np.array([one["errors"][name][1] for one in runs if name in one["errors"]])
            for name in everyone
        }
        means = {name: float(e.mean()) for name, e in errors.items() if len(e)}
        best = min(means.values())
        cells = []
        for name in everyone:
            if name not in means:
                cells.append("–")
                continue
            spread = f" ± {errors[name].std(ddof=1):.1f}" if len(errors[name]) > 1 else ""
            text = f"{means[name]:.1f}{spread}"
            cells.append(f"**{text}**" if means[name] == best else text)
        for name, value in means.items():
            columns[name].append(value)
        first = runs[0]
        chosen = sorted({one["network"] for one in runs})
        size = f"{first['rows'][0]:,} / {first['classes']} / {first['counts'][1]}"
        rows.append([first["set"], size, str(len(runs)), *cells, ", ".join(chosen)])
    everywhere = [name for name in everyone if len(columns[name]) == len(found)]
    means_row = [
        f"{np.mean(columns[name]):.1f}" if name in everywhere else "–" for name in everyone
    ]
    rows.append(["mean", "", "", *means_row, ""])
    header = ["set", "rows / classes / rarest", "n", *everyone, "chosen"]
    text = f"{markdown_table(header, rows)}\n\n{behind(found)}"
    return f"{lead}\n{text}\n"


def behind(found: dict[str, Any]) -> str:
    """The sets on which ours is over a point behind the best mean, in a sentence."""
    far = []
    for name, runs in found.items():
        means = {
            one: float(np.mean([run["errors"][one][1] for run in runs]))
            for one in runs[0]["errors"]
        }
        best = min(means, key=means.__getitem__)
        if means[OURS] - means[best] > 1:
            far.append(f"{name} ({means[OURS] - means[best]:.1f} points behind {best})")
    near = len(found) - len(far)
    reported = f"“{OURS}” is the best or within a point of it on {near} of {len(found)} sets."
    if not far:
        return reported
    return f"{reported} It is further behind on {', '.join(far)}."


LEAD = f"""The table has the balanced error on test in percent, adjusted to the uniform target
(τ = 1). It is the mean ± standard deviation over n seeds of split, profile and training
(`python -m benchmarks.results.tables`). “{OURS}” is the command with its default flags, and so with
`--network auto`. “Rows / classes / rarest” are the training rows, the classes and the rows of the
rarest class of the first seed. The lowest mean of a set is bold.

All classifiers get the same training rows. `training fit` sets its validation rows aside from
them. With texts, or with fewer than {FEW_ROWS:,} rows of other data, it then trains the chosen
network again on all. The classifiers of scikit-learn have their default settings, on standardised
and one-hot columns or on TF-IDF of words.
"""
UNSEEN_LEAD = """No default of `training fit` was chosen on the sets of this table
(`python -m benchmarks.results.tables --unseen`). It is otherwise like the table before it.
The networks that scale categories were added because `leaf` showed their lack (it was 9 points
behind logistic regression), so its row is not an independent test. Split words and rare words were
added because `sections` showed their lack in the same way (5.3 points behind linear SVC).
"""


def _absent(found: dict[str, Any]) -> str:
    """The sets that no default was chosen on and that have no results, in a sentence."""
    names = sorted(unseen_data.NAMES - set(found))
    listed = f"Not measured now: {', '.join(names)}."
    return f"\n{listed}\n" if names else ""


def _before(found: dict[str, Any]) -> str:
    """The sets of texts that were measured before split words were tried, in a sentence."""
    names = [
        name
        for name, runs in found.items()
        if name in TEXTS and not all(LATEST in one.get("tried", ()) for one in runs)
    ]
    return f"\nEarlier defaults for texts: {', '.join(names)}.\n" if names else ""


def _few(found: dict[str, Any]) -> str:
    """The sets with fewer than SEEDS seeds, in a sentence."""
    names = [f"{name} ({len(runs)})" for name, runs in found.items() if len(runs) < SEEDS]
    listed = f"Fewer than {SEEDS} seeds so far: {', '.join(names)}."
    return f"\n{listed}\n" if names else ""


def with_sections(page: str, docs: Path) -> str:
    """The page with the sections of the results in DOCS/results, if there are any."""
    for name, heading, lead in (
        (SEEN, HEADING, LEAD),
        (UNSEEN, UNSEEN_HEADING, UNSEEN_LEAD),
    ):
        file = docs / "results" / name
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            before = NEXT if f"\n## {NEXT}\n" in page else "Each setting"
            text = section(found, lead) + _few(found) + _before(found)
            text += _absent(found) if name == UNSEEN else ""
            page = spliced(page, heading, text, before=before)
    return page


def main() -> None:
    """Measure the missing sets and seeds, then gather all results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--docs", type=Path, help="put the section into DOCS/results.md")
    parser.add_argument(
        "--peers", type=Path, help="take scikit-learn's errors from this tables.json"
    )
    parser.add_argument(
        "--unseen", action="store_true", help="SETS holds the sets of benchmarks.sets.unseen_data"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="begin no further set after this many seconds",
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of solvers that stop early
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    known = {} if options.peers is None else json.loads(options.peers.read_text(encoding="utf-8"))
    for seed in range(options.seeds):
        for file in sorted(options.sets.glob("*.csv")):
            target = options.out / f"{file.stem}-{seed}.json"
            late = time.monotonic() - began > options.seconds
            if target.exists() or late or (options.only and file.stem not in options.only):
                continue
            same = [one for one in known.get(file.stem, []) if one["seed"] == seed]
            one = measured(file, seed, options.out, same[0] if same else {})
            target.write_text(json.dumps(one, indent=1) + "\n", encoding="utf-8")
            shown = {name: [round(e, 1) for e in both] for name, both in one["errors"].items()}
            print(file.stem, seed, one["network"], shown, one["seconds"], flush=True)
    found = gathered(options.out)
    text = json.dumps(found, indent=1) + "\n"
    (options.out / "tables.json").write_text(text, encoding="utf-8")
    if options.docs is not None:
        name = UNSEEN if options.unseen else SEEN
        (options.docs / "results" / name).write_text(text, encoding="utf-8")
        page = options.docs / "results.md"
        whole = with_sections(page.read_text(encoding="utf-8"), options.docs)
        page.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()
