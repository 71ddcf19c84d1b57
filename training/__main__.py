"""`python -m training` and the command `training`."""

import os
import sys
from collections.abc import Sequence

from service.contract.extras import missing_extra


def run(arguments: Sequence[str] | None = None, *, prog: str = "training") -> int:
    """Run one verb. Returns 0 done, 2 wrong use, 1 failed.

    prog: the command's name in its help and its errors.
    """
    try:
        from training.commands.cli import main as run_verb

        status = run_verb(arguments, prog=prog)
    except ModuleNotFoundError as error:
        advice = missing_extra(error, first="training")
        if advice is None:
            raise
        print(f"{prog}: {advice}", file=sys.stderr)  # noqa: T201 - output of a command
        return 1
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from training.loop.processes import end_now

        end_now(status)
    return status


def main() -> None:
    """Entry point of the console script `training`."""
    sys.exit(run())


if __name__ == "__main__":
    main()
