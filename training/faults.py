"""The errors that a user can correct, each with its exit code, and the report of the command."""

import sys
from typing import ClassVar


def say(message: str) -> None:
    """Print a line on stderr for the user: a warning, or why the command stops."""
    print(f"training: {message}", file=sys.stderr)  # noqa: T201 - a command speaks


class Fault(Exception):
    """An error with a message for the user. The command prints it and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class WrongUse(Fault, ValueError):
    """Wrong use of a command: an unknown name, contradicting flags or a missing path."""

    exit_code = 2


class BadData(Fault, ValueError):
    """Data that cannot be used; the message names the file and the row."""


class RunFailed(Fault, RuntimeError):
    """A run did not finish; the message says what happened and what was kept."""
