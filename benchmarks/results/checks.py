"""The evaluating parts of docs/results.md: expectations, and the comparison with an independent
implementation.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from benchmarks.results.other_figures import REFERENCE, REFERENCE_SOURCE
from benchmarks.results.text import Document, key, ns, spread, title
from benchmarks.results.variant_tables import Row, variants_of
from benchmarks.results.variants import HIDDEN_LAYER
from training.pages.page import markdown_table
from training.studies.numbers import interval_of_mean


def expectations(documents: Sequence[Document], variants: Sequence[Row] = ()) -> str:
    """Expectations from the paper and the independent figures, and whether they hold, by seed."""
    rows = []
    for document in documents:
        least = 9 if document["settings"]["imbalance_ratio"] >= 1000 else 2
        for method in ("post-hoc τ=1", "logit-adjusted"):
            gains = [-100 * each for each in document["methods"][method]["against_erm"]["each"]]
            text = f"ERM − {method} ≥ {least} points"
            rows.append(_check(document, text, gains, lambda g, low=least: g >= low))
        sgd, adam = (_of_norms(document, name, "spearman") for name in ("SGD", "Adam"))
        rows += [
            _check(document, f"‖w_y‖ and n_y, rank correlation {text}", found, holds, digits=2)
            for text, found, holds in (
                ("under SGD with momentum > 0.7", sgd, lambda r: r > 0.7),
                ("under Adam < 0", adam, lambda r: r < 0),
            )
        ]
        rows.append(_less_under_adam(document, sgd, adam))
        rows += _with_hidden_layer(document, variants)
    return (
        "The expectations come from the paper and from the independent implementation below. "
        "An expectation holds only if it holds for every seed.\n\n"
        + markdown_table(("setting", "expected", "each seed", "holds?"), rows)
    )


def _with_hidden_layer(document: Document, variants: Sequence[Row]) -> list[list[str]]:
    """The expectations for the network with a hidden layer before its last one."""
    return [
        _check(
            document,
            "the same with a hidden layer of 64: "
            f"{'SGD > 0.7' if name.startswith('SGD') else 'Adam < 0'}",
            [row["spearman"] for row in found],
            (lambda r: r > 0.7) if name.startswith("SGD") else (lambda r: r < 0),
            digits=2,
        )
        for name, found in variants_of(variants, HIDDEN_LAYER, *key(document)).items()
    ]


def _less_under_adam(document: Document, sgd: list[float], adam: list[float]) -> list[str]:
    """Differences of the rank correlations, with the 95 % interval of their mean."""
    less = [own - other for own, other in zip(sgd, adam, strict=True)]
    text = "‖w_y‖ and n_y, rank correlation lower under Adam than under SGD"
    row = _check(document, text, less, lambda r: r > 0, digits=2)
    interval = interval_of_mean(less)
    if interval is not None:
        row[2] += f"; mean {np.mean(less):.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
    return row


def _of_norms(document: Document, optimiser: str, key: str) -> list[float]:
    return [one["norms"][optimiser][key] for one in document["curves"]]


def _check(
    document: Document,
    text: str,
    values: list[float],
    holds: Callable[[float], bool],
    *,
    digits: int = 1,
) -> list[str]:
    kept = sum(holds(value) for value in values)
    verdict = "yes" if kept == len(values) else f"**no**: {kept} of {len(values)}"
    return [title(document), text, ", ".join(f"{value:.{digits}f}" for value in values), verdict]


def beside_reference(documents: Sequence[Document]) -> str:
    """Our figures minus the independent implementation's, and how much one run of ours varies."""
    rows = []
    for document in documents:
        theirs = REFERENCE.get(key(document), {})
        reach = reach_of_a_run(document, theirs)
        for name, reference in theirs.items():
            own = document["methods"].get(name)
            if own is None:
                continue
            ours = own["summary"]["balanced_error"]
            difference = 100 * ours["mean"] - reference
            gains = reference - theirs["erm"], 100 * own["against_erm"]["mean"]
            reported = [f"{points:+.1f}" for points in (difference, *gains)]
            verdict = "–" if reach is None else "no" if abs(difference) <= reach else "**yes**"
            reported.insert(1, "–" if reach is None else f"± {reach:.1f}")
            rows.append(
                [title(document), name, f"{reference:.1f}", spread(ours), *reported, verdict]
            )
    header = (
        "setting", "method", "theirs", f"ours ({ns(documents)})", "difference, points",
        "chance alone, 95 %", "against ERM, theirs", "against ERM, ours", "more than chance?",
    )  # fmt: skip
    return (
        f"“Theirs” is the balanced error in percent of {REFERENCE_SOURCE}. Its network, "
        "augmentation and length of training differ from ours.\n"
        "The order of the methods and the gains over ERM should therefore agree, but not the "
        "digits. The variation of their runs is not known.\n\n"
        "“Chance alone” is how far another run of *ours* may lie from our mean, with 95 % "
        "probability. Its standard deviation is pooled over\n"
        "the methods of a setting. The τ of their weight normalisation is not known, so its error "
        "is compared with both of ours.\n\n" + markdown_table(header, rows)
    )


def reach_of_a_run(document: Document, names: Mapping[str, float]) -> float | None:
    """Return how far one more run may be from the mean of a document's seeds, in points.

    This is half of the 95 % prediction interval. The standard deviation is pooled over the methods
    in `names`, since that of three seeds alone is too uncertain. Returns None for one seed.
    """
    spreads = [document["methods"][name]["summary"]["balanced_error"] for name in names
               if name in document["methods"]]  # fmt: skip
    if not spreads or spreads[0]["sd"] is None:
        return None
    n = spreads[0]["n"]
    sd = 100 * np.sqrt(np.mean([entry["sd"] ** 2 for entry in spreads]))
    return float(stats.t.ppf(0.975, len(spreads) * (n - 1)) * sd * np.sqrt(1 + 1 / n))
