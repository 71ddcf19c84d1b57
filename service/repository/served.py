"""One loaded version of a model, and the references that keep it loaded while requests use it."""

import asyncio
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from service.batching.batcher import Batcher
from service.batching.queue import Entry
from service.contract.bundle import Bundle
from service.graph.prior_table import PriorTable
from service.graph.session import Graph
from service.observe.model_metrics import ModelMetrics
from service.priors.orders.wishes import Rollout
from service.priors.recent import LogitReservoir
from service.priors.rule import source_warnings
from service.priors.shift.stream import Stream
from service.wire.json_rows import ShortJson
from service.wire.ranked import ClassJson

_END_BYTES = 64 * 1024


class Trial(NamedTuple):
    """A newer version on trial beside the one that answers by default.

    below: requests whose hash, of 32 bits, is smaller go to it.
    """

    candidate: "ServedModel"
    below: int

    @property
    def share(self) -> float:
        """The share of the requests that it gets."""
        return self.below / 2**32

    @classmethod
    def of(cls, candidate: "ServedModel", share: float) -> "Trial":
        """A trial with a share, above 0 and at most 1, of the requests."""
        return cls(candidate, round(share * 2**32))


@dataclass(eq=False)
class ServedModel:
    """One loaded version and everything that belongs to it.

    bundle: its model.json. graph: its open session. table: the priors that its requests use.
    batcher: its queue. metrics: its counters. recent: a sample of recent logits. stream: the
    rows that its tracker learns from. report: its report.json, or an empty object. infer_forms:
    parsed headers of recent requests of the Open Inference Protocol, by what a client repeats of
    them; that route bounds them.
    """

    bundle: Bundle
    graph: Graph
    table: PriorTable
    batcher: Batcher
    metrics: ModelMetrics
    recent: LogitReservoir
    stream: Stream
    report: dict[str, object] = field(default_factory=dict)
    infer_forms: dict[bytes, Any] = field(default_factory=dict)
    row_seconds: float = 0.0
    """Measured seconds per row in a full batch."""
    full_batch: int = 1
    """Rows of a full batch."""
    trial: Trial | None = None
    """The version on trial beside this one; only the default version has one."""
    class_json: ClassJson = field(init=False)
    short_json: ShortJson = field(init=False)
    source_warnings: tuple[str, ...] = field(init=False)
    _holders: int = 0
    _free: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.class_json = ClassJson(self.bundle.class_names)
        self.short_json = ShortJson(self.bundle.input)
        self.source_warnings = source_warnings(self.bundle)

    def far_inputs(self, entries: Sequence[Entry]) -> list[str | None] | None:
        """A warning for each request whose inputs are far from those of training, else None.

        Returns None if no request needs one or model.json has no input statistics. entries: the
        requests of one graph call, with their scores.
        """
        familiarity, features = self.graph.familiarity, entries[0].outputs.features
        if familiarity is None or features is None:
            return None
        far = familiarity.far(features)
        if not far and len(features) == len(entries):
            return None
        found: list[str | None] = []
        for entry in entries:
            several = entry.stop - entry.start > 1
            if several or entry.start in far:
                rows = self.graph.float_rows(entry.work.inputs)
                found.append(familiarity.warning(rows, features[entry.start : entry.stop]))
            else:
                found.append(None)
        return found if any(found) else None

    def choose(self, body: bytes | bytearray) -> "ServedModel":
        """This version or the one on trial, by the body: equal requests get equal answers.

        Of a large body, only both ends decide: all of it would hold the event loop.
        """
        trial = self.trial
        if trial is not None and zlib.crc32(_ends(body)) < trial.below:
            return trial.candidate
        return self

    @property
    def is_held(self) -> bool:
        """Whether a request that is not queued yet needs the model."""
        return self._holders > 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the model loaded for a request that is not queued yet: `with model.held():`."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._holders == 0:
                self._free.set()

    async def retire(self) -> None:
        """Wait until no request holds the model, then drain and close its queue."""
        while self._holders:
            self._free.clear()
            await self._free.wait()
        await self.batcher.drain()
        self.batcher.close()


def _ends(body: bytes | bytearray) -> bytes | bytearray:
    """A short body, or both ends of a long one."""
    return body if len(body) <= 2 * _END_BYTES else body[:_END_BYTES] + body[-_END_BYTES:]


def put_on_trial(chosen: dict[int, ServedModel], rollout: Rollout | None) -> dict[int, ServedModel]:
    """Return the versions in order, the default first, with its `trial` set from the rollout.

    chosen: versions by number, newest first; each loses the trial that it had.
    """
    candidate = None if rollout is None else chosen.get(rollout.version)
    stable = [model for model in chosen.values() if model is not candidate]
    for model in chosen.values():
        model.trial = None
    if rollout is None or candidate is None or not stable:
        return chosen
    stable[0].trial = Trial.of(candidate, rollout.share)
    ordered = [stable[0], candidate, *stable[1:]]
    return {model.bundle.version: model for model in ordered}
