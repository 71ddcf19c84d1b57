"""A folder of models in an object store or on a web server, read through fsspec."""

import hashlib
import importlib
import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contract.bundle import MANIFEST_FILE, check_model_name, is_version

SCHEMES = ("s3", "gs", "az", "http", "https", "hf", "file", "memory")
_EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure", "hf": "hf", "http": "http", "https": "http"}
_PLACES = {"http": "HOST/FOLDER", "https": "HOST/FOLDER", "hf": "OWNER/NAME", "file": "/FOLDER"}
_PIECE = 2**20
SILENT_SECONDS = 60.0
"""A web server that sends nothing for so long is away. A large file may take any time."""


class InvalidModelsUrl(ValueError):
    """`--models` is a URL of an unknown kind, or the package that opens it is missing."""


class RemoteUnavailable(RuntimeError):
    """The object store does not answer, or answers with an error."""


class LocalCopyFailed(RuntimeError):
    """A file cannot be written to the local copy, as on a full disk."""


class ChangedUnderway(ValueError):
    """A file changed while it was read: its digest or its size is not the announced one."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a version. path: as the store names it. tag: changes when the file does."""

    path: str
    size: int
    tag: str


Listing = Mapping[tuple[str, int], Mapping[str, RemoteFile]]
"""(model, version) → file name inside the version's folder → file; only versions with a
model.json, which is written last."""


class RemoteFolder:
    """A models folder behind a URL. Every call blocks and may raise RemoteUnavailable."""

    def __init__(self, url: str) -> None:
        """Does not connect. Raises InvalidModelsUrl."""
        scheme, _, place = url.partition("://")
        if scheme not in SCHEMES:
            raise InvalidModelsUrl(
                f"--models is '{url[:80]}'; expected a folder or a URL that begins with "
                f"{', '.join(f'{each}://' for each in SCHEMES[:6])}"
            )
        if not place.strip("/") and scheme != "memory":
            raise InvalidModelsUrl(
                f"--models is '{url[:80]}', which names no place; expected one as in "
                f"{scheme}://{_PLACES.get(scheme, 'BUCKET/FOLDER')}"
            )
        self.url = url
        self.seems_lost = False
        """Whether the last listing is what an emptied store or a web page for people looks like."""
        try:
            fsspec = importlib.import_module("fsspec")
            self._files, self._root = fsspec.core.url_to_fs(url.rstrip("/"), **_options(scheme))
        except ImportError as error:
            raise InvalidModelsUrl(
                f"--models {scheme}://… needs {error.name or 'a package'}: "
                f"pip install 'priordial[{_EXTRAS.get(scheme, 'http')}]'"
            ) from None

    def listing(self) -> Listing:
        """Every complete version in the store now."""
        by_links = self.url.startswith(("http", "file"))  # they have neither sizes nor ETags
        with _typed(self.url):
            self._files.invalidate_cache()
            if by_links:
                found = {path: self._files.info(path) for path in self._linked()}
            else:
                found = self._files.find(self._root, detail=True)
        versions: dict[tuple[str, int], dict[str, RemoteFile]] = {}
        for path, info in found.items():
            place = self._place(path)
            if place is not None:
                model, version, name = place
                size = info.get("size")
                file = RemoteFile(path, -1 if size is None else int(size), _tag(info))
                versions.setdefault((model, version), {})[name] = file
        whole = {key: files for key, files in versions.items() if MANIFEST_FILE in files}
        self.seems_lost = not (whole if by_links else found)
        return whole

    def _linked(self) -> Iterator[str]:
        """The files that the pages of a web folder link to, below it.

        fsspec's `find` takes a page that cannot be read for an empty one, so that all models would
        seem to be gone while the web server is away.
        """
        pages, seen = [self._root], {self._root}
        while pages:
            page = pages.pop()
            try:
                links = self._files.ls(page, detail=True)
            except FileNotFoundError:
                if page == self._root:
                    raise
                continue  # a link to a folder that is gone
            for link in links:
                path = link["name"].replace("/./", "/")  # Caddy links to `./NAME`
                if link["type"] != "directory":
                    yield path
                elif path not in seen and path.startswith(f"{page.rstrip('/')}/"):
                    seen.add(path)
                    pages.append(path)

    def read(self, file: RemoteFile, *, at_most: int) -> bytes:
        """The bytes of a small file.

        Raises ChangedUnderway for a larger one, or for another size than the listing's.
        """
        with _typed(file.path), self._files.open(file.path, "rb", cache_type="none") as source:
            content: bytes = source.read(at_most + 1)
        if len(content) > at_most:
            raise ChangedUnderway(
                f"{file.path}: larger than {at_most} bytes, the most that is read; publish it again"
            )
        _check_size(file, len(content))
        return content

    def fetch(
        self,
        file: RemoteFile,
        target: Path,
        *,
        digest: str | None,
        room: Callable[[int], object],
    ) -> None:
        """Copy a file to `target`, on disk when this returns.

        room: called with the number of bytes that come next, where the listing has no size.
        Raises ChangedUnderway when its sha256 is not `digest`, or its size is not the listing's,
        and LocalCopyFailed; `target` is then removed.
        """
        hashed, copied = hashlib.sha256(), 0
        try:
            with target.open("wb") as copy:
                for piece in self._pieces(file):
                    copied += len(piece)
                    if file.size < 0:
                        room(len(piece))
                    elif copied > file.size:
                        break
                    hashed.update(piece)
                    copy.write(piece)
                copy.flush()
            if digest is not None and hashed.hexdigest() != digest.lower():
                raise ChangedUnderway(
                    f"{file.path}: its sha256 is not that of {MANIFEST_FILE}; copy the whole "
                    "version there, model.json last"
                )
            _check_size(file, copied)
        except OSError as error:
            target.unlink(missing_ok=True)
            raise LocalCopyFailed(
                f"{target}: {error.strerror or error}; make room there, or name another folder "
                "with --models-cache"
            ) from error
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _pieces(self, file: RemoteFile) -> Iterator[bytes]:
        """Yield a file's bytes. Only what the store does wrong becomes RemoteUnavailable."""
        with (
            _typed(file.path),
            self._files.open(file.path, "rb", block_size=8 * _PIECE) as source,
        ):
            while piece := source.read(_PIECE):
                yield piece

    def _place(self, path: str) -> tuple[str, int, str] | None:
        """Model, version and file name of a path; None for a path that is not part of a version."""
        inside = path.removeprefix(self._root.rstrip("/") + "/")
        parts = inside.split("/")
        if inside == path or len(parts) < 3 or not is_version(parts[1]):
            return None
        try:
            check_model_name(parts[0])
        except ValueError:
            return None
        name = "/".join(parts[2:])
        if not name or posixpath.normpath(name) != name or name.startswith(".."):
            return None
        return parts[0], int(parts[1]), name


def _check_size(file: RemoteFile, size: int) -> None:
    """Raise ChangedUnderway for another size than the listing's, as of an answer without a body."""
    if file.size >= 0 and size != file.size:
        raise ChangedUnderway(
            f"{file.path}: {size} bytes came, and its size is {file.size}; if it was not being "
            "replaced, check what its server sends"
        )


def _options(scheme: str) -> dict[str, Any]:
    """Options that keep listings fresh; credentials come from the environment of each library."""
    own: dict[str, Any] = {} if scheme == "memory" else {"skip_instance_cache": True}
    if scheme in ("http", "https"):
        aiohttp = importlib.import_module("aiohttp")
        limits = {"sock_connect": SILENT_SECONDS, "sock_read": SILENT_SECONDS}
        own["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, **limits)}
    cached = scheme in ("file", "memory", "http", "https")
    return own if cached else {**own, "use_listings_cache": False}


def _tag(info: Mapping[str, Any]) -> str:
    """A text that changes when the file does: its ETag, else the best substitute of the store."""
    for name in ("ETag", "etag", "generation", "blob_id", "content_settings", "md5"):
        if info.get(name):
            return str(info[name])
    changed = (
        info.get("mtime")
        or info.get("LastModified")
        or info.get("Last-Modified")
        or info.get("created")
        or ""
    )
    return f"{info.get('size')} {changed}"


@contextmanager
def _typed(what: str) -> Iterator[None]:
    """Turn every failure of a library of fsspec into RemoteUnavailable."""
    try:
        yield
    except (ChangedUnderway, RemoteUnavailable):
        raise
    except TimeoutError as error:
        raise RemoteUnavailable(
            f"{what} cannot be read: nothing came in time; check that the server answers"
        ) from error
    except Exception as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise RemoteUnavailable(f"{what} cannot be read: {words}") from error
