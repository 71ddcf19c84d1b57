"""Writes a comparison to files: table.md, the figures as SVG, and report.html with both."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.pages import page
from training.studies import figures
from training.studies.figures import Document
from training.studies.methods import ADAM_RUN

HEADER = (
    "method",
    "balanced error, %",
    "against ERM, points [95 %]",
    "many, %",
    "medium, %",
    "few, %",
    "ECE, %",
    "ECE served, %",
    "NLL, nats",
    "NLL served, nats",
    "τ",
)


def write(document: Document, out: Path, *, made: Mapping[str, str]) -> None:
    """Write table.md, the figures and report.html into the folder `out`.

    made: how the report was made (date, command line, versions), by name.
    """
    drawn = draw(document)
    (out / "figures").mkdir(exist_ok=True)
    for name, text in drawn.items():
        (out / "figures" / f"{name}.svg").write_text(text + "\n", encoding="utf-8")
    rows = table_rows(document)
    lines = [page.markdown_table(HEADER, rows), f"{basis(document)}\n"]
    (out / "table.md").write_text("\n".join(lines), encoding="utf-8")
    (out / "report.html").write_text(report(document, drawn, rows, made=made), encoding="utf-8")


def draw(document: Document) -> dict[str, str]:
    """Draw the figures for which the comparison has runs; return {name: SVG}."""
    curves = document["curves"]
    possible: dict[str, tuple[bool, Callable[[Document], str]]] = {
        "overview": (True, figures.overview),
        "tau": (all("tau_erm" in one for one in curves), figures.tau_sweep),
        "classes": (True, figures.by_class),
        "groups": (True, figures.by_group),
        "norms": (all(one["norms"] for one in curves), figures.weight_norms),
        "reliability": (all(one["reliability"] for one in curves), figures.reliability),
        "shifted": (all("shifted" in one for one in curves), figures.shifted),
    }
    return {name: function(document) for name, (can, function) in possible.items() if can}


def table_rows(document: Document) -> list[list[str]]:
    """Return a row per method with HEADER's columns; percentages are mean ± sd over the seeds."""
    return [_row(name, method) for name, method in document["methods"].items()]


def text_table(document: Document) -> str:
    """Return the first columns of the table as lines of text."""
    rows = [row[:6] for row in table_rows(document)]
    widths = [max(len(row[i]) for row in [list(HEADER), *rows]) for i in range(6)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [list(HEADER[:6]), *rows]
    )


def sample(document: Document) -> str:
    """Return the number of seeds as text, such as 'n = 3 seeds'."""
    n = len(document["seeds"])
    return f"n = {n} seed{'s' * (n != 1)}"


def basis(document: Document) -> str:
    """Describe the data and settings behind the numbers, in one line."""
    n, seeds = document["data"]["n"], document["seeds"]
    sizes = ", ".join(f"{name} {size:,}" for name, size in n.items())
    return (
        f"{sample(document)} ({', '.join(map(str, seeds))}); examples: {sizes}. Mean ± standard "
        "deviation over the seeds; "
        "the difference to ERM is paired by seed, with a 95 % t interval. Temperature and τ are "
        "chosen on validation."
    )


def _row(name: str, method: Mapping[str, Any]) -> list[str]:
    summary = method["summary"]

    def spread(key: str, *, digits: int = 1) -> str:
        return _spread(summary.get(key), digits=digits, scale=100)

    difference = method["against_erm"]
    tau = summary.get("norm_tau", summary["tau"])["mean"]
    return [
        name,
        spread("balanced_error"),
        "–" if difference is None or name == "erm" else _difference(difference),
        spread("many"),
        spread("medium"),
        spread("few"),
        spread("ece"),
        spread("calibrated_ece"),
        _spread(summary.get("nll"), digits=3, scale=1),
        _spread(summary.get("calibrated_nll"), digits=3, scale=1),
        f"{tau:.2f}".rstrip("0").rstrip("."),
    ]


def _spread(entry: Mapping[str, Any] | None, *, digits: int, scale: float) -> str:
    if entry is None:
        return "–"
    mean = f"{scale * entry['mean']:.{digits}f}"
    return mean if entry["sd"] is None else f"{mean} ± {scale * entry['sd']:.{digits}f}"


def _difference(difference: Mapping[str, Any]) -> str:
    mean = f"{100 * difference['mean']:+.1f}"
    if difference["interval"] is None:
        return mean
    low, high = (100 * value for value in difference["interval"])
    return f"{mean} [{low:+.1f}, {high:+.1f}]"


def report(
    document: Document, drawn: Mapping[str, str], rows: list[list[str]], *, made: Mapping[str, str]
) -> str:
    """Return the HTML of report.html from the figures `drawn` and the table's rows.

    made: as in `write`.
    """
    data, n = document["data"], sample(document)
    test = f"{data['n']['test']:,} test examples"
    counts = data["class_counts"]
    ratio = f"imbalance ratio {max(counts) / min(counts):.0f}"
    best = min(
        range(len(rows)),
        key=lambda i: list(document["methods"].values())[i]["summary"]["balanced_error"]["mean"],
    )
    blocks = [
        page.heading("Balanced error of every method"),
        page.table(HEADER, rows, caption=basis(document), best=best),
        page.paragraph(
            "“Served” is after the temperature of the validation split and the whole adjustment "
            "to a uniform target: what a "
            "service would answer. The other ECE and NLL are of the method's own probabilities. "
            "Both are on the test split at "
            "a uniform target, 15 bins. The best mean is tinted."
        ),
    ]
    for name, (title, caption) in _captions(n, test).items():
        if name in drawn:
            blocks.append(page.figure(drawn[name], caption, name=title))
    if any("tau_erm" in one for one in document["curves"]):
        blocks += [page.heading("Oracle τ"), _oracle(document)]
    blocks += [
        page.heading("What each method is"),
        _legend(document),
        page.heading("Settings"),
        _settings(document),
        page.heading("How it was made"),
        page.table(("", "value"), [list(fact) for fact in {**made, **_origin(document)}.items()]),
    ]
    lead = (
        f"{data['spec']}, {len(counts)} classes, {ratio}, {data['n']['train']:,} training "
        "examples; "
        f"network {document['settings']['network']}; {n}; {test}."
    )
    return page.page("Comparison of methods for long-tailed data", lead, blocks)


def _captions(n: str, test: str) -> dict[str, tuple[str, str]]:
    return {
        "overview": (
            "Balanced error.",
            f"Each seed (pale), mean ± sd ({n}, {test}); the dashed line is ERM's mean.",
        ),
        "tau": (
            "Balanced error against τ (paper, Fig. 3).",
            (
                "Post-hoc logit adjustment and weight normalisation of the ERM run: test (solid, "
                f"band: ± sd, {n}, {test}) and "
                "validation (dotted), on which τ is chosen. Drawn up to τ = 2; `results.json` has "
                "0 … 4."
            ),
        ),
        "classes": (
            "Error by class (paper, Fig. 4).",
            f"Classes in order of their training examples, mean over {n}, {test}.",
        ),
        "groups": (
            "Many, medium, few (paper, Fig. 11).",
            f"Mean error of a group's classes ± sd, {n}, {test}.",
        ),
        "norms": (
            "Weight norms (paper, Fig. 1).",
            (
                f"‖w_y‖ of the last layer of the ERM runs, mean ± sd, {n}; Spearman's rank "
                "correlation with the training counts n_y, "
                "and the slope b between the logarithms of both: 0 when norms do not follow counts."
            ),
        ),
        "reliability": (
            "Reliability (uniform target).",
            (
                f"15 bins of confidence, pooled over {n}, {test}, weighted to a uniform class mix; "
                "bars: share of the examples. Bins with less than 0.05 % of the examples have no "
                "point."
            ),
        ),
        "shifted": (
            "Shifted test sets (LADE's protocol).",
            (
                "The ERM model, calibrated, on the test split resampled to a long tail in the "
                "training order (forward) or "
                "against it (backward), error with no adjustment, to a uniform target, to the "
                "true class mix and to the one that "
                "expectation maximisation estimates from the unlabelled test inputs. Mean, band "
                f"± sd, {n}."
            ),
        ),
    }


def _oracle(document: Document) -> page.Block:
    curves = document["curves"]
    rows = []
    for key, run in (("tau_erm", "SGD"), ("tau_adam", "Adam")):
        for name in ("post-hoc", "weight-norm"):
            found = [
                c[key]["oracle"][name] for c in curves if name in c.get(key, {}).get("oracle", {})
            ]
            if found:
                taus = ", ".join(f"{tau:g}" for tau, _ in found)
                rows.append([f"{name}, {run} (oracle)", page.mean_sd([e for _, e in found]), taus])
    return page.table(
        ["sweep", "balanced error, %", "τ of each seed"],
        rows,
        caption="The best τ chosen on the test split itself, as the paper's τ* is: "
        "a bound, not a result. "
        f"Mean ± sd, {sample(document)}.",
    )


def _legend(document: Document) -> page.Block:
    rows = [[name, method["run"], method["note"]] for name, method in document["methods"].items()]
    return page.table(["method", "training run", "what"], rows)


def _origin(document: Document) -> dict[str, str]:
    """Return which data the runs saw, and which seeds they had."""
    data = document["data"]
    return {
        "data": data["spec"],
        "data, sha256": str(data.get("sha256") or "–"),
        "seeds": ", ".join(map(str, document["seeds"])),
    }


def _settings(document: Document) -> page.Block:
    """Make the table of settings, without those that are unset or that no run used."""
    settings = dict(document["settings"])
    if settings.get("profile") is None:
        settings.pop("imbalance_ratio", None)
    if ADAM_RUN not in document["methods"]:
        settings.pop(ADAM_RUN, None)
    rows = [
        [f"`{key}`", f"`{value}`"] for key, value in settings.items() if value not in (None, [], {})
    ]
    return page.table(["setting", "value"], rows)
