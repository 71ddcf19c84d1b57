"""`python -m training`: see training.commands.cli."""

import os
import sys

from training.commands.cli import main as run


def main() -> None:
    """The console script."""
    status = run()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from training.loop.processes import end_now

        end_now(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
