"""Makes reports as self-contained HTML files, without scripts or external resources."""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_PIXELS_A_POINT = 1.4
"""The scale of drawings: it makes their 9.5-point type as high as the page's small type."""

_CSS = """
:root { color-scheme: light dark; --ink: #1d2939; --soft: #475467; --line: #eaecf0;
  --strong: #98a2b3; --paper: #fff; --tint: #ecfdf3; --code: #f2f4f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ec; --soft: #98a2b3; --line: #344054; --strong: #667085; --paper: #101828;
    --tint: #05372a; --code: #1d2939; }
  figure svg { filter: invert(1) hue-rotate(180deg); }
}
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  color: var(--ink); background: var(--paper);
  max-width: 1240px; margin: 2.5rem auto 5rem; padding: 0 1.25rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
.lead { color: var(--soft); margin: 0 0 1.2rem; max-width: 75ch; }
p { max-width: 80ch; }
figure { margin: 1.25rem 0 1.75rem; }
figure svg { width: 100%; height: auto; max-width: var(--w); min-width: min(var(--w), 600px);
  display: block; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 85ch; margin-top: .4rem; }
figcaption b { color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums;
  margin: .75rem 0; }
caption { caption-side: top; white-space: normal; max-width: 95ch; text-align: left;
  color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .3rem .42rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
.text { text-align: left; }
thead th { border-bottom: 1px solid var(--strong); font-weight: 600; white-space: normal;
  vertical-align: bottom; }
tr.best td { background: var(--tint); }
code { background: var(--code); padding: .1rem .3rem; border-radius: 3px; font-size: .88em; }
pre { background: var(--code); padding: .75rem 1rem; border-radius: 6px; overflow-x: auto;
  font-size: .85rem; }
pre code { padding: 0; background: none; }
@media print { body { margin: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Block:
    """A piece of the page as HTML."""

    html: str


def heading(text: str) -> Block:
    """Make the title of a section."""
    return Block(f"<h2>{html.escape(text)}</h2>")


def paragraph(text: str) -> Block:
    """Make a paragraph; text in backquotes becomes code."""
    return Block(f"<p>{_inline(text)}</p>")


def command(text: str) -> Block:
    """Make a block of shell lines to copy."""
    return Block(f"<pre><code>{html.escape(text)}</code></pre>")


def figure(svg: str, caption: str, *, name: str = "") -> Block:
    """Make a chart with a caption, which begins with `name` in bold.

    The chart is shown at the drawing's own width, so that all charts have type of one size. On a
    narrow screen it scrolls sideways before its type becomes too small to read. Raises ValueError
    unless `svg` is an <svg> element with a width in points.
    """
    points = re.search(r'<svg[^>]*\swidth="([\d.]+)pt"', svg)
    if points is None:
        raise ValueError("expected an <svg> element with a width in points")
    width = round(_PIXELS_A_POINT * float(points[1]))
    bold = f"<b>{html.escape(name)}</b> " if name else ""
    return Block(
        f'<figure style="--w:{width}px"><div class="scroll" tabindex="0">{svg}</div>'
        f"<figcaption>{bold}{_inline(caption)}</figcaption></figure>"
    )


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    best: int | None = None,
) -> Block:
    """Make a table with numbers aligned right and text left. Row number `best` is tinted."""
    rows = list(rows)
    kinds = ["" if number else " class=text" for number in _are_numbers(header, rows)]
    head = "".join(
        f"<th{kind}>{_inline(cell)}</th>" for cell, kind in zip(header, kinds, strict=True)
    )
    body = "".join(
        f"<tr{' class=best' if index == best else ''}>"
        + "".join(f"<td{kind}>{_inline(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for index, row in enumerate(rows)
    )
    over = f"<caption>{_inline(caption)}</caption>" if caption else ""
    return Block(
        f'<div class="scroll" tabindex="0"><table>{over}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def page(title: str, lead: str, blocks: Iterable[Block]) -> str:
    """Return the whole HTML document; `lead` is the text below the title."""
    body = "\n".join(block.html for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head>\n"
        f'<body><h1>{html.escape(title)}</h1><p class="lead">{_inline(lead)}</p>\n'
        f"{body}\n</body></html>\n"
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    rows = list(rows)
    rules = ["---:" if number else "---" for number in _are_numbers(header, rows)]
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join(rules)} |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def percent(value: float | None, *, digits: int = 1) -> str:
    """Format a fraction as a percentage without %, which the header has; None becomes –."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def mean_sd(values: Sequence[float], *, digits: int = 1) -> str:
    """Format fractions as 'mean ± sd' in percent; for one value, without sd."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return percent(mean, digits=digits)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return f"{percent(mean, digits=digits)} ± {percent(variance**0.5, digits=digits)}"


def _are_numbers(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Return for each column whether it holds numbers, or – for missing ones.

    The first column holds names.
    """
    starts = tuple("0123456789+-–*")
    return [
        column > 0 and all(row[column].startswith(starts) for row in rows)
        for column in range(len(header))
    ]


def _inline(text: str) -> str:
    parts = html.escape(text).split("`")
    return "".join(
        f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)
    )
