"""Makes and reads API keys. A list of keys holds only hashes, never the keys themselves."""

import hashlib
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from service.contract.nearest import did_you_mean

ROLES = ("predict", "operate", "observe")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX = "priordial_"


class InvalidKeys(ValueError):
    """A list of keys has an invalid line. The message names the line and never quotes it."""


@dataclass(frozen=True)
class Key:
    """What the service stores about an API key: its hash, not the key itself."""

    name: str
    roles: frozenset[str]
    sha256: bytes
    per_second: float | None = None
    """The most requests per second with this key; None: no limit."""

    def line(self) -> str:
        """Return the line that describes the key in a list of keys."""
        rate = "" if self.per_second is None else f" rate={_decimal(self.per_second)}"
        return f"{self.name} {','.join(sorted(self.roles))} sha256:{self.sha256.hex()}{rate}"


def _decimal(rate: float) -> str:
    """The rate without an exponent, which a list of keys does not take."""
    return f"{rate:.6f}".rstrip("0").rstrip(".") if math.isfinite(rate) else str(rate)


def make_key(
    name: str, roles: Sequence[str], *, per_second: float | None = None
) -> tuple[str, Key]:
    """Make a new key. Returns (the secret, to be shown once; the entry to store).

    per_second: the most requests per second; None: no limit. Raises InvalidKeys for an invalid
    name, role or rate.
    """
    secret = _PREFIX + secrets.token_urlsafe(32)
    key = Key(name, frozenset(roles), hash_of(secret.encode()), per_second)
    try:
        return secret, parse_keys(key.line())[0]
    except InvalidKeys as error:
        given = f"key '{name[:80]}' with the roles '{','.join(roles)[:80]}'"
        raise InvalidKeys(f"{given}: {str(error).removeprefix('line 1: ')}") from None


def parse_keys(text: str) -> list[Key]:
    """Parse `NAME ROLE[,ROLE] sha256:HEX [rate=PER_SECOND]`, one a line or separated by `;`.

    `#` begins a comment. Two lines may share a name, so that a key can be replaced without a gap.
    Raises InvalidKeys.
    """
    keys = []
    for number, raw in enumerate(re.split(r"[\n;]", text), 1):
        line = raw.split("#")[0].strip()
        if line:
            keys.append(_parse_line(line, f"line {number}"))
    return keys


def parse_key_setting(text: str) -> list[Key]:
    """Parse the keys of a setting; an empty setting has none.

    Raises InvalidKeys if the setting holds text but no key: a setting that is only a comment would
    otherwise open the service to everybody.
    """
    try:
        keys = parse_keys(text)
    except InvalidKeys as error:
        raise InvalidKeys(f"--api-keys, {error}") from None
    if text and not keys:
        raise InvalidKeys(
            "--api-keys holds no key; expected NAME ROLE[,ROLE] sha256:HEX, as "
            "`python -m service key` makes them, or no --api-keys at all"
        )
    return keys


def hash_of(secret: bytes) -> bytes:
    """Hash a key. Plain SHA-256 is enough: keys are 256 random bits, not passwords."""
    return hashlib.sha256(secret).digest()


def _parse_line(line: str, where: str) -> Key:
    parts = line.split()
    if len(parts) not in (3, 4):
        raise InvalidKeys(f"{where}: expected NAME ROLE[,ROLE] sha256:HEX [rate=PER_SECOND]")
    name, roles, digest = parts[:3]
    if not _NAME.fullmatch(name):
        raise InvalidKeys(
            f"{where}: the first field is not a name; expected letters, digits, '.', '_', '-', at "
            "most 64"
        )
    unknown = sorted(set(roles.split(",")) - set(ROLES))
    if "" in unknown:
        raise InvalidKeys(
            f"{where}: a role is missing next to a comma; write ROLE,ROLE without blanks"
        )
    if unknown:
        raise InvalidKeys(
            f"{where}: unknown role '{unknown[0][:20]}'; expected {', '.join(ROLES)}"
            f"{did_you_mean(unknown[0][:20], ROLES)}"
        )
    if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", digest):
        raise InvalidKeys(f"{where}: expected sha256: and 64 hex digits (a hash, never a key)")
    per_second = None
    if len(parts) == 4:
        match = re.fullmatch(r"rate=([0-9]{1,9}(?:\.[0-9]{1,6})?)", parts[3])
        if match is None or float(match[1]) <= 0:
            raise InvalidKeys(f"{where}: expected rate= and a number of requests a second above 0")
        per_second = float(match[1])
    return Key(name, frozenset(roles.split(",")), bytes.fromhex(digest[7:]), per_second)
