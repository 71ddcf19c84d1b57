"""Builds the service and runs it, in its own processes or as an application of any ASGI server."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.server.asgi import Application
    from service.settings import Settings


def create_app(settings: "Settings | None" = None) -> "Application":
    """Return the service as an ASGI application with a lifespan, for any ASGI server.

    settings: None reads the PRIORDIAL_* environment variables; a wrong one raises InvalidSetting.
    Nothing is loaded until the server starts the lifespan.
    """
    from service.server.asgi import Application  # the package itself stays light for its processes

    return Application(settings)
