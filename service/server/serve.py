"""The `serve` verb: binds the port, then serves in this process or starts several that share it.

It imports little, because the supervisor of several workers stays small.
"""

import contextlib
import socket

from service.observe import log
from service.observe.log import refuse
from service.settings import Settings


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    log.configure(settings.log_format)
    try:
        listener = _bind(settings)
    except OSError as error:
        return refuse(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another "
            "--host or --port, or end the process that has it"
        )
    if settings.workers > 1:
        from service.server.supervisor import supervise

        return supervise(settings, listener)
    from service.server.serving import serve_alone

    return serve_alone(settings, listener)


def _bind(settings: Settings) -> socket.socket:
    """Bind a socket. It does not listen yet: connections are refused until a worker is ready."""
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        with contextlib.suppress(OSError):  # `::` serves IPv4 too, where the system allows it
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((host, settings.port))
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
