"""Records a model version's batches and refusals: metrics, recent logits, and rows to track."""

from service.batching.work import Abandoned, BatchFacts, DeadlinePassed, Overloaded
from service.observe.model_metrics import ModelMetrics
from service.priors.recent import LogitReservoir
from service.priors.shift.stream import Stream

_REASONS = {Overloaded: "overloaded", DeadlinePassed: "deadline", Abandoned: "abandoned"}


class ModelRecord:
    """Where a batcher reports what it did (service/batching/work.py, Record)."""

    def __init__(self, metrics: ModelMetrics, recent: LogitReservoir, stream: Stream) -> None:
        self._metrics, self._recent, self._stream = metrics, recent, stream

    def wants_logits(self) -> bool:
        """Whether the tracker or the sample would take rows now."""
        return self._stream.credit > 0 or self._recent.wants_rows()

    def batch(self, facts: BatchFacts) -> None:
        """Count a graph call, and sample its logits where the call returned them."""
        self._metrics.batch(facts)
        answered, logits = facts.answered, facts.outputs.logits
        if logits is None:
            self._recent.pass_over(facts.rows if answered is None else int(answered.sum()))
        else:
            rows = logits if answered is None else logits[answered]
            self._recent.add(rows)
            if self._stream.credit > 0:
                self._stream.add(rows)

    def refused(self, error: Exception) -> None:
        """Count a request that was not scored, by the reason for it."""
        reason = _REASONS.get(type(error))
        if reason is None:
            reason = "invalid" if isinstance(error, ValueError) else "failed"
        self._metrics.rejected(reason)
