"""`python -m service` on a machine whose wall clock jumps by the seconds in a file. For tests; not
part of the service.

    JUMP_FILE=path python -m tests.support.jumping_server serve --models …

The file holds seconds. The monotonic clocks go on, as they do on a real machine.
"""

import datetime as dt
import os
import sys
import time
from pathlib import Path

_REAL = time.time
_FILE = Path(os.environ["JUMP_FILE"])


def wall_time() -> float:
    """The wall clock, as far off as the file says."""
    return _REAL() + float(_FILE.read_text() or 0)


class Jumping(dt.datetime):
    """A datetime whose now() jumps."""

    @classmethod
    def now(cls, tz=None):
        """The moment that the wall clock shows."""
        return cls.fromtimestamp(wall_time(), tz)


time.time = wall_time
time.time_ns = lambda: int(wall_time() * 1e9)
dt.datetime = Jumping  # type: ignore[misc]

if __name__ == "__main__":
    from service.__main__ import main

    sys.exit(main())
