"""A bounded local copy of a remote models folder, shared by the workers of a machine.

The copy looks like any models folder. `refresh` writes the model.json of every version. The other
files of a version are fetched when it is loaded; each gets its name only once its sha256 is right.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from service.contract.bundle import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    Bundle,
    InvalidBundle,
    parse_bundle,
    sha256_of,
)
from service.stores.remote import (
    ChangedUnderway,
    InvalidModelsUrl,
    Listing,
    LocalCopyFailed,
    RemoteFolder,
    RemoteUnavailable,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)

OPTIONAL_FILES = ("report.json", "report.html")
_TAGS, _LOCK, _IN_USE, _PART = ".tags.json", ".lock", ".in-use", ".part"


class NoRoom(RuntimeError):
    """A version does not fit into the local copy in addition to those that serve."""


def open_mirror(models: Path | str, cache: Path | None, *, max_bytes: int) -> "Mirror | None":
    """The local copy of models from a URL; None for a folder. Raises InvalidModelsUrl."""
    if not isinstance(models, str):
        return None
    return Mirror(RemoteFolder(models), cache, max_bytes=max_bytes)


class Mirror:
    """The local copy. Its calls block; they may come from several threads and processes."""

    def __init__(self, remote: RemoteFolder, folder: Path | None, *, max_bytes: int) -> None:
        """Use `folder` for the copy; None: one in the temporary folder, named after the URL.

        max_bytes: the most bytes of the files of all versions together. Raises InvalidModelsUrl
        where the folder cannot be made, or is in the temporary folder and not this user's alone.
        """
        self._owned = folder is None
        try:
            if folder is None:
                name = hashlib.sha256(remote.url.encode()).hexdigest()[:16]
                folder = Path(tempfile.gettempdir()) / f"priordial-models-{name}"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            place = "in the temporary folder" if folder is None else f"'{folder}'"
            raise InvalidModelsUrl(
                f"--models-cache is {place}: {error.strerror or error}; expected a folder that "
                "this user can write, or can make"
            ) from None
        self.folder = folder
        if self._owned and (why := _open_to_others(folder)):
            raise InvalidModelsUrl(why)
        self._remote, self._max_bytes = remote, max_bytes
        self._listing: Listing = {}
        self._listed = threading.Lock()
        self._held: dict[tuple[str, int], int] = {}
        """File descriptors that keep versions from being evicted, by model and version."""
        self.fault: str | None = None
        """Why the last refresh failed; None when it did not."""

    def refresh(self) -> None:
        """Bring the versions up to date with the store. Raises RemoteUnavailable.

        What was copied before stays, and serves, while the store is away.
        """
        try:
            with self._listed:
                listing = self._remote.listing()
                # a cleaner of the temporary folder may have taken it away
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                if self._owned and (why := _open_to_others(self.folder)):
                    raise RemoteUnavailable(why)  # another user was faster
                if self._remote.seems_lost and self._versions():
                    raise RemoteUnavailable(
                        f"{self._remote.url} lists no model version, as an emptied store or an "
                        "error page does; what was copied keeps serving: put the models back, or "
                        "stop a model by unloading it by its name"
                    )
                with self._alone():
                    self._take_over(listing)
                self._listing = listing
        except RemoteUnavailable as error:
            self.fault = str(error)
            raise
        except OSError as error:
            self.fault = f"{self.folder}: {error.strerror or error}"
            raise RemoteUnavailable(self.fault) from error
        self.fault = None

    def loading(self, prepare: Callable[[Path], T]) -> Callable[[Path], T]:
        """A function that fetches the files of a version's folder and then calls `prepare`."""

        def fetched(folder: Path) -> T:
            self.fetch(folder)
            try:
                return prepare(folder)
            except BaseException:
                self.release((folder.parent.name, int(folder.name)))
                raise

        return fetched

    def fetch(self, folder: Path) -> None:
        """Fetch the files of a version, which is then kept until `release`.

        Raises RemoteUnavailable, ChangedUnderway, NoRoom, InvalidBundle or LocalCopyFailed.
        """
        key = folder.parent.name, int(folder.name)
        try:
            self._hold(key, folder)
            try:
                bundle = parse_bundle((folder / MANIFEST_FILE).read_bytes())
            except OSError as error:
                raise InvalidBundle(f"{folder / MANIFEST_FILE}: {error.strerror}") from error
            with self._alone(folder):
                self._fetch_missing(key, folder, bundle)
        except OSError as error:
            self.release(key)
            raise LocalCopyFailed(
                f"{error.filename or folder}: {error.strerror or error}; give this user a folder "
                "that it can write with --models-cache"
            ) from error
        except BaseException:
            self.release(key)
            raise

    def release(self, key: tuple[str, int]) -> None:
        """Let the files of a version be evicted when room is needed."""
        descriptor = self._held.pop(key, None)
        if descriptor is not None:
            os.close(descriptor)

    # ---- inside

    def _take_over(self, listing: Listing) -> None:
        tags = self._read_tags()
        for (model, version), files in listing.items():
            folder = self.folder / model / str(version)
            manifest = files[MANIFEST_FILE]
            if tags.get(manifest.path) == manifest.tag and (folder / MANIFEST_FILE).exists():
                continue
            try:
                content = self._remote.read(manifest, at_most=MAX_MANIFEST_BYTES)
            except ChangedUnderway as error:
                logger.error("%s", error)  # noqa: TRY400 - the message is enough
                continue
            self._put(folder, content)
            tags[manifest.path] = manifest.tag
        for folder in self._versions():
            if (folder.parent.name, int(folder.name)) not in listing:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()
        known = {files[MANIFEST_FILE].path for files in listing.values()}
        kept = {path: tag for path, tag in tags.items() if path in known}
        _write(self.folder / _TAGS, json.dumps(kept).encode())

    def _put(self, folder: Path, manifest: bytes) -> None:
        """Write a version's model.json; a new folder appears with it."""
        if folder.is_dir():
            _write(folder / MANIFEST_FILE, manifest)
            return
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        try:
            _write(new / MANIFEST_FILE, manifest)
            folder.parent.mkdir(exist_ok=True)
            new.rename(folder)
        except OSError:  # as on a full disk: each refresh would leave another one
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _read_tags(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.folder / _TAGS).read_bytes())
            if isinstance(found, dict):
                return found
        return {}

    def _fetch_missing(self, key: tuple[str, int], folder: Path, bundle: Bundle) -> None:
        there = self._listing.get(key, {})
        wanted: dict[str, str | None] = dict(bundle.files)
        wanted |= {name: None for name in OPTIONAL_FILES if name in there and name not in wanted}
        missing = {
            name: digest for name, digest in wanted.items() if not _is_right(folder / name, digest)
        }
        unknown = [name for name in missing if name not in there]
        if unknown:
            raise ChangedUnderway(
                f"{folder.parent.name} version {folder.name}: '{unknown[0]}' is not in "
                f"{self._remote.url}; copy the whole version there, model.json last"
            )
        self._make_room(sum(max(0, there[name].size) for name in missing), key)
        for name, digest in missing.items():
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise InvalidBundle(
                    f"{folder}: '{name}' leaves the folder; expected a path to a file within it"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}{_PART}")
            self._remote.fetch(
                there[name], part, digest=digest, room=lambda size: self._make_room(size, key)
            )
            part.replace(target)

    def _make_room(self, needed: int, key: tuple[str, int]) -> None:
        """Evict versions that no process serves, the longest unused first. Raises NoRoom."""
        if not needed:
            return
        sizes = {folder: _size(folder) for folder in self._versions()}
        free = self._max_bytes - sum(sizes.values())
        for folder in sorted(sizes, key=_used_at):
            if free >= needed:
                return
            if (folder.parent.name, int(folder.name)) != key and _evicted(folder):
                free += sizes[folder] - _size(folder)
        if free < needed:
            raise NoRoom(
                f"model '{key[0]}' version {key[1]} needs {needed / 2**20:.1f} MiB, but only "
                f"{max(0, free) / 2**20:.1f} MiB are left besides the versions that serve: raise "
                "--models-cache-mib or lower --keep-versions"
            )

    def _versions(self) -> list[Path]:
        return [
            version
            for model in self.folder.iterdir()
            if model.is_dir()
            for version in model.iterdir()
            if version.is_dir() and version.name.isdigit()
        ]

    def _hold(self, key: tuple[str, int], folder: Path) -> None:
        held = self._held.get(key)
        if held is not None and os.fstat(held).st_nlink:
            return
        self.release(key)  # the mark was deleted, with the rest of the copy
        descriptor = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(descriptor)
        self._held[key] = descriptor

    @contextlib.contextmanager
    def _alone(self, folder: Path | None = None) -> Iterator[None]:
        """Exclude other processes from the shared copy, or from one version of it."""
        place = self.folder if folder is None else folder
        with (place / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _open_to_others(folder: Path) -> str | None:
    """Why users other than this one could put models into a folder, and what to do, or None.

    Every user may make a folder in the temporary folder. Raises OSError.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        fault = "is a link"
    elif found.st_uid != os.geteuid():
        fault = f"belongs to another user (uid {found.st_uid})"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        fault = f"can be written by others (mode {stat.S_IMODE(found.st_mode):o})"
    else:
        return None
    return (
        f"the local copy of models, '{folder}', {fault}, so models in it cannot be trusted; remove "
        "it, or give a folder of this user with --models-cache"
    )


def _evicted(folder: Path) -> bool:
    """Delete a version's files except model.json, unless a process holds the version."""
    with contextlib.suppress(OSError), (folder / _IN_USE).open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in (MANIFEST_FILE, _IN_USE, _LOCK):
                path.unlink()
        return True
    return False


def _is_right(path: Path, digest: str | None) -> bool:
    return path.is_file() and (digest is None or sha256_of(path) == digest.lower())


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _used_at(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / _IN_USE).stat().st_mtime
    return 0.0


def _write(path: Path, content: bytes) -> None:
    """Write a file as a whole: another process sees the old one or the new one."""
    part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
