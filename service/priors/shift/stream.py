"""The queue of rows from the batcher to a model version's tracker: bounded, never delays requests.

Below RANKED_FROM classes a row is its raw logits. With more it is what the graph returns anyway:
the most probable classes and their probabilities. The tracker then divides out the prior that the
answer used.
"""

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, log_source_prior
from service.contract.bundle import Bundle
from service.contract.members.named import vector_of
from service.contract.members.sparse import SparseOffset
from service.contract.shift.tracking import OtherState, PriorTracker, Ranked, Tracked

MAX_WAITING_ROWS = 256
"""The most rows tracked between two calls of `learn`; further rows are ignored and not counted."""
FULL_PRICE_CLASSES = 1024
"""With more classes, a row of logits counts as several against MAX_WAITING_ROWS. The time for
tracking then stays the same.
"""
RANKED_FROM = 5000
"""With at least this many classes, a row is only its best classes, so its cost hardly grows
with C.
"""
RANKED_CLASSES = 16
"""The number of classes of such a row. Ranking 16 instead of 5 of 100,000 classes costs a batch 1
to 3 % more.
"""
MAX_SETTINGS = 16
"""The most pairs of a prior and a tau that one call of `learn` divides out, each in O(C)."""
_LEAST_REST = 1e-9


class Setting(NamedTuple):
    """The settings with which consecutive rows of a batch were answered.

    tau: one value, or [rows]. offsets: for each prior, log σ − log ρ [C]; None where σ is unknown.
    prior_of_row: [rows] index into `offsets`; None: all rows have the first.
    """

    rows: int
    tau: float | NDArray[np.float32]
    offsets: Sequence[NDArray[np.float32] | SparseOffset | None]
    prior_of_row: NDArray[np.int64] | None


class Ranking(NamedTuple):
    """A batch of answers: the best classes [n, k] with probabilities [n, k], and their settings.

    answered: [n] whether a row is traffic, and not a comparison of settings; None: all are.
    """

    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    settings: Sequence[Setting]
    answered: NDArray[np.bool_] | None


class Stream:
    """Learns from a bounded sample of a model version's rows.

    `credit`, `add` and `add_ranking` are for the batcher and cost about a microsecond; `learn` is
    for a thread that calls it a few times a second. So tracking costs a fixed amount of time,
    however many rows are served.
    """

    def __init__(self, bundle: Bundle) -> None:
        log_source = source_of(bundle)
        classes = len(bundle.class_names)
        ranked = log_source is not None and classes >= RANKED_FROM
        self.top_k = RANKED_CLASSES if ranked else 0
        """The number of classes per row for `add_ranking`; 0: use `add` with rows of logits."""
        self._price = 1.0 if ranked else max(1.0, classes / FULL_PRICE_CLASSES)
        self.credit = 0.0 if log_source is None else float(MAX_WAITING_ROWS)
        """How many more rows are accepted before the next `learn`; none when it is not above 0."""
        self._bundle, self._log_source = bundle, log_source
        self._tracker = self._new_tracker()
        self._lock = threading.Lock()
        self._waiting: deque[NDArray[np.float32] | Ranking] = deque()

    @property
    def follows(self) -> bool:
        """Whether the prior can be followed: the model's source prior is known."""
        return self._tracker is not None

    def add(self, logits: NDArray[np.float32]) -> None:
        """Take the raw logits [n, C] of a batch while there is credit.

        A whole batch is taken, up to MAX_WAITING_ROWS, since its logits have been fetched already.
        """
        if self.credit > 0 and len(logits):
            self._waiting.append(logits[:MAX_WAITING_ROWS])
            self.credit -= len(logits) * self._price

    def add_ranking(self, ranking: Ranking) -> None:
        """Take the answers of a batch while there is credit."""
        if self.credit > 0 and len(ranking.classes):
            own = slice(MAX_WAITING_ROWS), slice(self.top_k)
            classes, probabilities = ranking.classes[own], ranking.probabilities[own]
            self._waiting.append(ranking._replace(classes=classes, probabilities=probabilities))
            self.credit -= len(classes) * self._price

    def learn(self) -> None:
        """Update the tracker with the queued rows, and accept more rows again."""
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if self._tracker is None:
            return
        self.credit = min(self.credit, 0.0) + MAX_WAITING_ROWS
        logits = [each for each in taken if not isinstance(each, Ranking)]
        rankings = [each for each in taken if isinstance(each, Ranking)]
        assert self._log_source is not None
        ranked = ratios_of(rankings, self._log_source) if rankings else None
        with self._lock:
            if logits:
                self._tracker.update(np.concatenate(logits))
            if ranked is not None:
                self._tracker.update_ranked(ranked)

    def now(self) -> Tracked | None:
        """The estimate now; None where nothing can be followed."""
        if self._tracker is None:
            return None
        with self._lock:
            return self._tracker.estimate()

    def state(self) -> bytes | None:
        """The tracker's state, to be stored; None before the first row."""
        if self._tracker is None:
            return None
        with self._lock:
            return self._tracker.state() if self._tracker.rows else None

    def could_restore(self, state: bytes) -> bool:
        """Whether `restore` would accept a stored state now."""
        return self._restored(state) is not None

    def restore(self, state: bytes) -> bool:
        """Continue from a stored state, in place of the rows learnt so far.

        Returns False, and changes nothing, if the state does not fit or was learnt from no more
        rows than this stream has learnt.
        """
        with self._lock:
            restored = self._restored(state)
            if restored is not None:
                self._tracker = restored
        return restored is not None

    def _restored(self, state: bytes) -> PriorTracker | None:
        tracker = self._new_tracker()
        if tracker is None or self._tracker is None:
            return None
        try:
            tracker.restore(state)
        except OtherState:
            return None
        return tracker if tracker.rows > self._tracker.rows else None

    def _new_tracker(self) -> PriorTracker | None:
        if self._log_source is None:
            return None
        bundle = self._bundle
        return PriorTracker(
            temperature=bundle.temperature, log_source=self._log_source, fixed=_fixed(bundle)
        )


def ratios_of(rankings: Iterable[Ranking], log_source: Vector) -> Ranked | None:
    """The likelihood ratios of answers, at most MAX_WAITING_ROWS of them; None for no row.

    An answer with offset o and tau has probabilities p_y = R_y·π_y. R_y is the likelihood ratio
    against the source prior σ [C], and π_y ∝ σ_y·exp(−tau·o_y) is the prior that the answer used.
    The classes not listed share 1 − Σ p; each gets their mean ratio, weighted by π. A row is left
    out if π gives these classes no mass, so that it says nothing about them.
    """
    parts: list[Ranked] = []
    normal: dict[tuple[int, float], float] = {}
    room = MAX_WAITING_ROWS
    for ranking in rankings:
        for alike, tau, offset in _alike(ranking):
            rows = alike[:room]
            key = (id(offset), tau)
            if key not in normal:
                if len(normal) == MAX_SETTINGS:
                    continue
                odds = log_source if offset is None else log_source - tau * np.asarray(offset)
                normal[key] = float(odds.max() + np.log(np.exp(odds - odds.max()).sum()))
            classes = ranking.classes[rows]
            log_odds = log_source[classes] - normal[key]
            if offset is not None:
                log_odds = log_odds - tau * offset[classes]
            found = _ratios(classes, ranking.probabilities[rows], log_odds)
            parts.append(found)
            room -= len(found.rest)
    if not parts or room == MAX_WAITING_ROWS:
        return None
    return Ranked(*map(np.concatenate, zip(*parts, strict=True)))


def _ratios(
    classes: NDArray[np.int64], probabilities: NDArray[np.float32], log_odds: Vector
) -> Ranked:
    """Ratios of rows with one tau and one prior, from the log of the odds π [n, k] of `ratios_of`.

    A class with probability 0 counts as not listed.
    """
    p = probabilities.astype(np.float64)
    odds = np.where(p > 0, np.exp(log_odds), 0.0)
    ratios = np.divide(p, odds, out=np.zeros_like(p), where=odds > 0)
    left = 1 - odds.sum(axis=1)
    rest = np.maximum(1 - p.sum(axis=1), 0.0) / np.maximum(left, _LEAST_REST)
    ratios = np.where(odds > 0, ratios, rest[:, None])
    peak = np.maximum(ratios.max(axis=1), rest)
    informative = np.flatnonzero((left > _LEAST_REST) & (peak > 0) & np.isfinite(peak))
    scaled = (ratios[informative] / peak[informative, None]).astype(np.float32)
    return Ranked(
        classes[informative], scaled, (rest[informative] / peak[informative]).astype(np.float32)
    )


def _alike(
    ranking: Ranking,
) -> Iterable[tuple[NDArray[np.int64], float, NDArray[np.float32] | SparseOffset | None]]:
    """Yield groups of traffic rows with one tau and prior: (rows, tau, offset of the prior)."""
    groups: dict[
        tuple[int, float], tuple[list[int], NDArray[np.float32] | SparseOffset | None]
    ] = {}
    row, end = 0, len(ranking.classes)
    for setting in ranking.settings:
        tau, of_row = setting.tau, setting.prior_of_row
        for own in range(min(setting.rows, end - row)):
            if ranking.answered is None or ranking.answered[row]:
                offset = setting.offsets[0 if of_row is None else of_row[own]]
                one = float(tau[own]) if isinstance(tau, np.ndarray) else float(tau)
                groups.setdefault((id(offset), one), ([], offset))[0].append(row)
            row += 1
    for (_, one), (rows, offset) in groups.items():
        yield np.array(rows, np.int64), one, offset


def estimate_of(bundle: Bundle, state: bytes) -> Tracked | None:
    """The estimate in another worker's stored state; None where the state does not fit."""
    other = Stream(bundle)
    return other.now() if other.restore(state) else None


def source_of(bundle: Bundle) -> Vector | None:
    """[C] the log source prior of a model: measured on validation, else implied by training."""
    if bundle.calibrated_log_source is not None:
        return bundle.calibrated_log_source
    if bundle.class_counts is not None:
        return log_source_prior(bundle.class_counts, loss_tau=bundle.loss_tau)
    return np.zeros(len(bundle.class_names)) if bundle.loss_tau == 1 else None


def _fixed(bundle: Bundle) -> NDArray[np.float64]:
    """[F, C] priors that traffic is likely to return to: uniform, and that of training."""
    uniform = np.full(len(bundle.class_names), 1 / len(bundle.class_names))
    if bundle.class_counts is None:
        return uniform[None]
    return np.stack([uniform, vector_of(bundle.class_counts)])
