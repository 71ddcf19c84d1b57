"""Traces where they are asked for: the one way to open_telemetry.py, so that without them nothing of OpenTelemetry's SDK is loaded."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.observe.spans import Traces


class TracesUnavailable(RuntimeError):
    """Traces were asked for and cannot be made; the message says what is missing."""


def open_traces(version: str) -> "Traces":
    """Traces that say which version of the service made them. Raises TracesUnavailable."""
    try:
        from service.observe.spans import Traces
    except ImportError as error:
        raise TracesUnavailable(
            f"--traces needs OpenTelemetry ({error}): pip install 'priordial[traces]'"
        ) from None
    try:
        return Traces(version=version)
    except ValueError as error:
        raise TracesUnavailable(str(error)) from None
