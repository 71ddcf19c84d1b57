"""What the verbs write to the terminal beside their results."""

import sys


def tell(line: str) -> None:
    """Write a line for the user to stderr; standard output is for results."""
    sys.stderr.write(line + "\n")


def unusable_file(error: OSError) -> str:
    """Return the line for a file of the command line that cannot be read or written."""
    file = "" if error.filename is None else f"{error.filename}: "
    return f"error: {file}{error.strerror}; name another file, or change who may use this one"
