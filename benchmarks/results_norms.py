"""The part of docs/results.md on the norms of the last layer, by optimiser and rate, from the file of benchmarks.variants."""

from collections.abc import Sequence

from benchmarks.results_networks import with_hidden_layer
from benchmarks.results_norm_table import HEADER, gain, norm_cells
from benchmarks.results_text import Document, key, title
from benchmarks.results_variants import Row, variants_of
from training.methods import ADAM_RATE
from training.page import markdown_table


def norms_under_adam(documents: Sequence[Document], rows: Sequence[Row]) -> str:
    """How norms follow counts, and what weight normalisation gains, by optimiser and rate."""
    by_setting = [(document, _trainings(document, rows)) for document in documents]
    lines = [
        [title(document), name, *norm_cells(found)]
        for document, trainings in by_setting
        for name, found in trainings
    ]
    return (
        "Rank correlation (Spearman) of the last layer's ‖w_y‖ with n_y, the slope b between their logarithms, and balanced errors on test:\n"
        "mean ± standard deviation over n seeds.\n\n"
        + markdown_table(HEADER, lines)
        + _on_norms([trainings for _, trainings in by_setting])
        + with_hidden_layer(documents, rows)
    )


def _trainings(document: Document, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """(name, its seeds): the compared SGD, then Adam by rate."""
    settings = document["settings"]
    length = f"{settings['steps']} steps"
    adam = {
        f"rate {settings['lr'] * ADAM_RATE:g}, {length}": _compared(document, "Adam"),
        **variants_of(rows, "adam", *key(document)),
    }
    return [
        (f"SGD, rate {settings['lr']:g}, {length}", _compared(document, "SGD")),
        *((f"Adam, {name}", adam[name]) for name in sorted(adam, key=_rate)),
    ]


def _rate(name: str) -> float:
    return float(name.split()[1].rstrip(","))


def _on_norms(by_setting: Sequence[Sequence[tuple[str, list[Row]]]]) -> str:
    """What the table says, in words; the first training of a setting is SGD's."""
    sgd = [row for trainings in by_setting for row in trainings[0][1]]
    adam = [row for trainings in by_setting for _, seeds in trainings[1:] for row in seeds]
    negative = sum(row["spearman"] < 0 for row in adam)
    everywhere = [
        name
        for name, _ in by_setting[0][1:]
        if all(
            row["spearman"] < 0
            for trainings in by_setting
            for own, seeds in trainings
            if own == name
            for row in seeds
        )
    ]
    return f"""
Under SGD a class's weights grow by the sum of its gradients, so by its examples: b is {_range(sgd, "slope")}, and the order is that of the counts. Adam divides the
gradient of each weight by that gradient's own size, and how far a class's weights move no longer follows how much gradient there was: b is {_range(adam, "slope")}, and
{negative} of {len(adam)} rank correlations are negative. Their sign goes with the rate: small rates leave a slightly positive b, large ones none or a negative one.
{f"Negative in every seed of every setting: {', '.join(everywhere)}." if everywhere else "On this network no rate made all of them negative."} With ten classes one of less than 0.65 in size cannot be told from none (5 %, two-sided). The paper says
“anti-correlated or independent”; this is nearer to independent. What it concludes does hold, at every rate: weight normalisation changes the balanced error
of an Adam run by {gain(adam, "weight_norm")} points on average (SGD: {gain(sgd, "weight_norm")}), post-hoc adjustment by {gain(adam, "post_hoc")} (SGD: {gain(sgd, "post_hoc")}).
"""


def _range(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{min(values):+.2f} to {max(values):+.2f}"


def _compared(document: Document, optimiser: str) -> list[Row]:
    """The seeds of a comparison as rows of benchmarks.variants."""
    run, sweeps = {"SGD": ("erm", "tau_erm"), "Adam": ("erm-adam", "tau_adam")}[optimiser]
    found: list[Row] = []
    for seed, curves in zip(document["seeds"], document["curves"], strict=True):
        at_one = {
            sweep: next(error for tau, error in curves[sweeps][f"{sweep} test"] if tau == 1)
            for sweep in ("weight-norm", "post-hoc")
        }
        found.append(
            {
                "spearman": curves["norms"][optimiser]["spearman"],
                "slope": curves["norms"][optimiser]["slope"],
                "balanced_error": document["methods"][run]["seeds"][str(seed)]["balanced_error"],
                "weight_norm": at_one["weight-norm"],
                "post_hoc": at_one["post-hoc"],
            }
        )
    return found
