"""Time zones by their IANA names: those that mean the same on every machine."""

import os
import re
import zoneinfo
from collections.abc import Iterator
from datetime import tzinfo
from functools import cache
from pathlib import Path

from service.contract.nearest import did_you_mean

_NAME = re.compile(r"[A-Z][A-Za-z0-9_+\-/]{0,63}")
"""Each part of an IANA name begins with a capital. So `europe/berlin` is refused even on a file
system that ignores case.
"""
_OF_THIS_MACHINE = ("localtime", "posixrules", "Factory")
"""Files beside the zones whose content depends on how the machine was set up."""
_COPIES = re.compile(r"(?:posix|right)/")
"""Folders of copies, which not every machine has; `right` counts leap seconds and differs by
27 s.
"""


class UnknownZone(ValueError):
    """A name stands for no time zone, or not for the same one on every machine."""


def time_zone(name: str) -> tzinfo:
    """Return a time zone by its IANA name.

    Raises UnknownZone for a name that this machine has no zone of, and for one whose meaning
    depends on the machine, such as `localtime` or `posix/Europe/Berlin`.
    """
    expected = "expected an IANA name such as Europe/Berlin"
    if name in _OF_THIS_MACHINE or _COPIES.match(name):
        raise UnknownZone(
            f"'{name[:60]}' is not the same time zone on every machine; {expected}{_meant(name)}"
        )
    if _NAME.fullmatch(name):
        try:
            return zoneinfo.ZoneInfo(name)
        except (LookupError, ValueError, OSError):
            pass
    near = did_you_mean(name[:60], _names(), most=2000)
    raise UnknownZone(f"unknown time zone '{name[:60]}'; {expected}{near}")


def _meant(name: str) -> str:
    """Return "; did you mean 'NAME'?" for a name that stands for another name here, or ""."""
    meant = _COPIES.sub("", name)
    if name == "localtime":
        meant = os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2]
    return f"; did you mean '{meant}'?" if meant in _names() else ""


@cache
def _names() -> frozenset[str]:
    """The names of the zones in the folders of this machine. Read from the names of files alone:
    to open all 600, as `zoneinfo.available_timezones` does, takes 0.1 s.
    """
    return frozenset(name for place in zoneinfo.TZPATH for name in _below(Path(place)))


def _below(place: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(place):
        inside = Path(folder).relative_to(place)
        folders[:] = [each for each in folders if each[:1].isupper()]
        yield from (
            (inside / each).as_posix()
            for each in files
            if each[:1].isupper() and each not in _OF_THIS_MACHINE
        )
