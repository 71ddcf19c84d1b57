"""The gauges of models and priors, computed on each scrape by the thread that answers it."""

from collections.abc import Iterable, Iterator
from typing import get_args

from service.contract.prior import UnknownLabelFrequencies
from service.contract.shift.verdict import Verdict
from service.evaluate.live import Evaluation
from service.observe.exposition import VectorGauge
from service.observe.run_folder import Gauge
from service.priors.drift import Drift
from service.priors.names import DEFAULT
from service.priors.priors import Priors
from service.priors.revisions import PriorDoesNotFit, UnknownPrior
from service.priors.shift.watch import ShiftWatch
from service.repository.repository import Repository
from service.repository.served import ServedModel

TRAINING = "training"


class Gauges:
    """Reads the gauges from the loaded models and the priors in force."""

    def __init__(
        self,
        repository: Repository,
        priors: Priors,
        drift: Drift,
        shift: ShiftWatch,
        evaluation: Evaluation,
        *,
        max_class_series: int,
    ) -> None:
        """Note where the gauges come from; nothing is read yet.

        repository: the loaded models. priors: those in force. drift: the divergence of traffic from
        each prior. shift: the estimates of the class mix. evaluation: the live errors from
        feedback. max_class_series: the most classes of a model that get a series of their own.
        """
        self._evaluation = evaluation
        self._repository, self._priors, self._drift = repository, priors, drift
        self._shift = shift
        self._max_class_series = max_class_series

    def numbers(self) -> Iterator[Gauge]:
        """Yield the gauges of priors, traffic estimates, queued rows and loaded models."""
        for found in self._drift.measured:
            labels = {"model": found.model, "prior": found.prior}
            yield "priordial_prior_divergence", labels, found.value
        yield from self._of_traffic()
        figures = self._evaluation.published()
        for name, by_version in self._repository.all().items():
            newest = next(iter(by_version.values()))
            yield from self._of_priors(newest)
            for model in by_version.values():
                version = {"model": name, "version": str(model.bundle.version)}
                errors = figures.get((name, model.bundle.version), {})
                for bound in ("value", "low", "high"):
                    if bound in errors:
                        labels = {**version, "bound": bound}
                        yield "priordial_balanced_error", labels, errors[bound]
                yield "priordial_queued_rows", version, float(model.batcher.queued_rows)
                provider = {**version, "provider": model.graph.provider}
                yield "priordial_model_info", provider, 1.0
            if newest.trial is not None:
                version = {"model": name, "version": str(newest.trial.candidate.bundle.version)}
                yield "priordial_rollout_share", version, newest.trial.share

    def vectors(self) -> Iterator[VectorGauge]:
        """Yield gauges with one number per class, for each model's newest version.

        They are the target of each prior, and the estimated class mix of traffic with its interval.
        """
        for newest in self._repository.newest():
            for name in (*self._shown(newest), TRAINING):
                try:
                    prior = self._priors.in_force(newest.bundle, name).prior
                except _NOT_IN_FORCE:
                    continue
                yield from newest.metrics.target(name, prior.target)
            one = self._shift.of(newest.bundle)
            if one is not None and one.together is not None and one.together.rows:
                low, high = one.together.interval(one.calibration_variance)
                yield from newest.metrics.estimated(one.together.prior, low, high)

    def _of_priors(self, newest: ServedModel) -> Iterator[Gauge]:
        """Yield each prior's revision, its last author, and whether its target is expected."""
        model = newest.bundle.name
        for prior in self._names(model):
            labels = {"model": model, "prior": prior}
            entry = self._priors.newest(model, prior)
            revision = 0 if entry is None else entry.revision
            yield "priordial_prior_revision", labels, float(revision)
            last = self._priors.last(model, prior)
            if last is not None:
                who = {**labels, "revision": str(last.revision), "by": last.by}
                yield "priordial_prior_stored_timestamp_seconds", who, last.updated_at.timestamp()
        for prior in self._shown(newest):
            try:
                expected = self._priors.in_force(newest.bundle, prior).prior.expected
            except _NOT_IN_FORCE:
                continue
            yield "priordial_target_expected", {"model": model, "prior": prior}, float(expected)

    def _of_traffic(self) -> Iterator[Gauge]:
        for one in self._shift.followed():
            by_model = {"model": one.served.bundle.name}
            if one.together is not None and one.together.rows:
                yield "priordial_estimate_rows", by_model, one.together.effective_rows
            for prior, value in self._shift.divergences(one):
                yield "priordial_estimated_prior_divergence", {**by_model, "prior": prior}, value
            if one.judged is not None:
                for verdict in get_args(Verdict):
                    is_it = float(verdict == one.judged.verdict)
                    yield "priordial_estimate_verdict", {**by_model, "verdict": verdict}, is_it

    def _names(self, model: str) -> Iterable[str]:
        return {DEFAULT: None, **dict.fromkeys(self._priors.names(model))}

    def _shown(self, model: ServedModel) -> Iterable[str]:
        """Return the priors that get gauges: `default`, then stored ones, up to the limit."""
        room = 1 + self._max_class_series // model.metrics.class_series
        return list(self._names(model.bundle.name))[:room]


_NOT_IN_FORCE = (PriorDoesNotFit, UnknownPrior, UnknownLabelFrequencies)
