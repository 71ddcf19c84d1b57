"""The errors that a user can correct, each with its exit code, and the report of the command."""

import contextlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from service.contract.nearest import did_you_mean

MOST_CLASSES = 100_000
"""The most class names that an unknown one is compared with; this takes a second."""
SHOWN_CLASSES = 10
LONGEST = 300
"""Characters of another library's message that are shown."""
PARQUET = "a Parquet file"
OTHER_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file: run `git lfs pull` there"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "XML"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"BZh", "compressed by bzip2: unpack it"),
    (b"\xfd7zXZ", "compressed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it"),
    (b"PK\x03\x04", "a ZIP archive or a workbook: unpack it, or save it in the right form"),
    (b"\xd0\xcf\x11\xe0", "a workbook: save it in the right form"),
    (b"PAR1", PARQUET),
    (b"\x93NUMPY", "a single array"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF"),
)
"""The first bytes of files that are often taken for others, and what they are."""
ADDRESSES = ("http:/", "https:/", "s3:/", "gs:/", "hf:/", "file:/")
"""How the addresses of models and data begin once `Path` has made one slash of two."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_INSTALLED = ("site-packages", "dist-packages", f"python{sys.version_info[0]}.")
"""Parts of the paths of code that a user did not write."""


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


@contextlib.contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Name this file or folder in an OSError that names none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(place)
        raise


def is_address(path: Path) -> bool:
    """Whether a path is a URL."""
    return str(path).startswith(ADDRESSES)


def absent(path: Path) -> str:
    """Say why a path is not a file that can be read."""
    if is_address(path):
        return f"{path}: is an address; training reads files, so download it first"
    if path.is_dir():
        return f"{path}: is a folder; expected a file"
    return f"{path}: {'is not a regular file' if path.exists() else 'no such file'}"


def nearest_class(name: str, class_names: Sequence[str]) -> str:
    """The end of a message about an unknown class: the nearest name, or the first few."""
    near = did_you_mean(name, class_names, most=MOST_CLASSES)
    if near:
        return near
    more = f" … ({len(class_names)} classes)" if len(class_names) > SHOWN_CLASSES else ""
    return f"; expected one of {', '.join(class_names[:SHOWN_CLASSES])}{more}"


def instead(path: Path) -> str:
    """Say what lies in the place of a file that cannot be read, for the end of a message."""
    if not path.is_file():  # opening a pipe would wait for a writer
        return ""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return ""
    if not head:
        return " (the file is empty)"
    start = head.lstrip().lower()
    found = next((what for mark, what in OTHER_FILES if start.startswith(mark.lower())), None)
    if found == PARQUET and path.suffix.lower() == ".parquet":
        return ""
    return f" (it is {found})" if found else ""


def readable(error: BaseException) -> str:
    """A library's message without line breaks and bytes of the file that it could not read."""
    said = "".join(letter if letter.isprintable() else " " for letter in str(error))
    said = " ".join(said.split())
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} …"


def short(error: BaseException) -> str:
    """Describe an error of a user's code or of a library in one line: kind, message, file and line.

    If errors were raised from one another, the first one counts, because it has the reason. The
    file is the user's own, if the error passed through one. Otherwise it may be an error of this
    package, and the line names a new file with the traceback.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    try:
        lines = [_ANSI.sub("", line).strip() for line in str(error).splitlines()]
    except Exception:  # noqa: BLE001 - the message is made by the error's own code
        lines = []
    said = next((line for line in lines if line and not line.startswith(("#", "="))), "")
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        said = f"exit code {said or 0}"
    if isinstance(error, SyntaxError):  # its place follows
        said = error.msg
    if len(said) > LONGEST:
        said = f"{said[:LONGEST]} …"
    kind = type(error).__name__
    return (f"{kind}: {said}" if said else kind) + _place_of(error)


def _place_of(error: BaseException) -> str:
    """Return where the user's own code failed, in brackets; "" for errors of other code."""
    own = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, "<"))
        and not any(part in frame.filename for part in _INSTALLED)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    if frames:
        return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return _kept_traceback(error)


def _kept_traceback(error: BaseException) -> str:
    """Write the traceback of an error to a new file; return the end of a message that names it."""
    if isinstance(error, (OSError, MemoryError, SystemExit)):  # their messages are enough
        return ""
    try:
        handle, path = tempfile.mkstemp(prefix="training-", suffix=".txt")
    except OSError:
        return ""
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(traceback.format_exception(error))
    return f" (traceback: {path})"
