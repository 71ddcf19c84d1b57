"""Builds the service and runs it: processes, sockets and signals, or inside any ASGI server."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.server.asgi import Application
    from service.settings import Settings


def create_app(settings: "Settings | None" = None) -> "Application":
    """Make the service as an ASGI application with lifespan, for any ASGI server.

    Without settings the PRIORDIAL_* environment variables are read. See `Application`.
    Raises InvalidSetting.
    """
    from service.server.asgi import Application  # the package itself stays light for its processes

    return Application(settings)
