"""Finds the known name that a misspelt one most likely stands for."""

import difflib
import re
from collections.abc import Collection
from pathlib import Path

MOST_SEARCHED = 200
"""The most names that are compared with a given one while requests wait; that takes 0.5 ms."""


_CUT_URL = re.compile(r"(s3|gs|az|hf|https?):/+(.+)")
"""A URL as a path has it: with one slash, and without a scheme's second."""


def did_you_mean(given: str, known: Collection[str], *, most: int = MOST_SEARCHED) -> str:
    """Return "; did you mean 'NAME'?" for the nearest known name, or "" when none is near.

    most: the most known names that are searched; for more, the answer is "".

    >>> did_you_mean("fasion", ["digits", "fashion"])
    "; did you mean 'fashion'?"
    """
    if len(known) > most:
        return ""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[found[0]]}'?" if found else ""


def nearest_path(missing: Path) -> str:
    """Return "; did you mean '/path'?" for a path whose first missing part has a near namesake,
    or what else a missing path may have been meant for.
    """
    if str(missing).startswith("~") or "$" in str(missing):
        return "; only a shell replaces ~ and $NAME, so write the whole path"
    if url := _CUT_URL.match(str(missing)):
        return f"; did you mean '{url[1]}://{url[2]}'?"
    for parent, child in zip(missing.parents, (missing, *missing.parents), strict=False):
        if parent.is_dir():
            try:
                names = [each.name for each in parent.iterdir() if each.name != child.name]
                if not child.name.startswith("."):
                    names = [name for name in names if not name.startswith(".")]
            except OSError:
                return ""
            found = did_you_mean(child.name, names)
            if not found:
                return ""
            rest = missing.relative_to(child)
            name = found.removeprefix("; did you mean '").removesuffix("'?")
            return f"; did you mean '{parent / name / rest}'?"
    return ""
