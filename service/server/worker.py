"""`python -m service.server.worker FD`: a worker process. FD is the socket to its supervisor."""

import socket
import sys

from service.graph.composer import start_early
from service.server.startup import ignore_signals, prepare_process


def main(arguments: list[str]) -> int:
    """Serve until a signal or the supervisor ends the process.

    Returns the exit status, one of service.process.exit_codes.
    """
    prepare_process()
    start_early()
    from service.process.exit_codes import DONE
    from service.server.link import Place

    line = socket.socket(fileno=int(arguments[0]))
    try:
        place = Place.read(line)
    except EOFError:
        return DONE
    from service.server.serving import serve_in_place
    from service.settings import read_settings

    return serve_in_place(read_settings(place.settings, {}), place, line)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    ignore_signals()
    sys.exit(status)
