"""Finds the lines of a file of JSON lines that cannot be read as a table."""

import json
from pathlib import Path
from typing import Any

from training.faults import BadData


def check_json_lines(path: Path) -> None:
    """Raise BadData for the first line that is not a JSON object, or has a value of another kind.

    The file must be UTF-8.
    """
    kinds: dict[str, tuple[str, int]] = {}
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                _check(f"{path}, line {number}", line, kinds, number)


def check_json_line(where: str, line: bytes) -> None:
    """Raise BadData, which begins with `where`, if a line by itself is not a JSON object."""
    try:
        text = line.decode().rstrip()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x}"
        raise BadData(f"{where}: {byte} is not UTF-8; save the file as UTF-8") from None
    _check(where, text, {}, 1)


def _check(where: str, line: str, kinds: dict[str, tuple[str, int]], number: int) -> None:
    """Raise BadData unless a line is a JSON object with members of the kinds of those before it.

    kinds: the kind of each member, and the line that showed it; gets those of this line.
    """
    try:
        found = json.loads(line)
    except ValueError as error:
        raise BadData(f"{where}: is not JSON: {error}; expected an object in each line") from None
    if not isinstance(found, dict):
        raise BadData(
            f"{where}: is {_kind_of(found)}; expected an object in each line, such as "
            '{"width": 1.5, "city": "Oslo"}'
        )
    for name, value in found.items():
        if value is None:
            continue
        kind, first = kinds.setdefault(name, (_kind_of(value), number))
        if _kind_of(value) != kind:
            raise BadData(
                f"{where}: '{name}' is {_kind_of(value)}, and {kind} in line {first}; expected one "
                "kind of value in each column"
            )


def _kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return kinds.get(type(value), "a number")
