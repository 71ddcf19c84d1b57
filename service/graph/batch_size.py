"""How large a batch is worth waiting for."""

from collections.abc import Mapping

WORTH_SECONDS = 5e-3
"""A graph call shorter than this is never made smaller: its rows come and go quickly, and measurements of it are rough."""
_TOLERANCE = 1.05


def efficient_rows(cost_seconds: Mapping[int, float]) -> int:
    """The smallest measured batch size that takes 5 ms and whose cost a row is within 5 % of the least; else the largest.

    A larger batch would save nothing, and would leave the session idle: while the answers of a batch that held
    everybody's rows travel to the callers and their next rows come back, there is nothing to run.
    cost_seconds: of a call, by its rows.
    """
    least = min(seconds / rows for rows, seconds in cost_seconds.items())
    worth = [
        rows
        for rows, seconds in cost_seconds.items()
        if seconds >= WORTH_SECONDS and seconds / rows <= _TOLERANCE * least
    ]
    return min(worth, default=max(cost_seconds))
