"""`python -m service.server.worker FD`: one of several serving processes, started by the supervisor at the other end of FD."""

import socket
import sys
from contextlib import suppress

from service.server.link import Place
from service.settings import read_settings


def main(arguments: list[str]) -> int:
    """Serve until told to end. Exit 0 told to, 1 refused to start, 70 hung."""
    line = socket.socket(fileno=int(arguments[0]))
    with suppress(EOFError):
        place = Place.read(line)
        from service.server.serving import serve_in_place

        return serve_in_place(read_settings(place.settings, {}), place, line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
