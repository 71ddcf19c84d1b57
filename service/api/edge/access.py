"""Checks API keys, which have roles and rate limits of their own and are stored as hashes."""

import hmac
import ipaddress
import logging
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from fastapi import Request

from service.api.edge.errors import Problem
from service.api.edge.keys import InvalidKeys, Key, hash_of, parse_keys
from service.observe.log import ANONYMOUS

log = logging.getLogger(__name__)
audit_log = logging.getLogger("service.audit")

_IMPLIED = {"operate": "observe"}  # a key that may change priors may read them
_REREAD_SECONDS = 1.0
MAX_LIST_BYTES = 2**20
"""The longest list of keys, about 10,000 of them: each request is compared with every key."""

Headers = Iterable[tuple[bytes, bytes]]


class ExposedWithoutKeys(ValueError):
    """The service has no keys but could be reached from other machines."""


def check_exposure(host: str, *, has_keys: bool, allow_anonymous: bool) -> None:
    """Refuse an address that other machines can reach when the service requires no key.

    Raises ExposedWithoutKeys.
    """
    if has_keys or allow_anonymous or is_loopback(host):
        return
    raise ExposedWithoutKeys(
        f"without keys the service may listen on loopback only, not on {host}; give --keys FILE "
        "(`python -m service key` makes keys) or --allow-anonymous"
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def open_to_others(file: Path) -> str | None:
    """Say why users other than its owner could add keys to a list, and what to do; None if they
    cannot.

    A folder in which others may replace the file is as open as the file, unless it is sticky.
    """
    for path, what in ((file, "list of keys"), (file.parent, "folder of the list of keys")):
        try:
            mode = path.stat().st_mode
        except OSError:
            return None
        if mode & stat.S_IWOTH and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
            return (
                f"the {what} '{path}' can be written by every user of this machine, who could add "
                f"a key of any role; take the right away: chmod o-w '{path}'"
            )
    return None


class Access:
    """Checks API keys. Without any, every caller has all rights under the name `anonymous`."""

    def __init__(self, keys: Sequence[Key] = (), *, file: Path | None = None) -> None:
        """Read the keys.

        keys: from the settings; they never change. file: more keys; a change of the file takes
        effect within a second. Raises InvalidKeys.
        """
        self._fixed = list(keys)
        self._file = file
        self._file_state: tuple[int, int, int] | None = None
        self._checked_at = time.monotonic()
        self._buckets: dict[bytes, _Bucket] = {}
        self._keys = self._fixed if file is None else [*self._fixed, *self._read(file)]
        if file is not None:
            risky = open_to_others(file)
            if risky is not None:
                log.warning("%s", risky)
        if file is not None and not self._keys:
            log.warning(
                "%s has no key, so nobody can use the service; add one with `python -m service key "
                "NAME --roles predict --append %s`",
                file,
                file,
            )

    @property
    def open_to_all(self) -> bool:
        """Whether the service requires no key."""
        return not self._keys and self._file is None

    @property
    def keys(self) -> Sequence[Key]:
        """The keys that are valid now."""
        return self._keys

    def check(self, headers: Headers, role: str) -> str:
        """Return the name of the caller's key. Raises Problem if the key lacks this role."""
        if (
            not self._keys and self._file is None
        ):  # every request runs this method, so it makes no further call
            return ANONYMOUS
        key = self.identify(headers)
        if key is None:
            return ANONYMOUS
        if role not in key.roles and role not in self.roles_of(key):
            raise Problem(
                "forbidden",
                f"key '{key.name}' lacks role '{role}'; use a key that has it, or have the role "
                "added",
            )
        if key.per_second is not None:
            self._count(key, key.per_second)
        return key.name

    def identify(self, headers: Headers) -> Key | None:
        """Return the caller's key; None where the service requires no key. Raises Problem."""
        if self._file is not None and time.monotonic() - self._checked_at > _REREAD_SECONDS:
            self._read_again(self._file)
        if self.open_to_all:
            return None
        given = _given_key(headers)
        if given is None:
            raise Problem(
                "no-key",
                "the request has no API key; send the header Authorization: Bearer KEY",
                headers=_CHALLENGE,
            )
        key = self._find(hash_of(given))
        if key is None:
            raise Problem(
                "unknown-key",
                "the API key is not in the list of keys; check that it is complete and current",
                headers=_CHALLENGE,
            )
        return key

    @staticmethod
    def roles_of(key: Key) -> frozenset[str]:
        """Return the roles of a key, the implied ones included."""
        return key.roles | {_IMPLIED[role] for role in key.roles if role in _IMPLIED}

    @staticmethod
    def name_of(key: Key | None) -> str:
        """Return the name under which a caller's requests are logged."""
        return ANONYMOUS if key is None else key.name

    def status_for_observing(self, headers: Headers) -> int:
        """Return 200 if these headers permit observing, else the status of the refusal."""
        try:
            self.check(headers, "observe")
        except Problem as problem:
            return problem.status
        return 200

    def require(self, role: str) -> Callable[[Request], Awaitable[None]]:
        """Make a FastAPI dependency that checks the role and sets `request.state.by` to the key's
        name.
        """

        async def checked(request: Request) -> None:
            request.state.by = self.check(request.scope["headers"], role)

        return checked

    def _find(self, digest: bytes) -> Key | None:
        """Compare with every key, so that the time taken reveals nothing about the keys."""
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _count(self, key: Key, per_second: float) -> None:
        bucket = self._buckets.setdefault(key.sha256, _Bucket(per_second))
        wait = bucket.take(per_second)
        if wait > 0:
            raise Problem(
                "rate-limited",
                f"key '{key.name}' may make {per_second:g} requests per second; wait and try again",
                headers={"Retry-After": str(max(1, round(wait + 0.5)))},
            )

    def _read(self, file: Path) -> list[Key]:
        try:
            found = file.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe would hold the loop until it is written
                raise InvalidKeys("a pipe, device or socket; expected a regular file")
            if found.st_size > MAX_LIST_BYTES:
                raise InvalidKeys(
                    f"{found.st_size} bytes; expected a list of at most {MAX_LIST_BYTES}"
                )
            keys = parse_keys(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise InvalidKeys(
                f"{file}: {error.strerror}; expected a file that the service can read"
            ) from None
        except UnicodeDecodeError:
            raise InvalidKeys(f"{file}: not UTF-8 text; save it as UTF-8") from None
        except InvalidKeys as error:
            raise InvalidKeys(f"{file}: {error}") from None
        self._file_state = (found.st_mtime_ns, found.st_size, found.st_ino)
        return keys

    def _read_again(self, file: Path) -> None:
        self._checked_at = time.monotonic()
        try:
            found = file.stat()
            if (found.st_mtime_ns, found.st_size, found.st_ino) == self._file_state:
                return
            self._keys = [*self._fixed, *self._read(file)]
        except (OSError, InvalidKeys) as error:
            if self._file_state is not None:
                log.error(  # noqa: TRY400 - no trace needed
                    "the list of keys cannot be read, keeping the previous keys: %s; correct it, "
                    "it is read again within a second",
                    error,
                )
            self._file_state = None
            return
        log.warning(
            "the list of keys has changed: %d keys are now valid; restore it if nobody meant that",
            len(self._keys),
        )


def audit(request: Request, *, action: str, model: str, name: str, **more: object) -> None:
    """Log one line for a completed write, with the name of the key that made it."""
    request_id = request.scope.get("state", {}).get("request_id")
    audit_line(request.state.by, request_id, action=action, model=model, name=name, **more)


def audit_line(
    by: str, request_id: str | None, *, action: str, model: str, name: str, **more: object
) -> None:
    """Log one line for a write by a key, or by the service itself without a request."""
    facts = " ".join(f"{key}={value}" for key, value in more.items())
    audit_log.info(
        "%s by %s: model=%s prior=%s %s",
        action,
        by,
        model,
        name,
        facts,
        extra={
            "audit": {
                "action": action,
                "by": by,
                "model": model,
                "prior": name,
                "request_id": request_id,
                **more,
            }
        },
    )


class _Bucket:
    """A token bucket with room for one second of requests, and for at least one request."""

    def __init__(self, per_second: float) -> None:
        self._tokens = max(1.0, per_second)
        self._filled_at = time.monotonic()

    def take(self, per_second: float) -> float:
        """Take a token. Returns 0, or the seconds until the next token."""
        now = time.monotonic()
        self._tokens = min(
            max(1.0, per_second), self._tokens + (now - self._filled_at) * per_second
        )
        self._filled_at = now
        if self._tokens < 1:
            return (1 - self._tokens) / per_second
        self._tokens -= 1
        return 0.0


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def _given_key(headers: Headers) -> bytes | None:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            return value.strip()
    return None
