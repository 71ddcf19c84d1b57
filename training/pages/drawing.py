"""Draws figures as SVG text in one style, without a display."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from service.contract.adjustment import Vector

WIDTH = 6.4
HEIGHT = 4.0
GREY = "#667085"
LIGHT = "#d0d5dd"
PALETTE = (
    "#1b1b1f", "#0b6bcb", "#d1480c", "#1a7f4b", "#8b3fc7", "#b8860b",
    "#c2185b", "#00838f", "#6d4c41", "#5c6bc0", "#7cb342", "#ef6c00",
    "#546e7a", "#ad1457", "#2e7d32", "#9e9d24",
)  # fmt: skip
DASHES = ("-", "--", "-.", ":")
_STYLE: dict[
    Any, Any
] = {  # matplotlib's stubs list the allowed keys, and mypy does not accept a plain str for them
    "svg.fonttype": "none",
    "svg.hashsalt": "priordial",  # the same numbers give the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaecf0",
    "lines.linewidth": 1.6,
}


def charts(
    columns: int = 1, *, width: float = WIDTH, height: float = HEIGHT
) -> tuple[Figure, list[Axes]]:
    """Make a figure with `columns` axes side by side. width, height: in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def svg(figure: Figure, *, title: str) -> str:
    """Return the figure as an <svg> element; `title` is for screen readers."""
    out = io.StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # the page's reader draws the text, with whatever fonts there are
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = out.getvalue()
    element = text[text.index("<svg") :]
    head, _, body = element.partition(">")
    return f'{head} role="img" aria-label="{_escaped(title)}">{body}'


def label_axes(axes: Axes, *, x: str, y: str, title: str = "") -> None:
    """Label the axes, with units, and set the chart's title."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10, loc="left", color="#344054")


def legend(axes: Axes, **where: Any) -> None:
    """Add a small legend without a frame. where: arguments of matplotlib's `legend`."""
    axes.legend(frameon=False, fontsize=8.5, **where)


def legend_beside(axes: Axes, **where: Any) -> None:
    """Add the legend to the right of the chart."""
    legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0), **where)


def band(axes: Axes, x: Sequence[float], middle: Vector, spread: Vector, *, colour: str) -> None:
    """Draw a pale band of middle ± spread."""
    axes.fill_between(x, middle - spread, middle + spread, color=colour, alpha=0.15, linewidth=0)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
