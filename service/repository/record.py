"""Records a model version's batches and refusals: metrics, and a sample of recent logits."""

from service.batching.work import Abandoned, BatchFacts, DeadlinePassed, Overloaded
from service.observe.model_metrics import ModelMetrics
from service.priors.recent import LogitReservoir

_REASONS = {Overloaded: "overloaded", DeadlinePassed: "deadline", Abandoned: "abandoned"}


class ModelRecord:
    """Where a batcher reports what it did (service/batching/work.py, Record)."""

    def __init__(self, metrics: ModelMetrics, recent: LogitReservoir) -> None:
        self._metrics, self._recent = metrics, recent
        self.wants_logits = recent.wants_rows

    def batch(self, facts: BatchFacts) -> None:
        """Count a graph call, and keep a sample of its logits where it gave them."""
        self._metrics.batch(facts)
        answered, logits = facts.answered, facts.outputs.logits
        if logits is None:
            self._recent.pass_over(facts.rows if answered is None else int(answered.sum()))
        else:
            self._recent.add(logits if answered is None else logits[answered])

    def refused(self, error: Exception) -> None:
        """Count a request that was not scored, by the reason."""
        reason = _REASONS.get(type(error))
        if reason is None:
            reason = "invalid" if isinstance(error, ValueError) else "failed"
        self._metrics.rejected(reason)
