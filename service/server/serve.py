"""The `serve` verb: binds the port, then serves in this process or starts several that share it.

The module imports little, so that the supervisor of several workers uses little memory.
"""

import logging
import socket

from service.graph.composer import start_early
from service.observe import log
from service.observe.log import refuse
from service.process.allowance import file_limit
from service.server.listener import bind
from service.settings import Settings

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns one of `service.process.exit_codes`."""
    log.configure(settings.log_format)
    limited = file_limit()
    if limited is not None:
        logger.warning("%s", limited)
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        advice = "choose another --host or --port, or end the process that uses it"
        if isinstance(error, socket.gaierror):
            advice = "expected an address of this machine or its name in --host"
        return refuse(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; {advice}"
        )
    if settings.workers > 1:
        from service.server.supervisor import supervise

        return supervise(settings, listener)
    start_early()  # before the import below, which takes half a second
    from service.server.serving import serve_alone

    return serve_alone(settings, listener)
