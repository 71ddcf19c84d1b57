"""Keeps the answers of this worker for a while, so that feedback can refer to them.

The event loop only notes the answers of a batch. A few times a second, a thread turns all notes
into rows of a ring file.
"""

import contextlib
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Bundle
from service.contract.members.sparse import SparseOffset
from service.evaluate.ring import NO_LABEL, ROW, TOP, Ring, Rows, context_code, id_of
from service.evaluate.shared import SharedAnswers, Version, labels_of

logger = logging.getLogger(__name__)

EVERY_SECONDS = 0.25
REFRESH_SECONDS = 30.0
MAX_PENDING = 100_000
"""The most answers that wait for the thread; further ones are not kept."""
MANY = 2_000
"""From this many waiting answers on, the thread is woken at once."""
NO_COSTS = -2
"""The decision of a row whose prior has no costs."""
STOP_SECONDS = 2.0
"""How long the end of the service waits for the store to take the last answers."""
FILE = "answers.bin"
FIGURES = "figures.json"


class ChosenBy(Protocol):
    """The context that led to a prior."""

    @property
    def name(self) -> str | None:
        """The name of the requested prior."""
        ...

    @property
    def key(self) -> str | None:
        """The key of the context that decided."""
        ...

    @property
    def value(self) -> str | None:
        """The value of that key."""
        ...


class UsedPrior(Protocol):
    """The members of a prior that are used here."""

    @property
    def offset(self) -> NDArray[np.float32] | SparseOffset | None:
        """Log σ − log ρ [C]; None where σ is unknown."""
        ...

    @property
    def chosen_by(self) -> ChosenBy | None:
        """The context that led to this prior; None without one."""
        ...


class Answered(NamedTuple):
    """An answered request. Its rows are rows start … stop of the arrays of its batch [N, …].

    tau: one value, or [n]. prior_of_row: [n] index into `priors`. decision: [N] class chosen by
    cost, where a prior has costs.
    """

    request_id: str
    top: NDArray[np.int64]  # [N, k]
    probability: NDArray[np.float32]  # [N, k]
    decision: NDArray[np.int64] | None
    start: int
    stop: int
    tau: float | NDArray[np.float32]
    priors: Sequence[UsedPrior]
    prior_of_row: NDArray[np.int64] | None
    first: int = 0
    """Position of the first row in the request; above 0 for a later part of a large one."""


class VersionAnswers:
    """The answers of one model version in this worker."""

    def __init__(self, path: Path, *, max_bytes: int, wake: Callable[[], object]) -> None:
        """path: the file for at most `max_bytes` of rows. wake: wakes the thread."""
        self._path, self._max_bytes, self._wake = path, max_bytes, wake
        self.waiting: deque[Answered] = deque()
        self.note = self.waiting.append
        """Note an answered request."""
        self._ring: Ring | None = None
        self._fault = False
        self._lock = threading.Lock()

    def noted(self) -> None:
        """Wake the thread if many notes wait, and drop notes beyond the limit."""
        self._wake()
        while len(self.waiting) > MAX_PENDING:
            self.waiting.popleft()

    def flush(self) -> None:
        """Write what was noted into the ring. For any thread."""
        with self._lock:
            found = [self.waiting.popleft() for _ in range(len(self.waiting))]
            if found:
                self._add(rows_of(found, time.time()))

    def restore(self, rows: Rows) -> None:
        """Add rows that were stored before a restart, except those that are still held."""
        with self._lock:
            here = np.empty(0, ROW) if self._ring is None else self._ring.held()
            self._add(rows[~np.isin(rows["id"], here["id"])])

    def held(self) -> Rows:
        """The rows that are held, in no order: a view, in which labels may be set."""
        return np.empty(0, ROW) if self._ring is None else self._ring.held()

    def _add(self, rows: Rows) -> None:
        if self._fault:
            return
        try:
            if self._ring is None:
                self._ring = Ring(self._path, max_bytes=self._max_bytes, owner=True)
            self._ring.add(rows)
        except OSError as error:
            self._fault = True
            logger.warning(
                "answers are not kept for feedback, since %s cannot be written: %s; make room "
                "there, or lower --feedback-mib, and restart",
                self._path,
                error.strerror or error,
            )


def rows_of(answered: Sequence[Answered], now: float) -> Rows:
    """Turn noted answers into rows of the ring; `now`: seconds since 1970."""
    counts = np.array([each.stop - each.start for each in answered])
    rows = np.zeros(int(counts.sum()), ROW)
    rows["id"] = np.repeat(np.array([id_of(each.request_id) for each in answered]), counts)
    rows["at"] = now
    first = np.repeat(np.cumsum(counts) - counts, counts)
    rows["row"] = np.arange(len(rows)) - first + np.repeat([one.first for one in answered], counts)
    rows["label"], rows["sampled"] = NO_LABEL, np.nan
    rows["top"], rows["score"] = -1, -np.inf
    rows["context"] = np.repeat(
        np.array([_code(each.priors[0]) for each in answered], np.uint32), counts
    )
    alike: dict[int, list[tuple[int, Answered]]] = {}
    start = 0
    for each in answered:
        stop = start + each.stop - each.start
        if each.prior_of_row is None and isinstance(each.tau, float):
            alike.setdefault(each.top.shape[1], []).append((start, each))
        else:
            _fill(rows[start:stop], each)
        start = stop
    for found in alike.values():
        _fill_alike(rows, found)
    return rows


def _fill_alike(rows: Rows, found: Sequence[tuple[int, Answered]]) -> None:
    """Write the rows of requests that each have one tau and one prior, all at once."""
    first, each = zip(*found, strict=True)
    counts = [one.stop - one.start for one in each]
    request = np.repeat(np.arange(len(each)), counts)
    within = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
    where = np.array(first)[request] + within
    blocks = _blocks(each)
    top = np.concatenate([one.top[start:stop, :TOP] for one, start, stop in blocks])
    chance = np.concatenate([one.probability[start:stop, :TOP] for one, start, stop in blocks])
    tau = np.array([one.tau for one in each])[request]
    score = _log(chance)
    offsets = [one.priors[0].offset for one in each]
    which = np.array([id(offset) for offset in offsets])[request]
    for key, offset in {id(offset): offset for offset in offsets}.items():
        if offset is not None:
            mine = np.flatnonzero(which == key)
            score[mine] += tau[mine, None] * offset[top[mine]]
    decided = top[:, 0].copy()
    if any(one.decision is not None for one in each):
        by_cost = np.concatenate(
            [
                np.full(count, NO_COSTS)
                if one.decision is None
                else one.decision[one.start : one.stop]
                for one, count in zip(each, counts, strict=True)
            ]
        )
        decided = np.where(by_cost == NO_COSTS, decided, by_cost)
    k = top.shape[1]
    rows["decided"][where] = decided
    rows["top"][where, :k] = top
    rows["score"][where, :k] = score


def _blocks(each: Sequence[Answered]) -> list[tuple[Answered, int, int]]:
    """(a request, first row, row after the last) of runs of requests that were scored together."""
    found: list[tuple[Answered, int, int]] = []
    held, begin, end = each[0], each[0].start, each[0].start
    for one in each:
        if one.top is not held.top or one.start != end:
            found.append((held, begin, end))
            held, begin = one, one.start
        end = one.stop
    return [*found, (held, begin, end)]


def _fill(rows: Rows, each: Answered) -> None:
    """Write a request whose rows have their own tau or prior.

    log p + tau · (log σ − log ρ) undoes the prior of an answer.
    """
    own = slice(each.start, each.stop)
    top = each.top[own, :TOP]
    score, k = _log(each.probability[own, :TOP]), top.shape[1]
    tau = np.broadcast_to(np.asarray(each.tau, np.float64), len(rows))
    which = np.zeros(len(rows), np.int64) if each.prior_of_row is None else each.prior_of_row
    for number, used in enumerate(each.priors):
        offset = used.offset
        if offset is not None:
            mine = np.flatnonzero(which == number)
            score[mine] += tau[mine, None] * offset[top[mine]]
    rows["context"] = np.array([_code(used) for used in each.priors], np.uint32)[which]
    rows["decided"] = top[:, 0]
    if each.decision is not None:
        by_cost = each.decision[own]
        rows["decided"] = np.where(by_cost == NO_COSTS, top[:, 0], by_cost)
    rows["top"][:, :k] = top
    rows["score"][:, :k] = score


def _code(used: UsedPrior) -> int:
    by = used.chosen_by
    return 0 if by is None else context_code(by.name, by.key, by.value)


def _log(chances: NDArray[np.float32]) -> NDArray[np.float64]:
    """The log of probabilities [n, k]; -inf of 0, which no prior brings back."""
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = np.log(chances.astype(np.float64))
    return found


class Answers:
    """The answers of this worker, by model version, and the files of all workers."""

    def __init__(
        self,
        own: Callable[[str, int], Path],
        folders: Callable[[], Iterable[Path]],
        *,
        max_bytes: int,
        seconds: float,
        shared: SharedAnswers | None = None,
        share_seconds: float = 60.0,
    ) -> None:
        """Keep no answers until `start` starts the thread.

        own: this worker's folder of a model and version. folders: those of all workers.
        max_bytes: of the rows of a version in a worker; 0 keeps none. seconds: how long a row is
        kept at most. shared: the answers in the store, which are read and written about every
        `share_seconds`; None: answers stay on this host.
        """
        self._own, self._folders = own, folders
        self._shared, self._share_seconds = shared, share_seconds
        self._share_trouble = ""
        self._thread: threading.Thread | None = None
        self._max_bytes, self.seconds = max_bytes, seconds
        self._versions: dict[tuple[str, int], VersionAnswers] = {}
        self._users: dict[tuple[str, int], int] = {}
        """Uses of each version: two while it is loaded again and the old one retires."""
        self._rings: dict[Path, Ring] = {}
        self._woken = threading.Event()
        self._stopped = False

    @property
    def kept(self) -> bool:
        """Whether answers are kept at all."""
        return self._max_bytes > 0

    def of(self, bundle: Bundle) -> VersionAnswers | None:
        """The recorder of a version's answers, until `forget`; None if no answers are kept."""
        if not self.kept:
            return None
        key = (bundle.name, bundle.version)
        self._users[key] = self._users.get(key, 0) + 1
        found = self._versions.get(key)
        if found is None:
            found = VersionAnswers(
                self._own(*key) / FILE, max_bytes=self._max_bytes, wake=self._woken.set
            )
            self._versions[key] = found
        return found

    def forget(self, bundle: Bundle) -> None:
        """End one use of a version that `of` was called for."""
        key = (bundle.name, bundle.version)
        users = self._users.pop(key, 1) - 1
        if users:
            self._users[key] = users
        else:
            self._versions.pop(key, None)

    def start(self, refresh: Callable[[], object] = lambda: None) -> None:
        """Start the writing thread. It also calls `refresh` about every REFRESH_SECONDS."""
        self._refresh = refresh
        if self.kept:
            self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread. Blocks while it stores the last answers, STOP_SECONDS at most."""
        self._stopped = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def flush(self) -> None:
        """Write what this worker has noted. For any thread."""
        for each in list(self._versions.values()):
            each.flush()

    def files(self) -> list[tuple[str, int, Rows]]:
        """(model, version, rows) of the files of this host's workers, as far as they can be read,
        and of the answers of other replicas that are shared.
        """
        found, seen = [], set()
        for folder in self._folders():
            path = folder / FILE
            seen.add(path)
            try:
                ring = self._rings.get(path) or self._rings.setdefault(path, Ring(path))
                rows = ring.held()
            except (OSError, ValueError):
                self._rings.pop(path, None)
                continue
            model, _, version = folder.name.rpartition("@")
            found.append((model, int(version), rows))
        for path in set(self._rings) - seen:  # a file that was deleted keeps its space while mapped
            self._rings.pop(path, None)
        return found if self._shared is None else found + self._shared.files()

    def share_labels(self, of: Version, rows: Sequence[Rows]) -> None:
        """Store the labels of rows [1] for the other replicas, where answers are shared."""
        if self._shared is None or not rows:
            return
        try:
            self._shared.add_labels(of, labels_of(rows))
        except Exception as error:  # noqa: BLE001 - the labels are set here
            logger.warning(
                "labels of %d answers to %s version %d did not reach the other replicas: %s; "
                "send them again once the store works",
                len(rows),
                *of,
                error,
            )

    def _share(self) -> None:
        """Restore the answers from before a restart, and share answers and labels."""
        if self._shared is None:
            return
        versions = dict(self._versions)
        try:
            for of, rows in self._shared.restored(versions).items():
                versions[of].restore(rows)
            self._shared.sync({of: each.held() for of, each in versions.items()})
            self._share_trouble = ""
        except Exception as error:  # noqa: BLE001 - the store may be away; answers stay here
            if str(error) != self._share_trouble:
                self._share_trouble = str(error)
                logger.warning(
                    "answers cannot be shared through the store, and feedback finds only those of "
                    "this replica until the store works again: %s",
                    error,
                )

    def publish(self, model: str, version: int, figures: Mapping[str, float]) -> None:
        """Share figures of a version with the metrics of all workers; a failure is logged."""
        folder = self._own(model, version)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            beside = folder / f"{FIGURES}.new"
            beside.write_text(json.dumps({"at": time.time(), **figures}), encoding="utf-8")
            beside.replace(folder / FIGURES)
        except OSError as error:
            logger.warning(
                "the error of live traffic of %s version %d is missing in the metrics: %s; the "
                "next scrape tries again",
                model,
                version,
                error,
            )

    def published(self) -> dict[tuple[str, int], dict[str, float]]:
        """The newest figures of each version that any worker has published."""
        found: dict[tuple[str, int], dict[str, float]] = {}
        for folder in self._folders():
            model, _, version = folder.name.rpartition("@")
            with contextlib.suppress(OSError, ValueError):
                figures = json.loads((folder / FIGURES).read_bytes())
                held = found.get((model, int(version)))
                if held is None or held["at"] < figures["at"]:
                    found[model, int(version)] = figures
        return found

    def _run(self) -> None:
        refreshed, shared = time.monotonic(), -math.inf
        while not self._stopped:
            self._woken.wait(EVERY_SECONDS)
            self._woken.clear()
            try:
                self.flush()
                if time.monotonic() - shared > self._share_seconds:
                    self._share()
                    shared = time.monotonic()
                if time.monotonic() - refreshed > REFRESH_SECONDS:
                    refreshed = time.monotonic()
                    self._refresh()
            except Exception:
                logger.exception(
                    "answers could not be kept, so feedback on them will be refused; report this "
                    "with the traceback"
                )
        if self._shared is not None:
            self.flush()
            self._share()
