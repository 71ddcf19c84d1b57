"""Publishes a model's folder: complete or not at all, and on disk before it becomes visible."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.contract.bundle import (
    MANIFEST_FILE,
    check_model_name,
    parse_bundle,
    sha256_of,
    versions,
)

_NOT_SERVED = {"report.json", "report.html", "weights.pt"}
"""Files that the service does not need; model.json does not list them."""


def publish(
    models: Path, name: str, *, fields: dict[str, Any], write_files: Callable[[Path], None]
) -> Path:
    """Write models/<name>/<next version> whole or not at all, and return the folder.

    write_files puts model.onnx and its companion files into a temporary folder beside the
    versions. `fields` are the members of model.json except name, version and files, which are
    filled in here. Every file is synced before the folder is renamed into place. Raises
    InvalidBundle when the fields are wrong, and OSError, which names a file or the model's folder.
    """
    check_model_name(name)
    home = models / name
    home.mkdir(parents=True, exist_ok=True)
    staging = home / f".tmp-{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        write_files(staging)
        payload = sorted(p for p in staging.rglob("*") if p.is_file())
        digests = {
            str(p.relative_to(staging)): sha256_of(p) for p in payload if p.name not in _NOT_SERVED
        }
        while True:
            version = _next_version(home)
            document = {
                "format_version": 1,
                "name": name,
                "version": version,
                **fields,
                "files": digests,
            }
            text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
            parse_bundle(text)
            (staging / MANIFEST_FILE).write_text(text, encoding="utf-8")
            _sync(staging, payload)
            if _rename(staging, home / str(version)):
                return home / str(version)
    except OSError as error:
        if error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT):
            # of a full disk, a write names no file, and a copy names the file that it reads
            raise OSError(error.errno, error.strerror, str(home)) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _next_version(home: Path) -> int:
    """One more than the newest version, and above every other name that is a number.

    A stray file would block the rename as well.
    """
    version = max(versions(home), default=0) + 1
    while (home / str(version)).exists():
        version += 1
    return version


def _sync(folder: Path, payload: list[Path]) -> None:
    for path in [*payload, folder / MANIFEST_FILE, folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename(staging: Path, final: Path) -> bool:
    """Rename, and return whether this process did it; False when another one was first."""
    try:
        staging.rename(final)
    except OSError:
        if final.exists():
            return False
        raise
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True
