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
        variable = next((v for k, v in _VARIABLES.items() if k in str(error)), "")
        raise TracesUnavailable(f"{variable}{error}") from None


_VARIABLES = {
    "max_queue_size": "OTEL_BSP_MAX_QUEUE_SIZE: ",
    "schedule_delay_millis": "OTEL_BSP_SCHEDULE_DELAY: ",
    "max_export_batch_size": "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: ",
}
"""The variables by the names that OpenTelemetry's own errors give them."""
