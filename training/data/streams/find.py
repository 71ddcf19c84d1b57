"""Finds the files of unlabelled rows that a file, a folder or a pattern names."""

from collections import Counter
from pathlib import Path

from service.contract.nearest import nearest_path
from training.data.pixels import SUFFIXES as IMAGES
from training.data.sources.folders import files_below
from training.data.streams import arrays, images, tables
from training.data.streams.rows import Source
from training.faults import WrongUse, absent, instead, is_address, say

READABLE = (*tables.SUFFIXES, *arrays.SUFFIXES, images.ARCHIVE, *IMAGES)
"""The suffixes of the files that can be read."""


def find_sources(place: str) -> list[Source]:
    """Return the sources that a file, a folder or a pattern names, in order.

    Raises WrongUse if there are none, or none that can be read.
    """
    path = Path(place)
    if not place:
        raise WrongUse("DATA is empty; expected a file, a folder or a pattern")
    if any(letter in place for letter in "*?["):
        root = Path(path.anchor or ".")
        found = sorted(
            each for each in root.glob(place.removeprefix(path.anchor)) if each.is_file()
        )
    elif path.is_dir():
        found = [each for each in files_below(path) if each.is_file()]
    elif path.exists():
        found = [path]
    else:
        if is_address(path):
            raise WrongUse(absent(path))
        raise WrongUse(f"{place}: no such file or folder{nearest_path(path)}")
    known = [each for each in found if each.suffix.lower() in READABLE]
    if not found:
        raise WrongUse(f"{place}: no file has such a name; expected a file, a folder or a pattern")
    if not known:
        held = f"holds {len(found)} files, none of which can be read"
        if found == [path]:
            held = f"is not a file that can be read{instead(path)}"
        raise WrongUse(f"{place}: {held}; expected {', '.join(READABLE)}")
    if len(known) < len(found):
        first = next(each for each in found if each.suffix.lower() not in READABLE)
        say(
            f"warning: {place}: {len(found) - len(known)} files of other kinds are left out "
            f"(the first is {first})"
        )
    pictures = tuple(each for each in known if each.suffix.lower() in IMAGES)
    others = [each for each in known if each.suffix.lower() not in IMAGES]
    times = Counter(each.name for each in others)
    shards = sum(each.suffix.lower() == images.ARCHIVE for each in others)
    named = [Source(each, name=_name_of(each, times[each.name], shards)) for each in others]
    return [*named, *([Source(path, pictures)] if pictures else [])]


def _name_of(path: Path, times: int, shards: int) -> str:
    if path.suffix.lower() == images.ARCHIVE and shards == 1:
        return ""
    return path.name if times == 1 else str(path)
