"""`python -m training`: see training.cli."""

import logging
import os
import sys

from training.cli import main as run


def main() -> None:
    """The console script."""
    status = run()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _end_now(status)
    sys.exit(status)


def _end_now(status: int) -> None:
    """End one of several processes without tearing torch down: on a busy machine that has ended in an abort, after all was done."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
