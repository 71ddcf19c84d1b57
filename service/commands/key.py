"""The verb `key`, which makes API keys."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.api.edge.keys import ROLES, InvalidKeys, make_key, parse_keys
from service.commands.messages import reason_of, tell
from service.contract.next_steps import to_use_keys
from service.process.exit_codes import DONE, FAILED, WRONG_USE


def add_verb(verbs: Any) -> None:
    """Declare the verb on the program's parser, the object that add_subparsers returned."""
    key = verbs.add_parser(
        "key", help="make an API key: print it once, with the line for the list of keys"
    )
    key.add_argument(
        "name",
        metavar="NAME",
        help="who or what uses the key, shown in logs and beside revisions: letters, digits, '.', "
        "'_', '-', at most 64",
    )
    key.add_argument(
        "--roles",
        default="predict",
        metavar="ROLE[,ROLE]",
        help=f"what the key may do: {', '.join(ROLES)} (default predict)",
    )
    key.add_argument(
        "--rate",
        type=float,
        metavar="PER_SECOND",
        help="most requests per second with this key, above 0 (default: no limit)",
    )
    key.add_argument(
        "--append",
        type=Path,
        metavar="FILE",
        help="add the key's line to this list of keys (default: print it)",
    )


def run(given: Mapping[str, Any]) -> int:
    """Carry out a parsed command line. Returns 0 done, 1 failed, 2 wrong use."""
    try:
        _make(given)
    except InvalidKeys as error:
        tell(f"error: {error}")
        return WRONG_USE
    except OSError as error:
        tell(f"error: {reason_of(error, place='standard output')}")
        return FAILED
    return DONE


def _make(given: Mapping[str, Any]) -> None:
    secret, key = make_key(given["name"], given["roles"].split(","), per_second=given["rate"])
    if given["append"] is None:
        sys.stdout.write(secret + "\n")
        tell(f"its line in the list of keys (--keys FILE or PRIORDIAL_API_KEYS):\n{key.line()}")
        return
    _append(given["append"], key.line())  # first: a key that no list has is of no use
    sys.stdout.write(secret + "\n")
    tell(f"{given['append']} has its hash; the key itself is not shown again")
    sys.stderr.write(to_use_keys(given["append"]))


def _append(path: Path, line: str) -> None:
    """Add a line to a list of keys. Raises OSError, or InvalidKeys if the file is no such list."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        there = file.read()
        try:
            parse_keys(there.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise InvalidKeys(f"{path}: not UTF-8 text; expected a list of keys") from None
        except InvalidKeys as error:
            raise InvalidKeys(f"nothing was added to {path}: {error}") from None
        ended = b"" if there.endswith(b"\n") or not there else b"\n"
        file.write(ended + line.encode() + b"\n")
