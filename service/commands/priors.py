"""The verbs `priors …`, which work on the store of priors, and `key`, which makes API keys."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from service.api.edge.keys import ROLES, InvalidKeys, make_key, parse_keys
from service.commands import revisions
from service.contract.members.body import InvalidPrior
from service.contract.next_steps import to_use_keys
from service.priors.revisions import PriorConflict, StoreUnavailable, UnknownPrior
from service.priors.store import open_store
from service.priors.store.engine import InvalidStoreUrl
from service.priors.store.transfer import (
    InvalidDocument,
    export_document,
    import_document,
    parse_document,
)
from service.process.exit_codes import DONE, FAILED, WRONG_USE

Verbs = Any  # the type that add_subparsers returns is not public
VERBS = ("priors", "key")
_WRONG_USE = (
    InvalidKeys, InvalidStoreUrl, InvalidDocument, InvalidPrior, UnknownPrior, PriorConflict,
)  # fmt: skip
_ACTIONS = "list|show|diff|rollback|export|import|migrate"


def add_verbs(verbs: Verbs) -> None:
    """Declare the verbs on the program's parser."""
    priors = verbs.add_parser(
        "priors", help="inspect, roll back, back up or move the priors of a store"
    )
    actions = priors.add_subparsers(dest="action", required=True, metavar=_ACTIONS)
    revisions.add_verbs(actions)
    out = actions.add_parser("export", help="write every revision of every prior, oldest first")
    out.add_argument(
        "--model", metavar="NAME", help="only the priors of this model (default: of all models)"
    )
    out.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON file to write (default: standard output)"
    )
    into = actions.add_parser(
        "import", help="add the priors that the store lacks; repeating an import changes nothing"
    )
    into.add_argument("file", help="a file that export wrote, or - for standard input")
    actions.add_parser(
        "migrate", help="create the store's tables, or upgrade them to this version of the program"
    )
    for parser in actions.choices.values():
        parser.add_argument(
            "--store",
            metavar="URL",
            help="where priors are stored: sqlite:///FILE or postgresql://… (default as for serve; "
            "PRIORDIAL_STORE)",
        )
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


def run(given: Mapping[str, Any], environment: Mapping[str, str], *, store: str) -> int:
    """Carry out a parsed command line. store: its URL. Returns 0 done, 1 failed, 2 wrong use."""
    calls: dict[str, Callable[..., None]] = {
        "export": _export,
        "import": _import,
        "migrate": _migrate,
    }
    try:
        if given["verb"] == "key":
            _key(given)
        elif given["action"] in calls:
            calls[given["action"]](given, store)
        else:
            revisions.run(given, store, environment)
    except _WRONG_USE as error:
        _tell(f"error: {error}")
        return WRONG_USE
    except StoreUnavailable as error:
        _tell(f"error: {error}")
        return FAILED
    except OSError as error:
        file = "" if error.filename is None else f"{error.filename}: "
        _tell(f"error: {file}{error.strerror}; name another file, or change who may use this one")
        return FAILED
    return DONE


def _export(given: Mapping[str, Any], url: str) -> None:
    with closing(open_store(url)) as store:
        store.open(create=False)
        document, damaged = export_document(store, model=given["model"])
    text = document.model_dump_json(indent=1) + "\n"
    if given["out"] is None:
        sys.stdout.write(text)
    else:
        _write(given["out"], text)
    for entry in damaged:
        _tell(
            f"warning: revision {entry.revision} of prior '{entry.name}' of model "
            f"'{entry.model}' is damaged in the store; the whole prior was left out"
        )
    _tell(f"revisions written: {len(document.entries)}")


def _write(out: Path, text: str) -> None:
    """Write a file beside its place and rename it: a full disk must not cost the last export.

    Raises OSError, or InvalidDocument where a store is in its place.
    """
    if not out.is_file():  # a new file, or a device
        out.write_text(text, encoding="utf-8")
        return
    with out.open("rb") as file:
        if file.read(16).startswith(b"SQLite format 3"):
            raise InvalidDocument(f"--out is '{out}', which is a store; name another file")
    out = out.resolve()  # a link such as /dev/stdout stays
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(out)


def _import(given: Mapping[str, Any], url: str) -> None:
    text = (
        sys.stdin.read()
        if given["file"] == "-"
        else Path(given["file"]).read_text(encoding="utf-8-sig")
    )
    document = parse_document(text)
    with closing(open_store(url)) as store:
        store.open()
        done = import_document(store, document)
    _tell(
        f"priors: {done.whole} imported with their history, "
        f"{done.newest} updated to the newest revision, {done.unchanged} unchanged"
    )


def _migrate(given: Mapping[str, Any], url: str) -> None:
    del given
    store = open_store(url)
    store.open()
    store.close()
    _tell("the store's tables are up to date")


def _key(given: Mapping[str, Any]) -> None:
    secret, key = make_key(given["name"], given["roles"].split(","), per_second=given["rate"])
    if given["append"] is None:
        sys.stdout.write(secret + "\n")
        _tell(f"its line in the list of keys (--keys FILE or PRIORDIAL_API_KEYS):\n{key.line()}")
        return
    _append(given["append"], key.line())  # first: a key that no list has is of no use
    sys.stdout.write(secret + "\n")
    _tell(f"{given['append']} has its hash; the key itself is not shown again")
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


def _tell(line: str) -> None:
    """Write a line for the user to stderr; standard output is for results."""
    sys.stderr.write(line + "\n")
