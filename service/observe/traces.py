"""Opens traces. OpenTelemetry's SDK is imported only when `--traces` is on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.observe.spans import Traces


class TracesUnavailable(RuntimeError):
    """`--traces` is on but cannot work; the message says what is missing."""


def open_traces(version: str) -> "Traces":
    """Open traces that name this version of the service. Raises TracesUnavailable."""
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
