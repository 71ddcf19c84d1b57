"""The `serve` verb: binds the port, then serves in this process or starts several that share it.

The module imports little, so that the supervisor of several workers uses little memory.
"""

import logging

from service.graph.composer import start_early
from service.observe import log
from service.observe.log import refuse
from service.process.allowance import file_limit, too_few_files
from service.process.listener import bind, check_free
from service.process.machine import PortTaken
from service.server.startup import ignore_signals
from service.settings import Settings

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns one of `service.process.exit_codes`."""
    status = _serve(settings)
    ignore_signals()
    return status


def _serve(settings: Settings) -> int:
    log.configure(settings.log_format)
    too_few = too_few_files()
    if too_few is not None:
        return refuse(too_few)
    limited = file_limit()
    if limited is not None:
        logger.warning("%s", limited)
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        return refuse(f"{PortTaken(settings.host, settings.port, error)}")
    shared = {"--metrics-port": settings.metrics_port, "--grpc-port": settings.grpc_port}
    for flag, port in shared.items():
        try:
            check_free(settings.host, port)  # 0: any free one
        except OSError as error:
            return refuse(f"{PortTaken(settings.host, port, error, flag=flag)}")
    if settings.workers > 1:
        from service.server.supervisor import supervise

        return supervise(settings, listener)
    start_early()  # before the import below, which takes half a second
    from service.server.serving import serve_alone

    return serve_alone(settings, listener)
