"""Writes the synthetic experiment's report: the paper's Figure 2, and why norms do not help."""

import json
from pathlib import Path

import numpy as np

from service.contract.adjustment import Vector
from training.pages import page
from training.pages.drawing import GREY, LIGHT, PALETTE, band, charts, label_axes, legend, svg
from training.run.provenance import made_by
from training.studies.synthetic import BAYES, RARE, STARTS, TAUS, Results, draw, summary

FIGURE_METHODS = ("erm", "adaptive", "equalised", "logit-adjusted", "post-hoc")
DRAWN_POINTS = 600
SMALLEST_EXCESS = 1e-3
"""The smallest excess over the Bayes error, in points, that the logarithmic axis shows."""
_DRAWN_AREA = 4.0


def write(results: Results, out: Path, *, command: str = "") -> None:
    """Write results.json, three SVG files, table.md and report.html into the folder `out`.

    command: the command line, for the report.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "errors": errors_figure(results),
        "separators": separators_figure(results),
        "tau": tau_figure(results),
    }
    for name, text in figures.items():
        (out / f"{name}.svg").write_text(text, encoding="utf-8")
    document = json.dumps(summary(results), ensure_ascii=False, indent=1) + "\n"
    (out / "results.json").write_text(document, encoding="utf-8")
    header, rows = error_rows(results)
    (out / "table.md").write_text(page.markdown_table(header, rows), encoding="utf-8")
    (out / "report.html").write_text(
        _report(results, figures, made=made_by(command)), encoding="utf-8"
    )


def error_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of the table of balanced errors, in %."""
    rows = [
        [
            name,
            page.mean_sd(errors.tolist(), digits=2),
            page.percent(float(errors.mean()) - BAYES, digits=2),
        ]
        for name, errors in results.errors.items()
    ]
    rows.append(["Bayes", page.percent(BAYES, digits=3), "0.00"])
    return ["method", "balanced error, %", "above Bayes, points"], rows


def errors_figure(results: Results) -> str:
    """Draw Fig. 2 left: the balanced error of each loss over the trials."""
    names = [*FIGURE_METHODS, *(n for n in results.errors if n not in FIGURE_METHODS)]
    figure, (axes,) = charts(width=8.2, height=4.2)
    # On a plain axis, losses that reach Bayes' error are thinner than a pixel beside the others.
    boxes = axes.boxplot(
        [np.maximum(100 * (results.errors[name] - BAYES), SMALLEST_EXCESS) for name in names],
        orientation="horizontal",
        patch_artist=True,
        widths=0.55,
        flierprops={"markersize": 3, "markeredgecolor": GREY},
        boxprops={"linewidth": 3},  # so that a box narrower than its median is seen
        medianprops={"color": "white", "linewidth": 1},
    )
    for patch, colour in zip(boxes["boxes"], PALETTE, strict=False):
        patch.set(facecolor=colour, edgecolor=colour)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(1, len(names) + 1), names)
    axes.invert_yaxis()
    x = f"balanced error above Bayes' {100 * BAYES:.3f} %, points (logarithmic)"
    label_axes(axes, x=x, y="method")
    return svg(figure, title="Balanced error of each loss on the synthetic problem")


def separators_figure(results: Results) -> str:
    """Draw Fig. 2 middle: the points of one trial and the mean separator of each loss."""
    figure, (axes,) = charts(width=6.0, height=4.2)
    x, labels = draw(DRAWN_POINTS, np.random.default_rng(0))
    for label, colour, name in ((0, "#98a2b3", "y = −1 (95 %)"), (1, "#d1480c", "y = +1 (5 %)")):
        own = x[labels == label]
        axes.scatter(own[:, 0], own[:, 1], s=7, color=colour, alpha=0.55, linewidths=0, label=name)
    edge = np.array([-_DRAWN_AREA, _DRAWN_AREA])
    # wide and pale, so that it shows below the lines that cover it
    axes.plot(edge, -edge, color=LIGHT, linewidth=6, solid_capstyle="butt", label="Bayes")
    for name, colour, dash in zip(
        FIGURE_METHODS, PALETTE, ("-", "-", "-", "-", (0, (3, 3))), strict=False
    ):
        axes.plot(
            edge,
            _separator(results.half_spaces[name], edge),
            color=colour,
            linestyle=dash,
            label=name,
        )
    axes.set(xlim=edge, ylim=edge, aspect="equal")
    legend(axes, loc="lower left", bbox_to_anchor=(1.0, 0.0))
    label_axes(axes, x="x₁ (no unit)", y="x₂ (no unit)")
    return svg(figure, title="Separators learnt by each loss")


def tau_figure(results: Results) -> str:
    """Draw Fig. 2 right: balanced error against tau, for adjustment and weight normalisation."""
    figure, (axes,) = charts(width=6.4, height=3.8)
    series = (
        ("post-hoc logit adjustment", results.tau_sweep, PALETTE[1]),
        ("weight normalisation, two weight vectors", results.norm_sweep, PALETTE[2]),
    )
    for name, sweep, colour in series:
        mean, sd = 100 * sweep.mean(axis=1), 100 * sweep.std(axis=1)
        axes.plot(TAUS, mean, color=colour, label=name)
        band(axes, TAUS, mean, sd, colour=colour)
    axes.axhline(100 * BAYES, color=GREY, linestyle="--", linewidth=1, label="Bayes")
    axes.set_ylim(bottom=0)
    legend(axes)
    label_axes(axes, x="τ (no unit)", y="balanced error, %")
    return svg(figure, title="Balanced error against tau on the synthetic problem")


def _separator(half_spaces: Vector, x: Vector) -> Vector:
    """Return x2 on the mean separator, w . x + b = 0, for values x of x1."""
    w1, w2, b = (half_spaces / np.linalg.norm(half_spaces[:, :2], axis=1, keepdims=True)).mean(0)
    line: Vector = -(w1 * x + b) / w2
    return line


def _report(results: Results, figures: dict[str, str], *, made: dict[str, str]) -> str:
    header, rows = error_rows(results)
    n = f"n = {results.n_train:,} training points a trial, {results.trials} trials"
    common, rare = results.negative_share.mean(axis=0)
    drift = results.norm_sweep.mean(axis=1)
    return page.page(
        "Synthetic experiment",
        f"x | y ~ N(y·(1, 1), I), P(y = +1) = {RARE:.0%}; affine classifiers; {n}. Errors are "
        "exact: the balanced error of "
        "a half-space has a closed form, so no test set adds noise.",
        [
            page.heading("Balanced error by loss"),
            page.table(header, rows, caption=f"mean ± sd; {n}"),
            page.figure(
                figures["errors"],
                f"Balanced error above Bayes' over {results.trials} trials, on a logarithmic axis "
                "(box: quartiles, whiskers: 1.5 IQR). A loss that is consistent "
                "for the balanced error reaches Bayes' 7.865 %; margins that depend on one of the "
                "two classes do not.",
                name="Figure 2, left.",
            ),
            page.figure(
                figures["separators"],
                f"Mean separator of each loss over {results.trials} trials, on {DRAWN_POINTS:,} "
                "points of one draw. Bayes' passes "
                "through the origin; post-hoc adjustment and the logit-adjusted loss lie on one "
                "another.",
                name="Figure 2, middle.",
            ),
            page.figure(
                figures["tau"],
                f"ERM adjusted afterwards (band: ± sd over {results.trials} trials; weight "
                f"normalisation: mean of {STARTS} "
                "random starts a trial).",
                name="Figure 2, right.",
            ),
            page.heading("Why weight normalisation does not help here"),
            page.paragraph(
                "A positive divisor changes no sign. With one separator (f₊ = −f₋) weight "
                "normalisation equals ERM at every τ; "
                f"with two weight vectors that started at random, {rare:.0%} of the points of the "
                "rare class (and "
                f"{common:.0%} of the common one's) have a negative logit for their own class, "
                "and the balanced error goes "
                f"from {drift[0]:.1%} at τ = 0 to {drift[-1]:.1%} at τ = {TAUS[-1]:g}."
            ),
            page.heading("How it was made"),
            page.table(("", "value"), [list(fact) for fact in made.items()]),
        ],
    )
