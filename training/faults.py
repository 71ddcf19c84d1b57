"""What can be wrong before or during a run, the exit code of each, and how the command speaks of it."""

import sys


def say(message: str) -> None:
    """A line for people, on stderr: a warning, or why the command stops."""
    print(f"training: {message}", file=sys.stderr)  # noqa: T201 - a command speaks


class WrongUse(ValueError):
    """The command cannot be meant: an unknown name, flags that contradict each other, a path that is not there."""

    exit_code = 2


class BadData(ValueError):
    """Data that is wrong; the message names the file and the row. No run starts on it."""

    exit_code = 1


class RunFailed(RuntimeError):
    """A run that could not be brought to its end; the message says what happened and what is left."""

    exit_code = 1
