"""How far recent answers have moved from what a prior expects, measured in a thread of its own.

For each prior in use: the Jensen-Shannon divergence of the mean adjusted probability of recent rows, at the model's default
tau, from the prior's target where that is `expected`, else from the same mean over the model's first rows (its baseline).
"""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.contract.bundle import Bundle
from service.contract.prior import InvalidPrior, Prior, UnknownLabelFrequencies
from service.priors.priors import Priors
from service.priors.recent import LogitReservoir
from service.priors.revisions import DEFAULT, PriorDoesNotFit
from service.priors.rule import Rule, jensen_shannon, mean_probability

logger = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
MIN_ROWS = 100
"""Fewer say nothing of a mix."""
BASELINE_CELLS = 250_000
"""Logits of the first rows that are kept of a model: 1 MB."""
MAX_PRIORS = 50
"""Priors of a model that are watched, the first by name."""
_CHUNK_CELLS = 50_000  # so that no step keeps others waiting

Logits = NDArray[np.float32]


@dataclass
class Watched:
    """A model version, its recent logits, and the first ones once there were enough."""

    bundle: Bundle
    recent: LogitReservoir
    baseline: Logits | None = None


Gauge = tuple[str, dict[str, str], float]


class Drift:
    """Looks at every model now and then; `gauges` tells what it saw last."""

    def __init__(
        self, priors: Priors, models: Callable[[], Iterable[tuple[Bundle, LogitReservoir]]]
    ) -> None:
        """`models` lists the newest version of each model."""
        self._priors, self._models = priors, models
        self._watched: dict[int, Watched] = {}
        self._seen: list[Gauge] = []
        self._stopped = threading.Event()

    def start(self) -> None:
        """Look every few seconds until `stop`."""
        threading.Thread(target=self._run, name="drift", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def gauges(self) -> list[Gauge]:
        """What was seen last, for the metrics."""
        return self._seen

    def look(self) -> None:
        """Measure every model once."""
        found: list[Gauge] = []
        watched = {}
        for bundle, recent in self._models():
            one = self._watched.get(id(bundle)) or Watched(bundle, recent)
            watched[id(bundle)] = one
            found += self._look_at(one)
        self._watched, self._seen = watched, found

    def _look_at(self, one: Watched) -> Iterable[Gauge]:
        logits = one.recent.sample().logits
        if len(logits) < MIN_ROWS:
            return
        bundle = one.bundle
        if one.baseline is None:
            one.baseline = logits[: max(MIN_ROWS, BASELINE_CELLS // logits.shape[1])]
        for name in [DEFAULT, *(n for n in self._priors.names(bundle.name) if n != DEFAULT)][
            :MAX_PRIORS
        ]:
            try:
                entry = self._priors.newest(bundle.name, name)
                prior = self._priors.resolved(bundle, name, entry).prior
            except (PriorDoesNotFit, InvalidPrior, UnknownLabelFrequencies):
                continue
            labels = {"model": bundle.name, "prior": name}
            value = divergence(
                logits, one.baseline, prior=prior, tau=bundle.tau, temperature=bundle.temperature
            )
            yield "priordial_prior_divergence", labels, value

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_SECONDS):
            try:
                self.look()
            except Exception:
                logger.exception("drift could not be measured")


def divergence(
    recent: Logits, baseline: Logits, *, prior: Prior, tau: float, temperature: float
) -> float:
    """Nats from 0 to log 2 between recent logits [n, C] and the prior's expected target, else the baseline [m, C]."""
    rule = Rule(prior, tau)

    def mean(logits: Logits) -> Vector:
        return mean_probability(logits, rule, temperature=temperature, chunk_cells=_CHUNK_CELLS)

    return jensen_shannon(mean(recent), prior.target if prior.expected else mean(baseline))
