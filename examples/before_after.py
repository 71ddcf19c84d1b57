"""Draws docs/before-after.svg: errors of the shipped model, before and after the adjustment.

The numbers are those of models/fashion/2/report.json, on 1,000 test images of each class.
"""

import json
from pathlib import Path

CLASSES = ("t-shirt", "shirt", "bag", "ankle boot")
LEFT, BAR, WIDTH = 160, 4.6, 640
STYLE = """
    text { font: 14px system-ui, sans-serif; fill: #24292f; }
    .title { font-weight: 600; } .small { font-size: 12px; fill: #57606a; }
    .before { fill: #c9ccd1; } .after { fill: #2f6feb; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; } .small { fill: #9198a1; } .before { fill: #565d66; }
    }"""


def errors(report: dict, tau: str) -> dict[str, float]:
    """Percent of wrong answers for each of CLASSES and for all classes, at this tau."""
    names, confusion = report["class_names"], report["at_tau"][tau]["confusion"]
    found = {name: 100 * (1 - confusion[i][i] / sum(confusion[i])) for i, name in enumerate(names)}
    return {name: found[name] for name in CLASSES} | {
        "all ten classes": 100 * report["test"]["at_tau"][tau]["balanced_error"]
    }


def picture(report: dict) -> str:
    """The picture as SVG."""
    before, after = errors(report, "0"), errors(report, "1")
    counts = dict(zip(report["class_names"], report["class_counts"], strict=True))
    rows, y = [], 58
    for name in before:
        for error, kind in ((before[name], "before"), (after[name], "after")):
            rows.append(
                f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{error * BAR:.1f}" height="14"/>'
                f'<text x="{LEFT + error * BAR + 6:.1f}" y="{y + 12}">{error:.1f} %</text>'
            )
            y += 16
        label = f"{name} ({counts[name]:,})" if name in counts else name
        rows.append(f'<text x="{LEFT - 10}" y="{y - 12}" text-anchor="end">{label}</text>')
        y += 12
    head = (
        '<text class="title" x="10" y="22">'
        "Wrong answers of one model, before and after it is told the class mix</text>"
        '<rect class="before" x="10" y="32" width="12" height="12"/>'
        '<text class="small" x="28" y="42">'
        "before: as trained on 5,000 t-shirts, 232 shirts, …</text>"
        '<rect class="after" x="360" y="32" width="12" height="12"/>'
        '<text class="small" x="378" y="42">after: told that all classes are equally likely</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" '
        'aria-label="Errors before and after the adjustment">\n'
        f"  <style>{STYLE}\n  </style>\n  {head}\n  " + "\n  ".join(rows) + "\n</svg>\n"
    )


if __name__ == "__main__":
    reported = json.loads(Path("models/fashion/2/report.json").read_text(encoding="utf-8"))
    Path("docs/before-after.svg").write_text(picture(reported), encoding="utf-8")
    print("wrote docs/before-after.svg")
