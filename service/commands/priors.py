"""The verbs `priors …`, which work on the store of priors."""

import codecs
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from service.commands import revisions
from service.commands.messages import reason_of, tell
from service.contract.members.body import InvalidPrior
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

_WRONG_USE = (InvalidStoreUrl, InvalidDocument, InvalidPrior, UnknownPrior, PriorConflict)


def run(given: Mapping[str, Any], environment: Mapping[str, str], *, store: str) -> int:
    """Carry out a parsed command line. store: its URL. Returns 0 done, 1 failed, 2 wrong use."""
    calls: dict[str, Callable[..., None]] = {
        "export": _export,
        "import": _import,
        "migrate": _migrate,
    }
    try:
        if given["action"] in calls:
            calls[given["action"]](given, store)
        else:
            revisions.run(given, store, environment)
    except _WRONG_USE as error:
        tell(f"error: {error}")
        return WRONG_USE
    except StoreUnavailable as error:
        tell(f"error: {error}")
        return FAILED
    except OSError as error:
        tell(f"error: {reason_of(error, place='standard output')}")
        return FAILED
    return DONE


def _export(given: Mapping[str, Any], url: str) -> None:
    with closing(open_store(url)) as store:
        store.open(create=False)
        revisions.check_model(store, given["model"])
        document, damaged = export_document(store, model=given["model"])
    text = document.model_dump_json(indent=1) + "\n"
    if given["out"] is None:
        sys.stdout.write(text)
    else:
        _write(given["out"], text)
    for entry in damaged:
        tell(
            f"warning: revision {entry.revision} of prior '{entry.name}' of model "
            f"'{entry.model}' is damaged in the store; the whole prior was left out"
        )
    tell(f"revisions written: {len(document.entries)}")


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
    name = given["file"]
    text = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        document = parse_document(text.removeprefix(codecs.BOM_UTF8))
    except InvalidDocument as error:
        shown = "standard input" if name == "-" else f"'{name}'"
        raise InvalidDocument(f"{shown} is not an export of priors: {error}") from None
    with closing(open_store(url)) as store:
        store.open()
        done = import_document(store, document)
    tell(
        f"priors: {done.whole} imported with their history, "
        f"{done.newest} updated to the newest revision, {done.unchanged} unchanged"
    )


def _migrate(given: Mapping[str, Any], url: str) -> None:
    del given
    store = open_store(url)
    store.open()
    store.close()
    tell("the store's tables are up to date")
