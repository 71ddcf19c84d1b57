"""The service on Ray Serve: `serve run deploy.ray.app:app`, or `serve deploy` with serve.yaml.

Each replica is a whole Priordial with settings from its PRIORDIAL_* environment. The replicas share
a store, which carries priors and orders for models to all of them.
"""

import math
import os
import socket
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingContext
from ray.serve.context import _get_global_client
from ray.util import get_node_ip_address

from service.api.edge.access import check_exposure
from service.server.asgi import Application, Message, Receive, Send
from service.settings import read_settings

QUEUED_ROWS, TARGET = "queued_rows", "target_queued_rows"
DEFAULT_TARGET = 64
"""The number of queued rows for which one more replica is started."""


class Behind(Application):
    """The service behind Ray, which adds the header `X-Request-Id` to each answer by itself."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection; the request id of an answer is left to Ray."""

        async def without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [each for each in message["headers"] if each[0].lower() != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await super().__call__(scope, receive, without_id)


def build() -> Application:
    """Make the service of a replica, which also serves its metrics on a port of its own.

    `GET /metrics/targets` lists these ports for Prometheus. Without keys everything is bound to
    loopback; with keys the metrics are bound to the node's address. Raises ExposedWithoutKeys if
    there are no keys and Ray listens on more than loopback: Ray's proxy forwards every request
    from loopback, so the service itself could not tell.
    """
    settings = read_settings({}, os.environ)
    has_keys = settings.keys is not None or bool(settings.api_keys)
    check_exposure(_ray_host(), has_keys=has_keys, allow_anonymous=settings.allow_anonymous)
    host = get_node_ip_address() if has_keys else "127.0.0.1"
    return Behind(read_settings({"host": host, "metrics_port": _free_port(host)}, os.environ))


def _ray_host() -> str:
    """Return the address that Ray's proxies listen on; no public API states it."""
    host: str | None = _get_global_client().http_config.host
    return host or "0.0.0.0"  # noqa: S104 - unknown counts as all interfaces


def _free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        port: int = free.getsockname()[1]
        return port


def replicas_for_queued_rows(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Return how many replicas the queued rows need, within the configured bounds.

    Scaling up adds replicas until each has at most the target of queued rows. Scaling down removes
    one at a time, once no row is queued and the other replicas can take the requests in progress.
    Ray's controller runs this without the replicas' environment, so they report the target.
    """
    now = context.current_num_replicas
    reported = context.aggregated_metrics or {}
    rows, ongoing = sum(reported.get(QUEUED_ROWS, {}).values()), context.total_num_requests
    target = max(reported.get(TARGET, {}).values(), default=DEFAULT_TARGET)
    wanted = now
    if rows > target * now:
        wanted = math.ceil(rows / target)
    elif rows == 0 and ongoing < (now - 1) * target:
        wanted = now - 1
    low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return max(low, min(high, wanted)), {}


@serve.deployment(
    max_ongoing_requests=1024,  # well above --max-batch-rows, so that Ray lets batches fill
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=60,
)
@serve.ingress(build)
class Priordial:
    """A replica. Ray sends requests to `app`, the service as an ASGI application."""

    app: Application

    async def check_health(self) -> None:
        """Raise when the service hangs; Ray then replaces the replica."""
        fault = self.app.fault
        if fault is not None:
            raise RuntimeError(fault)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change settings in place, as `user_config` of the deployment says: see `Application`."""
        self.app.reconfigure(user_config)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the queued rows and their target to Ray, for `replicas_for_queued_rows`."""
        target = float(os.environ.get("TARGET_QUEUED_ROWS", DEFAULT_TARGET))
        return {QUEUED_ROWS: float(self.app.queued_rows), TARGET: target}


app = Priordial.bind()
