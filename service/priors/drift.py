"""How far recent answers have moved from what a prior expects, measured in a separate thread.

For each prior in use, this is the Jensen-Shannon divergence of the mean adjusted probability of
recent rows, at the model's default tau. It is measured from the prior's target where that is
`expected`, and otherwise from the same mean over the model's first rows, its baseline.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector
from service.contract.bundle import Bundle
from service.contract.members.body import InvalidPrior
from service.contract.prior import Prior, UnknownLabelFrequencies
from service.priors.names import DEFAULT
from service.priors.priors import Priors
from service.priors.recent import LogitReservoir
from service.priors.revisions import PriorDoesNotFit
from service.priors.rule import Rule, jensen_shannon, mean_probability
from service.process.repeated import Repeated

EVERY_SECONDS = 5.0
MIN_ROWS = 100
"""The fewest recent rows for a measurement."""
BASELINE_CELLS = 250_000
"""The most logits of a model's first rows that are kept as its baseline: 1 MB."""
MAX_PRIORS = 50
"""The most priors measured per model, in alphabetical order."""
_CHUNK_CELLS = 50_000  # a step holds the GIL for a short time only

Logits = NDArray[np.float32]


@dataclass
class Watched:
    """A model version, its recent logits, and its baseline once there were enough rows."""

    bundle: Bundle
    recent: LogitReservoir
    baseline: Logits | None = None


class Divergence(NamedTuple):
    """A prior's divergence, in nats from 0 to log 2."""

    model: str
    prior: str
    value: float


class Drift:
    """Measures every model periodically; `measured` has the latest values."""

    def __init__(
        self, priors: Priors, models: Callable[[], Iterable[tuple[Bundle, LogitReservoir]]]
    ) -> None:
        """`models` lists the newest version of each model."""
        self._priors, self._models = priors, models
        self._watched: dict[int, Watched] = {}
        self.measured: Sequence[Divergence] = ()
        self._measuring = Repeated(
            self.look, name="drift", every_seconds=EVERY_SECONDS,
            failure="drift could not be measured",
        )  # fmt: skip

    def start(self) -> None:
        """Measure every few seconds until `stop`."""
        self._measuring.start()

    def stop(self) -> None:
        """Stop measuring."""
        self._measuring.stop()

    def look(self) -> None:
        """Measure every model once."""
        found: list[Divergence] = []
        watched = {}
        for bundle, recent in self._models():
            one = self._watched.get(id(bundle)) or Watched(bundle, recent)
            watched[id(bundle)] = one
            found += self._look_at(one)
        self._watched, self.measured = watched, found

    def _look_at(self, one: Watched) -> Iterable[Divergence]:
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
            value = divergence(
                logits, one.baseline, prior=prior, tau=bundle.tau, temperature=bundle.temperature
            )
            yield Divergence(bundle.name, name, value)


def divergence(
    recent: Logits, baseline: Logits, *, prior: Prior, tau: float, temperature: float
) -> float:
    """Divergence of recent logits [n, C] from the prior's expected target, or the baseline [m, C].

    In nats, from 0 to log 2.
    """
    rule = Rule(prior, tau)

    def mean(logits: Logits) -> Vector:
        return mean_probability(logits, rule, temperature=temperature, chunk_cells=_CHUNK_CELLS)

    return jensen_shannon(mean(recent), prior.target if prior.expected else mean(baseline))
