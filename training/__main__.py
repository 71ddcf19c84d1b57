"""`python -m training`: see training.cli."""

import sys

from training.cli import main as run


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
