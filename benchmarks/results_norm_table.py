"""What the tables of docs/results.md on weight norms share."""

from collections.abc import Sequence

import numpy as np

from benchmarks.results_text import spread
from benchmarks.results_variants import Row, summary

HEADER = (
    "setting", "training", "n", "rank correlation, each seed", "b of ‖w_y‖ ∝ n_y^b",
    "ERM, %", "weight-norm τ=1, %", "post-hoc τ=1, %",
)  # fmt: skip


def norm_cells(found: Sequence[Row]) -> list[str]:
    """The cells from n on, of one training's seeds."""
    slopes = np.array([row["slope"] for row in found])
    slope = f"{slopes.mean():+.2f}" + (f" ± {slopes.std(ddof=1):.2f}" if len(found) > 1 else "")
    errors = [
        spread(summary(found, name)) for name in ("balanced_error", "weight_norm", "post_hoc")
    ]
    ranks = ", ".join(f"{row['spearman']:+.2f}" for row in found)
    return [str(len(found)), ranks, slope, *errors]


def gain(rows: Sequence[Row], name: str) -> str:
    """What a treatment changes in the balanced error, points, mean over rows."""
    return f"{100 * np.mean([row[name] - row['balanced_error'] for row in rows]):+.1f}"
