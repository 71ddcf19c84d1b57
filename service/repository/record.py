"""Records a model version's batches and refusals: metrics, recent logits, and rows to track.

It also notes the answers that feedback may refer to.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from service.batching.facts import BatchFacts
from service.batching.queue import Entry
from service.batching.work import Abandoned, DeadlinePassed, Overloaded
from service.evaluate.answers import MANY, Answered, VersionAnswers
from service.observe.model_metrics import ModelMetrics
from service.priors.recent import LogitReservoir
from service.priors.shift.stream import Ranking, Setting, Stream

_REASONS = {Overloaded: "overloaded", DeadlinePassed: "deadline", Abandoned: "abandoned"}


class ModelRecord:
    """Receives the reports of a batcher (`Record` in `service/batching/work.py`)."""

    def __init__(self, metrics: ModelMetrics, recent: LogitReservoir, stream: Stream) -> None:
        self._metrics, self._recent, self._stream = metrics, recent, stream
        self._tracks_ranked = stream.top_k > 0

    def wants_logits(self) -> bool:
        """Whether the tracker or the sample would take rows of logits now."""
        tracks = self._stream.credit > 0 and not self._tracks_ranked
        return tracks or self._recent.wants_rows()

    def least_top_k(self, least: int) -> Callable[[], int] | None:
        """How many classes the next batch ranks: `least`, or more where they are tracked.

        None for always 1.
        """
        stream = self._stream
        if self._tracks_ranked:
            return lambda: stream.top_k if stream.credit > 0 else least
        return None if least == 1 else lambda: least

    def batch(self, facts: BatchFacts) -> None:
        """Count a graph call, and sample its logits where the call returned them."""
        self._metrics.batch(facts)
        answered, logits = facts.answered, facts.outputs.logits
        if logits is None:
            self._recent.pass_over(facts.rows if answered is None else int(answered.sum()))
        else:
            rows = logits if answered is None else logits[answered]
            self._recent.add(rows)
            if self._stream.credit > 0 and not self._tracks_ranked:
                self._stream.add(rows)
        if self._tracks_ranked and self._stream.credit > 0:
            ranking = ranking_of(facts)
            if ranking.classes.shape[1] >= self._stream.top_k:
                self._stream.add_ranking(ranking)

    def refused(self, error: Exception) -> None:
        """Count a request that was not scored, by the reason for it."""
        reason = _REASONS.get(type(error))
        if reason is None:
            reason = "invalid" if isinstance(error, ValueError) else "failed"
        self._metrics.rejected(reason)


def ranking_of(facts: BatchFacts) -> Ranking:
    """The answers of a batch with the prior and tau of each, for the tracker."""
    settings = []
    for piece in facts.pieces:
        work = piece.entry.work
        own, tau, of_row = slice(piece.start, piece.start + piece.rows), work.tau, work.prior_of_row
        settings.append(
            Setting(
                piece.rows,
                tau[own] if isinstance(tau, np.ndarray) else tau,
                [each.offset for each in work.priors],
                None if of_row is None else of_row[own],
            )
        )
    outputs = facts.outputs
    return Ranking(outputs.top_index, outputs.top_probability, settings, facts.answered)


_new = tuple.__new__


def keeper(answers: VersionAnswers) -> Callable[[Sequence[Entry]], None]:
    """A function that notes the answers of finished entries, except those of `/adjust`."""
    note, noted = answers.note, answers.noted

    def answered(entries: Sequence[Entry]) -> None:
        for entry in entries:
            work = entry.work
            asked: Any = entry.caller
            if entry.error is not None or not work.is_traffic or asked.request_id is None:
                continue
            if entry.parts is not None:
                _note_parts(entry, note)
                continue
            outputs = entry.outputs
            note(
                _new(
                    Answered,
                    (
                        asked.request_id,
                        outputs.top_index,
                        outputs.top_probability,
                        outputs.decision,
                        entry.start,
                        entry.stop,
                        work.tau,
                        work.priors,
                        work.prior_of_row,
                        0,
                    ),
                )
            )
        if len(answers.waiting) > MANY:
            noted()

    return answered


def _note_parts(entry: Entry, note: Callable[[Answered], object]) -> None:
    """Note a large request piece by piece, as a thread joins its scores only later."""
    work, asked = entry.work, cast("Any", entry.caller)
    tau, of_row = work.tau, work.prior_of_row
    for first, outputs, start, stop in entry.parts or ():
        own = slice(first, first + stop - start)
        note(
            Answered(
                asked.request_id,
                outputs.top_index,
                outputs.top_probability,
                outputs.decision,
                start,
                stop,
                tau[own] if isinstance(tau, np.ndarray) else tau,
                work.priors,
                None if of_row is None else of_row[own],
                first,
            )
        )
