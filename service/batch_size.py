"""How large a batch is worth waiting for."""

from collections.abc import Mapping

_TOLERANCE = 1.05


def efficient_rows(cost_seconds: Mapping[int, float]) -> int:
    """The smallest measured batch size whose cost a row is within 5 % of the least. cost_seconds: of a call, by its rows.

    A larger batch would save nothing, and would leave the session idle: while the answers of a batch that held
    everybody's rows travel to the callers and their next rows come back, there is nothing to run.
    """
    least = min(seconds / rows for rows, seconds in cost_seconds.items())
    return min(
        rows for rows, seconds in cost_seconds.items() if seconds / rows <= _TOLERANCE * least
    )
