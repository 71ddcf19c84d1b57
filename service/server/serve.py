"""The `serve` verb: binds the port, then serves in this process or starts several that share it. Imports little."""

import socket

from service.observe import log as request_log
from service.observe.stderr import refuse
from service.settings import Settings


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    request_log.configure(settings.log_format)
    try:
        listener = _bind(settings)
    except OSError as error:
        return refuse(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    if settings.workers > 1:
        from service.server.supervisor import supervise

        return supervise(settings, listener)
    from service.server.serving import serve_alone

    return serve_alone(settings, listener)


def _bind(settings: Settings) -> socket.socket:
    """A socket that is bound and does not listen yet: until a worker is ready, connections are refused."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    return listener
