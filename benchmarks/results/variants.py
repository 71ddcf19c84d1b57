"""Trains variants of settings that the comparison keeps fixed: Adam's learning rate and β₂, LDAM's
margin, the kind of weight normalisation, and others.

    python -m benchmarks.results.variants runs/variants.json --compared runs/exp100-5000 …

The variants in `VARIANTS` are trained on long-tailed Fashion-MNIST with the
comparison's recipe and three seeds. The scores of each finished run are added to the file, so the
same command resumes where it stopped. `--only adam` trains one group, `--most 8` at most 8 runs.
`--compared` names folders of finished comparisons, whose ERM runs are normalised in other ways.
`benchmarks.results.page` turns the file into tables of docs/results.md. A run takes about 30 s of
one core.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.contract.scores import balanced_error, error
from training.loop.processes import Processes
from training.run.recipe_file import make
from training.scores.posthoc import NORM_GRID, LastLayer, adjustment_curve, best_tau, norm_curve
from training.studies.compare import outcome_of, outcome_path
from training.studies.curves import norm_slope
from training.studies.methods import ADAM_RUN, RUNS
from training.studies.outcomes import Outcome, SplitOutputs

Run: TypeAlias = tuple[int, float, int]
"""Largest class, imbalance ratio, seed."""

SEEDS = range(3)
WIDE, STEEP, SMALL = (5000, 100.0), (5000, 1000.0), (500, 100.0)
"""(Largest class, imbalance ratio) of the comparisons."""
LDAM: Mapping[str, Any] = {"loss": "ldam"}
HIDDEN: Mapping[str, Any] = {"network": "cnn"}
ADAM, HIDDEN_LAYER = "adam", "hidden layer"
ON_NORMS = (ADAM, HIDDEN_LAYER)
"""Groups whose last layer is examined."""


@dataclass(frozen=True)
class Variant:
    """A change of the comparison's recipe, and the settings and seeds that it is trained with."""

    group: str
    name: str
    changes: Mapping[str, Any]
    runs: tuple[Run, ...]


def runs_in(*settings: tuple[int, float]) -> tuple[Run, ...]:
    """Every pair of one of these settings and a seed."""
    return tuple((*setting, seed) for seed in SEEDS for setting in settings)


EVERYWHERE = runs_in(WIDE, STEEP, SMALL)


def adam_name(rate: float, beta2: float) -> str:
    """The name of a training with Adam."""
    return f"Adam, rate {rate:g}, β₂ {beta2:g}"


def with_adam(
    group: str, rate: float, beta2: float, others: Mapping[str, Any] | None = None
) -> Variant:
    """The comparison's `erm-adam` with another learning rate and β₂, and with further changes."""
    changes = {**(others or {}), **RUNS[ADAM_RUN], "lr": rate, "adam_beta2": beta2}
    return Variant(group, adam_name(rate, beta2), changes, EVERYWHERE)


VARIANTS = (
    with_adam(ADAM, 0.01, 0.999),
    with_adam(ADAM, 0.03, 0.95),
    with_adam(ADAM, 0.03, 0.999),
    with_adam(ADAM, 0.1, 0.999),
    Variant(HIDDEN_LAYER, "SGD, rate 0.1", HIDDEN, EVERYWHERE),
    with_adam(HIDDEN_LAYER, 0.01, 0.95, HIDDEN),
    Variant(
        "ldam",
        "largest margin 0.3",
        LDAM | {"loss_options": {"drw": False, "max_margin": 0.3}},
        runs_in(STEEP),
    ),
    Variant(
        "ldam",
        "largest margin 0.8",
        LDAM | {"loss_options": {"drw": False, "max_margin": 0.8}},
        runs_in(STEEP),
    ),
    Variant("sampler", "without flips", {"sampler": "balanced", "augment": "none"}, runs_in(WIDE)),
    Variant("balanced", "in float32", {"loss": "balanced", "precision": "fp32"}, runs_in(STEEP)),
    Variant("balanced", "at a tenth of the rate", {"loss": "balanced", "lr": 0.01}, runs_in(STEEP)),
)
"""Each variant of `adam` differs in exactly one setting from the comparison or from another of the
group.
"""


def main() -> None:
    """Train the runs that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="where the scores are kept, as JSON")
    parser.add_argument(
        "--compared", nargs="*", type=Path, default=[], help="folders that `training compare` wrote"
    )
    parser.add_argument(
        "--only", help=f"one group: {', '.join(sorted({v.group for v in VARIANTS}))} (default all)"
    )
    parser.add_argument("--most", type=int, help="stop after this many runs (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(options.file.read_text(encoding="utf-8")) if options.file.exists() else []
    for folder in options.compared:
        found += [row for row in normalised(folder) if row not in found]
        keep(found, options.file)
    missing = [run for run in runs() if not any(same(run, row) for row in found)]
    missing = [run for run in missing if options.only in (None, run["group"])]
    for run in missing[: options.most]:
        found.append(run | trained(run))
        keep(found, options.file)
        print(found[-1], file=sys.stderr)


def keep(found: list[dict[str, Any]], path: Path) -> None:
    """Write the file."""
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def runs() -> Iterator[dict[str, Any]]:
    """Every run of VARIANTS, without its scores."""
    every = [(variant, *run) for variant in VARIANTS for run in variant.runs]
    for variant, largest, ratio, seed in sorted(every, key=lambda one: one[-1]):
        yield {
            "group": variant.group,
            "variant": variant.name,
            "max_per_class": largest,
            "imbalance_ratio": ratio,
            "seed": seed,
        }


def same(run: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a row of the file belongs to this run."""
    return all(row[key] == value for key, value in run.items())


def trained(run: Mapping[str, Any]) -> dict[str, Any]:
    """Train a run, and return its scores on the test split; errors are fractions."""
    changes = next(
        v.changes for v in VARIANTS if (v.group, v.name) == (run["group"], run["variant"])
    )
    keys = ("max_per_class", "imbalance_ratio", "seed")
    recipe = make("fashion-compare", {key: run[key] for key in keys})
    outcome = outcome_of(
        replace(recipe, **changes),
        checkpoint=None,
        keep_features=run["group"] in ON_NORMS,
        processes=Processes(torch.device("cpu")),
    )
    return scores(outcome)


def scores(outcome: Outcome) -> dict[str, Any]:
    """Balanced errors as trained, after post-hoc adjustment and after weight normalisation.

    They also say how norms follow counts.
    """
    test = outcome.test
    found: dict[str, Any] = {
        "balanced_error": plain_error(test),
        "post_hoc": adjustment_curve(
            test.logits, test.labels, log_source_prior=outcome.log_source_prior, grid=(1.0,)
        )[0][1],
        "seconds": outcome.seconds,
    }
    if outcome.val is not None:
        found["on_validation"] = plain_error(outcome.val)
    if outcome.layer is not None and test.features is not None:
        curve = norm_curve(outcome.layer, test.features, test.labels, grid=(1.0,))
        lengths = outcome.layer.norms
        found |= {
            "weight_norm": curve[0][1],
            "spearman": float(spearmanr(lengths, outcome.class_counts).statistic),
            "slope": norm_slope(lengths, outcome.class_counts),
            "norms": lengths.tolist(),
        }
    return found


def plain_error(part: SplitOutputs) -> float:
    """Balanced error without adjustment: the class of the largest logit is chosen."""
    return balanced_error(part.logits.argmax(axis=1), part.labels, part.logits.shape[1])


def normalised(folder: Path) -> list[dict[str, Any]]:
    """Rows for the ERM runs in a comparison's folder, with alternative weight normalisations."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    rows = []
    paths = {seed: outcome_path(folder, "erm", seed) for seed in SEEDS}
    for seed, path in paths.items():
        if not path.exists():
            continue
        outcome = Outcome.load(path)
        rows += [
            {
                "group": "weight-norm",
                "variant": name,
                "max_per_class": settings["max_per_class"],
                "imbalance_ratio": settings["imbalance_ratio"],
                "seed": seed,
                "balanced_error": found,
            }
            for name, found in normalisations(outcome, np.random.default_rng(seed)).items()
        ]
    return rows


def normalisations(outcome: Outcome, rng: np.random.Generator) -> dict[str, float]:
    """Balanced error on the test split, by kind of weight normalisation."""
    layer, val, test = outcome.layer, outcome.val, outcome.test
    assert layer is not None
    assert val is not None
    assert val.features is not None
    assert test.features is not None
    on_test = dict(norm_curve(layer, test.features, test.labels))
    tail = long_tailed(val.labels, outcome.class_counts, rng)
    features, labels = val.features[tail], val.labels[tail]
    errors = {
        tau: error(layer.normalised(tau).logits(features).argmax(axis=1), labels)
        for tau in NORM_GRID
    }
    kept = LastLayer(layer.normalised(1.0).weight, layer.bias).logits(test.features)
    return {
        **{f"τ = {tau:g}": on_test[tau] for tau in (0.5, 0.6, 0.7, 1.0)},
        "τ = 1, bias kept": balanced_error(kept.argmax(axis=1), test.labels, len(layer.bias)),
        "τ from a long-tailed validation split, by balanced error": on_test[
            best_tau(norm_curve(layer, features, labels))
        ],
        "τ from a long-tailed validation split, by error": on_test[
            min(errors, key=errors.__getitem__)
        ],
    }


def long_tailed(
    labels: NDArray[np.integer], class_counts: NDArray[np.integer], rng: np.random.Generator
) -> NDArray[np.intp]:
    """Rows of a balanced split whose class mix follows class_counts, at least one of each class."""
    found = []
    for index, count in enumerate(class_counts):
        own = np.flatnonzero(labels == index)
        wanted = max(1, round(len(own) * count / class_counts.max()))
        found.append(rng.permutation(own)[:wanted])
    return np.concatenate(found)


if __name__ == "__main__":
    main()
