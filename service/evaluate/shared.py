"""Answers that are shared through the store: feedback reaches them from any replica, and after a
restart.

Each worker stores its newest answers of a version now and then, and reads those of the workers of
other replicas. Labels are stored at once, wherever they arrive. Every worker applies the labels of
the others, to its own answers and to its copies.
"""

import time
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol, TypeAlias

import numpy as np

from service.evaluate.ring import NO_LABEL, ROW, Rows

LABEL = np.dtype([("id", ROW["id"]), ("row", "<u4"), ("label", "<i4"), ("sampled", "<f4")])
MAX_COPIED = 1_000_000
"""Answers of other replicas that a worker holds, 100 bytes each."""
MAX_LABELS = 200_000
"""Labels that a worker remembers, for copies that it reads later."""
_MOST = 1000
"""Requests whose labels are read in one query."""
_FORM = b"1"
"""Change it together with ROW: releases that run side by side then leave each other's rows out."""
Version: TypeAlias = tuple[str, int]
StoredAnswers: TypeAlias = tuple[str, int, str, int, bytes]
"""Model, version, keeper, time in microseconds, and rows: the answers of one worker to one model
version.
"""
StoredLabels: TypeAlias = tuple[int, str, int, bytes]
"""A rising number, model, version and labels: what one request gave."""


class AnswerStore(Protocol):
    """The store of answers, as service.priors.store.kept_answers.AnswerStore implements it."""

    def keep(self, model: str, version: int, keeper: str, rows: bytes, *, seconds: float) -> None:
        """Replace the answers of the same keeper; remove what is older than `seconds`."""
        ...

    def of(self, keeper: str) -> Iterable[StoredAnswers]:
        """The answers that a keeper has stored."""
        ...

    def changed(
        self, known: Collection[tuple[str, int, str, int]], *, but: Collection[str]
    ) -> Iterable[StoredAnswers]:
        """The answers of all keepers but these, except those that `known` says were read before."""
        ...

    def add_labels(self, model: str, version: int, labels: bytes) -> None:
        """Store labels for answers of any replica."""
        ...

    def labels_after(self, number: int, *, most: int) -> Iterable[StoredLabels]:
        """The labels that were stored after a number, the oldest first."""
        ...


class SharedAnswers:
    """What a worker stores of its answers, and its copies of those of other replicas.

    Calls block on the store and raise what it raises. `sync` is called in one thread.
    """

    def __init__(
        self,
        store: AnswerStore,
        *,
        replica: str,
        slot: int,
        workers: int,
        max_rows: int,
        seconds: float,
    ) -> None:
        """`replica` and `slot` name this worker; `workers` share its host's files.

        max_rows: the newest answers of a version that are stored. seconds: how long they are kept.
        """
        self._store, self._max_rows, self._seconds = store, max_rows, seconds
        self._keeper = f"{replica}/{slot}"
        self._here = [f"{replica}/{each}" for each in range(workers)]
        self._copies: dict[tuple[str, int, str], Rows] = {}
        self._labels: dict[Version, Rows] = {}
        self._known: dict[tuple[str, int, str], int] = {}
        """When each copy was stored, by its keeper's clock."""
        self._last_label = 0
        self._stored: dict[Version, int] = {}
        """Checksum of what was stored last."""
        self._restored: set[Version] = set()
        """Versions whose answers before the restart have not been given all labels yet."""
        self._before: dict[Version, Rows] | None = None
        """Answers of this worker before its restart, until their version is loaded."""

    def files(self) -> list[tuple[str, int, Rows]]:
        """(model, version, rows) of the answers of other replicas; labels may be set in them."""
        return [(model, version, rows) for (model, version, _), rows in list(self._copies.items())]

    def add_labels(self, of: Version, labels: Rows) -> None:
        """Store labels that this worker took: [n] records of dtype LABEL."""
        self._store.add_labels(*of, labels.tobytes())

    def restored(self, loaded: Iterable[Version]) -> dict[Version, Rows]:
        """The answers that this worker stored before its restart, once for each loaded version."""
        if self._before is None:
            self._before = {
                (model, version): _unpacked(rows)
                for model, version, _, _, rows in self._store.of(self._keeper)
            }
        found = {}
        for of in loaded:
            rows = self._before.pop(of, None)
            if rows is not None:
                found[of] = rows
        self._restored |= set(found)
        return found

    def sync(self, own: Mapping[Version, Rows]) -> None:
        """Apply the labels of other workers, store the newest answers, and read those of others.

        own: this worker's answers by version: views, in which labels are set. Each label is set
        once, so a later one that the store did not take stays.
        """
        new = self._read_labels()
        for of, rows in own.items():
            _apply(self._labels.get(of) if of in self._restored else new.get(of), rows)
            self._restored.discard(of)
            newest = rows[np.argsort(rows["at"], kind="stable")[-self._max_rows :]]
            checksum = zlib.crc32(newest.tobytes())
            if len(newest) and self._stored.get(of) != checksum:
                self._store.keep(*of, self._keeper, _packed(newest), seconds=self._seconds)
                self._stored[of] = checksum
        for (model, version, _), rows in self._copies.items():
            _apply(new.get((model, version)), rows)
        known = {(*of, moment) for of, moment in self._known.items()}
        for model, version, keeper, moment, stored in self._store.changed(known, but=self._here):
            copy = _unpacked(stored)
            _apply(self._labels.get((model, version)), copy)
            self._copies[model, version, keeper] = copy
            self._known[model, version, keeper] = moment
        self._bound()

    def _read_labels(self) -> dict[Version, Rows]:
        """Remember the labels that were stored since the last call, and return them."""
        new: dict[Version, Rows] = {}
        while found := list(self._store.labels_after(self._last_label, most=_MOST)):
            for number, model, version, stored in found:
                labels = _labels_in(stored)
                for held in (new, self._labels):
                    before = held.pop((model, version), labels[:0])  # the newest stand last
                    held[model, version] = np.concatenate([before, labels])[-MAX_LABELS:]
                self._last_label = number
        much = sum(map(len, self._labels.values())) - MAX_LABELS
        while much > 0:
            of = next(iter(self._labels))
            labels = self._labels.pop(of)
            if len(labels) > much:
                self._labels = {of: labels[much:], **self._labels}
            much -= len(labels)
        return new

    def _bound(self) -> None:
        """Drop the copies whose answers are all too old, and the first ones of too many."""
        oldest = time.time() - self._seconds
        for of, rows in list(self._copies.items()):
            if not (rows["at"] >= oldest).any():
                del self._copies[of]
        held = sum(map(len, self._copies.values()))
        while held > MAX_COPIED:
            held -= len(self._copies.pop(next(iter(self._copies))))


def _apply(labels: Rows | None, rows: Rows) -> None:
    """Set labels in rows. A later label of a row replaces an earlier one."""
    if labels is None:
        return
    places = np.flatnonzero(np.isin(rows["id"], labels["id"]))
    if not len(places):
        return
    labels = labels[np.isin(labels["id"], rows["id"][places])]
    at = {
        (bytes(key), int(row)): place
        for key, row, place in zip(
            rows["id"][places], rows["row"][places], places.tolist(), strict=True
        )
    }
    for key, row, label, sampled in labels.tolist():
        place = at.get((key, row))
        if place is not None:
            rows["label"][place], rows["sampled"][place] = label, sampled


def labels_of(rows: Iterable[Rows]) -> Rows:
    """The labels of labelled rows [1], as LABEL."""
    found = [
        (row["id"][0], row["row"][0], row["label"][0], row["sampled"][0])
        for row in rows
        if row["label"][0] != NO_LABEL
    ]
    return np.array(found, LABEL)


def _packed(rows: Rows) -> bytes:
    return _FORM + zlib.compress(rows.tobytes(), 1)


def _unpacked(stored: bytes) -> Rows:
    """Rows that may be written; none where another release of the service wrote another form, or
    where they are damaged.
    """
    if not stored.startswith(_FORM):
        return np.empty(0, ROW)
    unpacking = zlib.decompressobj()
    try:
        rows = bytearray(unpacking.decompress(stored[len(_FORM) :], MAX_COPIED * ROW.itemsize))
    except zlib.error:
        return np.empty(0, ROW)
    return np.frombuffer(rows, ROW) if len(rows) % ROW.itemsize == 0 else np.empty(0, ROW)


def _labels_in(stored: bytes) -> Rows:
    """Stored labels; none where they are damaged."""
    return np.frombuffer(stored if len(stored) % LABEL.itemsize == 0 else b"", LABEL)
