"""What the verbs write to the terminal in addition to their results."""

import errno
import sys


def tell(line: str) -> None:
    """Write a line for the user to stderr; standard output is for results."""
    sys.stderr.write(line + "\n")


def reason_of(error: Exception, *, place: str | None = None) -> str:
    """Return why a verb failed, as text; for an error of the operating system, also what to do.

    place: the path to name if the error names no file.
    """
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    file = "".join(f"{name}: " for name in (error.filename or place,) if name)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{file}{error.strerror}; make room, or name another place"
    return f"{file}{error.strerror}; name another path, or change who may use this one"
