"""The socket that all workers of a service share, and its URL."""

import contextlib
import socket

from service.process.machine import PortTaken


def bind(host: str, port: int) -> socket.socket:
    """Bind a TCP socket; `[::1]` and `::1` both mean IPv6. Raises OSError if it cannot be bound.

    The socket does not listen yet, so connections are refused until a worker is ready.
    """
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        with contextlib.suppress(OSError):  # `::` serves IPv4 too, where the system allows it
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def check_free(host: str, port: int) -> None:
    """Raise OSError if another process listens on a port that the workers are going to share.

    They share it by SO_REUSEPORT, with which the system would let a second service share it, too.
    """
    bind(host, port).close()


def listen(listener: socket.socket, backlog: int) -> None:
    """Start listening. backlog: the most connections that may wait to be accepted.

    Raises PortTaken if another process listens on the port. Two services can both bind a port while
    neither listens, for instance while both load their models.
    """
    try:
        listener.listen(backlog)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise PortTaken(host, port, error) from None


def url_of(listener: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
