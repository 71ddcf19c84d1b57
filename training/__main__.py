"""`python -m training` and the command `training`."""

import os
import signal
import sys
from collections.abc import Sequence

from service.contract.extras import missing_extra
from service.contract.resources import CLOSED, open_standard_streams
from training.loop import interrupt


def run(
    arguments: Sequence[str] | None = None, *, prog: str = "training", alone: bool = False
) -> int:
    """Run one verb. Returns 0 done, 2 wrong use, 1 failed or stopped by Ctrl-C.

    arguments: by default those of the process. prog: the command's name in its help and its errors.
    alone: whether the process does nothing else, so that Ctrl-C has no effect after the verb.
    """
    own = alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if own:
        signal.signal(signal.SIGINT, interrupt.stop)
    try:
        status = _run(arguments, prog)
    except KeyboardInterrupt:  # while the verb was imported, or a second one
        print(f"{prog}: stopped", file=sys.stderr)  # noqa: T201 - output of a command
        status = 1
    if own:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from training.loop.processes import end_now

        end_now(status)
    return status


def _run(arguments: Sequence[str] | None, prog: str) -> int:
    if not open_standard_streams():
        print(f"{prog}: {CLOSED}", file=sys.stderr)  # noqa: T201 - output of a command
        return 1
    try:
        from training.commands.cli import main as run_verb

        return run_verb(arguments, prog=prog)
    except ModuleNotFoundError as error:
        advice = missing_extra(error, first="training")
        if advice is None:
            raise
        print(f"{prog}: {advice}", file=sys.stderr)  # noqa: T201 - output of a command
        return 1


def main() -> None:
    """Entry point of the console script `training`."""
    sys.exit(run(alone=True))


if __name__ == "__main__":
    main()
