"""Labels for answers: finds the kept rows that the items of a feedback request name, and labels
them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.evaluate.answers import Answers
from service.evaluate.ring import NO_LABEL, Rows, id_of, pieces

MAX_ITEMS = 100_000
"""The most labels of one feedback request."""
MAX_ID = 256
"""The most characters of a request id."""
MAX_FAULTS = 100
LEAST_SAMPLED = 1e-9
"""The smallest accepted `sampled`, since a row's weight is 1 / sampled."""


class InvalidFeedback(ValueError):
    """Feedback of a wrong form; `errors` names the items as (field, message)."""

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        self.errors = [{"field": name, "message": text} for name, text in errors]
        super().__init__("; ".join(f"{name}: {text}" for name, text in errors[:5]))


class Item(NamedTuple):
    """The label of one row of a request. sampled: the probability that this row was chosen."""

    request_id: str
    row: int
    label: str
    sampled: float | None


@dataclass
class Taken:
    """The outcome of labelling. counts: by (model, version, right | wrong | undecided)."""

    accepted: int = 0
    changed: int = 0
    unknown: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[tuple[str, int, str], int] = field(default_factory=dict)


def parse_items(items: object, *, name_of: Callable[[int], str] = "items.{}".format) -> list[Item]:
    """Check items as a request gives them. Raises InvalidFeedback naming the wrong ones.

    name_of: how the fault of an item is named, by the item's number from 0.
    """
    if not isinstance(items, list) or not items:
        raise InvalidFeedback([("items", f"expected a list of labels; got {_short(items)}")])
    if len(items) > MAX_ITEMS:
        many = f"has {len(items)} labels; at most {MAX_ITEMS} may be sent at once: send parts"
        raise InvalidFeedback([("items", many)])
    errors: list[tuple[str, str]] = []
    found = []
    for number, item in enumerate(items):
        wrong = _wrong(item)
        if wrong is None:
            sampled = item.get("sampled")
            found.append(
                Item(
                    item["request_id"],
                    item.get("row") or 0,
                    item["label"],
                    None if sampled is None else float(sampled),
                )
            )
            continue
        errors.append((f"{name_of(number)}{wrong[0]}", wrong[1]))
        if len(errors) == MAX_FAULTS:
            break
    if errors:
        raise InvalidFeedback(errors)
    return found


def _wrong(item: object) -> tuple[str, str] | None:
    """(member, message) of the first fault of an item."""
    if not isinstance(item, dict):
        return "", f"expected an object; got {_short(item)}"
    unknown = sorted(set(item) - set(_EXPECTED))
    if unknown:
        return f".{unknown[0][:40]}", f"unknown member; expected {', '.join(_EXPECTED)}"
    for name, (is_right, expected) in _EXPECTED.items():
        if not is_right(item.get(name)):
            return f".{name}", f"expected {expected}; got {_short(item.get(name))}"
    return None


def _is_probability(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return LEAST_SAMPLED <= value <= 1


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "request_id": (
        lambda value: isinstance(value, str) and 0 < len(value) <= MAX_ID,
        "the X-Request-Id of an answer",
    ),
    "row": (
        lambda value: value is None or (type(value) is int and 0 <= value < 2**32),
        "the row's place in its request, from 0",
    ),
    "label": (lambda value: isinstance(value, str), "a class name"),
    "sampled": (
        lambda value: value is None or _is_probability(value),
        f"the probability of being labelled, from {LEAST_SAMPLED:g} to 1",
    ),
}


class Feedback:
    """Writes labels into the rows that are kept."""

    def __init__(
        self, answers: Answers, classes_of: Callable[[str, int], Sequence[str] | None]
    ) -> None:
        """classes_of: the class names of a model's version, None when it is not served here."""
        self._answers, self._classes_of = answers, classes_of

    def take(self, items: Sequence[Item], *, model: str | None = None) -> tuple[Taken, list[Item]]:
        """Label the rows of items, of one model or of any; returns the items that were not found.

        Call it in a thread: it searches all kept rows.
        """
        self._answers.flush()
        taken = Taken()
        wanted: dict[tuple[bytes, int], list[int]] = {}
        for number, item in enumerate(items):
            wanted.setdefault((id_of(item.request_id), item.row), []).append(number)
        ids = np.array(sorted({key for key, _ in wanted}))
        for name, version, found in self._answers.files():
            if model not in (None, name) or not len(found):
                continue
            known = self._classes_of(name, version)
            names = known or ()
            places = {each: at for at, each in enumerate(names)}
            labelled: list[Rows] = []
            for row in self._rows_with(ids, found):
                key = (bytes(row["id"][0]), int(row["row"][0]))
                for number in wanted.pop(key, ()):
                    item = items[number]
                    label = places.get(item.label)
                    if label is not None:
                        _note(row, label, item, taken, (name, version))
                        labelled.append(row)
                    elif len(taken.faults) < MAX_FAULTS:
                        reason = (
                            f"model '{name}' has no class '{item.label[:60]}'; expected one of its "
                            "class_names"
                            if known is not None
                            else f"version {version} of model '{name}' is not loaded here now; "
                            "load it, or send it a request, and then send this label again"
                        )
                        taken.faults.append(
                            {"request_id": item.request_id, "row": item.row, "reason": reason}
                        )
            self._answers.share_labels((name, version), labelled)
        missing = [items[number] for numbers in wanted.values() for number in numbers]
        taken.unknown = len(missing)
        return taken, missing

    def _rows_with(self, ids: NDArray[np.bytes_], rows: Rows) -> Iterator[Rows]:
        """The rows [1] of these ids that are not too old, as views."""
        fresh = time.time() - self._answers.seconds
        for piece in pieces(rows):
            for place in np.flatnonzero(np.isin(piece["id"], ids) & (piece["at"] >= fresh)):
                yield piece[place : place + 1]


def _note(row: Rows, label: int, item: Item, taken: Taken, of: tuple[str, int]) -> None:
    """Write a label into a row [1], and count whether the answer was right."""
    before, decided = int(row["label"][0]), int(row["decided"][0])
    row["label"] = label
    row["sampled"] = np.nan if item.sampled is None else item.sampled
    taken.accepted += 1
    taken.changed += before not in (NO_LABEL, label)
    if before == NO_LABEL:
        outcome = "undecided" if decided < 0 else "right" if decided == label else "wrong"
        taken.counts[*of, outcome] = taken.counts.get((*of, outcome), 0) + 1


def _short(value: object) -> str:
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
