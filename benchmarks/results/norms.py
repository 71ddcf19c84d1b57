"""The part of docs/results.md on the norms of the last layer, by optimiser, learning rate and β₂.

It reads the file that benchmarks.results.variants writes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.results.text import Document, key, spread, title
from benchmarks.results.variant_tables import Row, summary, variants_of
from benchmarks.results.variants import ADAM, HIDDEN_LAYER, adam_name
from training.pages.page import markdown_table
from training.run.recipe import Recipe
from training.studies.methods import ADAM_RUN

SURE = -0.65
"""For ten classes: a rank correlation closer to 0 is not significant (5 %, two-sided)."""
HEADER = (
    "setting", "training", "rank correlation, each seed", "b of ‖w_y‖ ∝ n_y^b",
    "ERM on validation, %", "ERM, %", "weight-norm τ=1, %", "post-hoc τ=1, %",
)  # fmt: skip
OVER_ALL = (
    "training", "runs", "rank correlation, mean", "above 0.7", "below 0", f"{SURE:g} or less",
    "weight-norm τ=1, points", "post-hoc τ=1, points",
)  # fmt: skip


def norms_under_adam(documents: Sequence[Document], rows: Sequence[Row]) -> str:
    """How norms follow counts, and what weight normalisation gains, by optimiser, learning rate and
    β₂.
    """
    by_setting = [(document, _trainings(document, rows)) for document in documents]
    everywhere: dict[str, list[Row]] = {}
    for _, trainings in by_setting:
        for name, found in trainings.items():
            everywhere.setdefault(name, []).extend(found)
    lines = [
        [title(document), name, *_cells(found)]
        for document, trainings in by_setting
        for name, found in trainings.items()
    ]
    return (
        "‖w_y‖ is the norm of the last layer's weights of class y, and n_y the number of the "
        "class's training examples. The table has\n"
        "their rank correlation (Spearman) over all settings and seeds. Its last two columns show "
        "by how many points two corrections\n"
        "change the balanced error on test.\n\n"
        + markdown_table(
            OVER_ALL, [[name, *_over_all(found)] for name, found in everywhere.items()]
        )
        + _in_words(documents[0], everywhere)
        + _of_the_choice([trainings for _, trainings in by_setting])
        + "\nThe next table has the same by setting. b is the slope of log ‖w_y‖ against log n_y. "
        "Errors are balanced errors on test,\n"
        "unless the column names validation: mean ± standard deviation over the seeds.\n\n"
        + markdown_table(HEADER, lines)
    )


def _trainings(document: Document, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs of each training, by its name.

    First the compared SGD and Adam, then Adam with other settings, then the network with a hidden
    layer.
    """
    settings = document["settings"]
    hidden = variants_of(rows, HIDDEN_LAYER, *key(document))
    return {
        f"SGD, rate {settings['lr']:g}": _compared(document, "SGD"),
        _name_of_adam(document): _compared(document, "Adam"),
        **variants_of(rows, ADAM, *key(document)),
        **{f"{name}, hidden layer": found for name, found in hidden.items()},
    }


def _name_of_adam(document: Document) -> str:
    own = document["settings"][ADAM_RUN]
    return f"{adam_name(own['lr'], own['adam_beta2'])} (compared)"


def _cells(found: Sequence[Row]) -> list[str]:
    """The table cells of one training's seeds in one setting."""
    slopes = np.array([row["slope"] for row in found])
    slope = f"{slopes.mean():+.2f}" + (f" ± {slopes.std(ddof=1):.2f}" if len(found) > 1 else "")
    names = ("on_validation", "balanced_error", "weight_norm", "post_hoc")
    ranks = ", ".join(f"{row['spearman']:+.2f}" for row in found)
    return [ranks, slope, *(spread(summary(found, name)) for name in names)]


def _over_all(found: Sequence[Row]) -> list[str]:
    """The table cells of one training's runs in all settings."""
    ranks = np.array([row["spearman"] for row in found])
    counts = (len(ranks), np.sum(ranks > 0.7), np.sum(ranks < 0), np.sum(ranks <= SURE))
    total, *shares = (str(count) for count in counts)
    gains = (f"{_gain(found, name):+.1f}" for name in ("weight_norm", "post_hoc"))
    return [total, f"{ranks.mean():+.2f}", *shares, *gains]


def _gain(rows: Sequence[Row], name: str) -> float:
    """Return by how many points a treatment changes the balanced error, as a mean over rows."""
    return 100 * float(np.mean([row[name] - row["balanced_error"] for row in rows]))


def _in_words(document: Document, everywhere: Mapping[str, Sequence[Row]]) -> str:
    """The conclusions from the table of all settings, as text."""
    steps, adam = document["settings"]["steps"], document["settings"][ADAM_RUN]
    own = _memory(adam["adam_beta2"])
    under_adam = [name for name in everywhere if name.startswith("Adam")]
    always = [name for name in under_adam if all(row["spearman"] < 0 for row in everywhere[name])]
    helped = {
        score: [name for name, found in everywhere.items() if _gain(found, score) < 0]
        for score in ("weight_norm", "post_hoc")
    }
    compared = everywhere[_name_of_adam(document)]
    far = sum(row["spearman"] <= SURE for row in compared)
    mixed = 0 < len(always) < len(under_adam)
    hidden = any("hidden layer" in name for name in everywhere)
    which = ". Which of the two it is depends on learning rate and β₂" if mixed else ""
    network = (
        "“Hidden layer” is the network `cnn`, which has 64 hidden units before its last layer."
    )
    by_norm = helped["weight_norm"]
    return f"""
Under SGD, a class's weights grow by the sum of its gradients, and so with its examples. Adam
divides each step by the size of recent gradients. It remembers them for about 1 / (1 − β₂) steps:
{own:,} of a run's {steps:,} in the comparison, and {_memory(Recipe.adam_beta2):,} with the default
β₂ of {Recipe.adam_beta2:g}. With the long memory, the large gradients of a rare class's few
examples keep its many other steps small. A short memory does not.

Norms fall as counts rise in every run of these trainings with Adam: {"; ".join(always) or "none"}.
The paper calls the two “anti-correlated or independent”{which}. With ten classes, a correlation
between {SURE:.2f} and {-SURE:.2f} is not significant (5 %, two-sided). Of the {len(compared)}
compared runs with Adam, {far} are at {SURE:.2f} or below. {network if hidden else ""}

Post-hoc adjustment lowers the mean error in {len(helped["post_hoc"])} of {len(everywhere)}
trainings. Weight normalisation with τ = 1 does so in {len(by_norm)}{_listed(by_norm)}.
"""


def _memory(beta2: float) -> int:
    """The number of steps over which Adam averages squared gradients."""
    return round(1 / (1 - beta2))


def _listed(names: Sequence[str]) -> str:
    return f" ({'; '.join(names)})" if names else ""


def _of_the_choice(by_setting: Sequence[Mapping[str, Sequence[Row]]]) -> str:
    """How the comparison's learning rate and β₂ were chosen, and the best alternative on
    validation.
    """
    compared, *others = [
        name
        for name in by_setting[0]
        if name.startswith("Adam")
        and "hidden layer" not in name
        and all(name in own for own in by_setting)
    ]
    if not others:
        return ""

    def errors(name: str, score: str) -> list[float]:
        return [100 * float(np.mean([row[score] for row in own[name]])) for own in by_setting]

    best = min(others, key=lambda name: float(np.mean(errors(name, "on_validation"))))
    val, test = (
        [", ".join(f"{error:.1f}" for error in errors(name, score)) for name in (compared, best)]
        for score in ("on_validation", "post_hoc")
    )
    return f"""
Learning rate and β₂ of the compared Adam were chosen on these settings and seeds, with their norms
known. The sign of its correlation is therefore not an independent test of the paper's claim. Of the
other trainings with Adam, {best} has the lowest error on validation: {val[1]} % in the settings'
order, against {val[0]} % of the compared one. After post-hoc adjustment, the errors on test are
{test[1]} % and {test[0]} %.
"""


def _compared(document: Document, optimiser: str) -> list[Row]:
    """The seeds of a comparison, as rows of benchmarks.results.variants."""
    run, sweeps = {"SGD": ("erm", "tau_erm"), "Adam": (ADAM_RUN, "tau_adam")}[optimiser]
    found: list[Row] = []
    for seed, curves in zip(document["seeds"], document["curves"], strict=True):
        sweep = {name: dict(map(tuple, curve)) for name, curve in curves[sweeps].items()
                 if name != "oracle"}  # fmt: skip
        found.append(
            {
                "spearman": curves["norms"][optimiser]["spearman"],
                "slope": curves["norms"][optimiser]["slope"],
                "on_validation": sweep["post-hoc val"][0.0],
                "balanced_error": document["methods"][run]["seeds"][str(seed)]["balanced_error"],
                "weight_norm": sweep["weight-norm test"][1.0],
                "post_hoc": sweep["post-hoc test"][1.0],
            }
        )
    return found
