"""Tracks the class prior of traffic, judges the estimate, and decides on automatic adoption.

It uses two threads, both off the event loop. One feeds the trackers a few times a second. The other
runs every `--shift-seconds`. It stores the state of this worker's trackers and combines it with the
stored states of other workers and replicas. In one worker of each replica it also judges the newest
rows and decides on automatic steps.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeVar, get_args

import numpy as np

from service.contract.adjustment import Vector
from service.contract.automatic import STRENGTH, AutoAdopt, Step, next_step
from service.contract.bundle import Bundle
from service.contract.members.body import InvalidPrior, PriorBody, kept_vector
from service.contract.members.named import short_form
from service.contract.prior import UnknownLabelFrequencies
from service.contract.shift.tracking import Tracked
from service.contract.shift.verdict import Assessment, Verdict, rows_wanted
from service.priors.names import DEFAULT
from service.priors.preview import TooLittleTraffic, estimate
from service.priors.priors import Priors
from service.priors.recent import LogitReservoir
from service.priors.revisions import PriorDoesNotFit, StoreUnavailable, UnknownPrior
from service.priors.rule import jensen_shannon
from service.priors.shift.history import History
from service.priors.shift.stream import Stream, estimate_of
from service.priors.store.kept import KeptState
from service.process.repeated import Repeated
from service.process.slices import decoded, stored_json
from service.process.threads import raise_limit

logger = logging.getLogger(__name__)
_Item = TypeVar("_Item")

LEARN_SECONDS = 0.25
STOP_SECONDS = 2.0
MAX_WATCHED_PRIORS = 10
"""The most priors per model with automatic steps: `default`, and others with `auto_adopt`."""
_ALIVE_LOOKS = 4
"""A worker that has stored no state for this many intervals no longer counts."""
_SHORTEST_ALIVE = timedelta(seconds=15)
_RESTORED_FOR = timedelta(days=1)
"""Older states are not restored: they say nothing about current traffic."""
_RESTORING = timedelta(minutes=10)
"""A new worker looks for a state for this long: a rolling update ends the old ones after it."""


class Keeper(Protocol):
    """A store of tracker states, such as `service.priors.store.kept.KeptStates`."""

    def keep(self, kept: KeptState) -> None:
        """Replace the last state of the same keeper."""

    def of(self, model: str, *, but: str = "") -> list[KeptState]:
        """The states of a model, the newest first, without that of one keeper."""

    def take_over(self, kept: KeptState, keeper: str) -> bool:
        """Give a state to another keeper; False if it has changed or another worker was first."""


class Served(NamedTuple):
    """The parts of a model's newest version that the watch needs."""

    bundle: Bundle
    recent: LogitReservoir
    stream: Stream


@dataclass(frozen=True)
class Automatic:
    """The state of a prior's automatic adoption: its bounds and its last decision."""

    prior: str
    bounds: AutoAdopt
    step: Step
    decided_at: datetime
    base: PriorBody
    revision: int
    found: Assessment


@dataclass(frozen=True)
class Judged:
    """The last judgement of a model's traffic; all members but the time are ready for JSON."""

    at: datetime
    verdict: str
    reason: str
    evidence: dict[str, Any]
    rows: int
    automatic: dict[str, dict[str, Any]]

    def document(self) -> str:
        """The JSON text that is kept in the store."""
        return stored_json({**self.__dict__, "at": self.at.isoformat()})

    @classmethod
    def of_document(cls, text: str) -> "Judged | None":
        """The judgement that a document holds; None for an empty or foreign one."""
        try:
            found = decoded(text)
            judged = cls(**{**found, "at": datetime.fromisoformat(found["at"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        fits = (
            judged.at.tzinfo is not None
            and judged.verdict in get_args(Verdict)
            and isinstance(judged.reason, str)
            and isinstance(judged.evidence, dict)
            and type(judged.rows) is int
            and isinstance(judged.automatic, dict)
            and all(isinstance(each, dict) for each in judged.automatic.values())
        )
        return judged if fits else None


@dataclass
class Followed:
    """The estimate, its history and the verdict for one model's traffic."""

    served: Served
    history: History
    together: Tracked | None = None
    """The combined estimate of all workers and replicas that see this model's traffic."""
    workers: int = 0
    judged: Judged | None = None
    calibration_variance: Vector | float = 0.0
    shown: str | None = None
    """The verdict shown to users; it changes when two judgements in a row agree."""
    last: str | None = None
    judged_at: datetime | None = None
    steady: dict[str, bool] = field(default_factory=dict)
    dry_at: dict[str, datetime] = field(default_factory=dict)
    restoring_until: datetime | None = None
    """Until then a stored state is looked for; None once one has been restored."""

    @property
    def verdict(self) -> str | None:
        """The verdict that is shown."""
        return self.shown


class ShiftWatch:
    """Follows every model that is served."""

    def __init__(
        self,
        priors: Priors,
        models: Callable[[], Iterable[Served]],
        *,
        kept: Keeper | None,
        every_seconds: float,
        replica: str,
        slot: int = 0,
        act: Callable[[Bundle, Automatic], None] = lambda *_: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`models` lists the newest version of each model; `act` takes a step that is due.

        priors: those that a judgement compares with. now: the present, in UTC. kept: the store in
        which states survive a restart; None keeps them in memory only. every_seconds: time between
        two judgements. replica: this replica's name, which no other replica with the same store
        has. slot: this worker's number in its replica; the worker with slot 0 judges.
        """
        self._priors, self._models, self._kept = priors, models, kept
        self._every, self._slot, self._act, self._now = every_seconds, slot, act, now
        self._keeper = f"{replica}/{slot}"
        self._followed: dict[int, Followed] = {}
        self._store_trouble = ""
        self._threads = (
            Repeated(
                self.learn, name="tracking", every_seconds=LEARN_SECONDS,
                failure="the prior of traffic could not be tracked",
            ),
            Repeated(
                self.look, name="shift", every_seconds=every_seconds,
                failure="traffic could not be judged",
            ),
        )  # fmt: skip

    def start(self) -> None:
        """Start both threads; they run until `stop`."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop both threads and store the state a last time, within at most twice STOP_SECONDS.

        The store may hang, so a separate thread writes the state.
        """
        for thread in self._threads:
            thread.stop()
        last = threading.Thread(target=lambda: [*map(self._keep, self.followed())], daemon=True)
        try:
            last.start()
        except RuntimeError as error:
            logger.warning(
                "the tracked class mix could not be stored at shutdown: %s; %s",
                error,
                raise_limit(),
            )
        else:
            last.join(STOP_SECONDS)

    def of(self, bundle: Bundle) -> Followed | None:
        """The state of a model version's traffic; None before the first judgement."""
        return self._followed.get(id(bundle))

    def tracked(self, bundle: Bundle) -> Tracked | None:
        """The estimate of a model version's traffic; None where it is not followed.

        Before the first judgement, only this worker's rows count.
        """
        one = self.of(bundle)
        if one is not None and one.together is not None:
            return one.together
        own = (each.stream for each in self._models() if each.bundle is bundle)
        return next((stream.now() for stream in own), None)

    def followed(self) -> list[Followed]:
        """The state of every model's traffic."""
        return list(self._followed.values())

    def divergences(self, one: Followed) -> Iterable[tuple[str, float]]:
        """Yield the Jensen-Shannon divergence of the estimate from each prior's target."""
        if one.together is None or not one.together.rows:
            return
        for name in self._watched(one.served.bundle.name):
            target = self._target(one.served.bundle, name)
            if target is not None:
                yield name, jensen_shannon(one.together.prior, target)

    def learn(self) -> None:
        """Update every tracker with its queued rows."""
        _each(lambda served: served.stream.learn(), self._models())

    def look(self) -> None:
        """Store the states, combine them and judge, once."""
        followed = {}
        for served in self._models():
            one = self._followed.get(id(served.bundle))
            if one is None:
                one = Followed(served, History(len(served.bundle.class_names)))
                one.restoring_until = self._now() + _RESTORING
            if one.restoring_until is not None:
                self._restore(one)
            followed[id(served.bundle)] = one
        self._followed = followed
        _each(self._look_at, [one for one in followed.values() if one.served.stream.follows])

    # ---- inside

    def _look_at(self, one: Followed) -> None:
        own = one.served.stream.now()
        if own is None:
            return
        try:
            if self._slot == 0:
                self._judge(one, own)
        finally:
            self._keep(one)
        others = self._others(one)
        one.together, one.workers = Tracked.combined([own, *others]), 1 + len(others)
        if one.together.rows:
            one.history.add(
                self._now(),
                one.together,
                calibration_variance=one.calibration_variance,
                verdict=one.shown,
            )

    def _judge(self, one: Followed, own: Tracked) -> None:
        """Judge the newest rows if enough of them arrived since the last judgement."""
        bundle, recent, now = one.served.bundle, one.served.recent, self._now()
        least = rows_wanted(len(bundle.class_names))
        window = min(max(least, int(own.effective_rows)), recent.capacity)
        since = None if one.judged_at is None else (now - one.judged_at).total_seconds()
        if since is not None and since < 0:
            since = None  # the clock was set back: otherwise nothing would be judged until then
        if since is not None and len(recent.sample(max_age=since).logits) < window / 2:
            return
        logits = recent.sample(newest=window).logits
        try:
            automatic = [
                self._decide(one, name, logits, own, now) for name in self._watched(bundle.name)
            ]
        except TooLittleTraffic:
            return
        decided = [each for each in automatic if each is not None]
        if not decided:
            return
        first = decided[0].found
        agrees = first.verdict in (one.last, one.shown) or one.shown is None
        one.shown = first.verdict if agrees else one.shown
        one.last, one.judged_at = first.verdict, now
        one.calibration_variance = first.estimate.calibration_variance
        one.judged = Judged(
            now,
            one.shown or first.verdict,
            first.reason,
            first.evidence(),
            first.estimate.n,
            {each.prior: _told(each, bundle.class_names) for each in decided},
        )
        for each in decided:
            if each.step.action == "adopt" and each.bounds.mode == "on":
                self._act(bundle, each)

    def _decide(
        self, one: Followed, name: str, logits: Any, own: Tracked, now: datetime
    ) -> Automatic | None:
        """Assess the traffic for one prior and decide on its step; None if it cannot be used."""
        bundle = one.served.bundle
        try:
            revision = self._priors.in_force(bundle, name)
        except (PriorDoesNotFit, UnknownPrior, InvalidPrior, UnknownLabelFrequencies):
            return None
        if revision.prior.log_source is None:
            return None
        entry = self._priors.newest(bundle.name, name)
        base = PriorBody() if entry is None or entry.body is None else entry.body
        bounds = base.auto_adopt or AutoAdopt()
        found = estimate(
            logits,
            bundle=bundle,
            prior=revision.prior,
            capacity=one.served.recent.capacity,
            shrinkage=STRENGTH,
            tracked=own,
        )
        changed_at = None if entry is None else entry.updated_at
        if bounds.mode == "dry_run" and name in one.dry_at:
            changed_at = max(filter(None, (changed_at, one.dry_at[name])))
        step = next_step(
            bounds,
            found,
            current=revision.prior.target,
            steady=one.steady.get(name, False),
            now=now,
            changed_at=changed_at,
        )
        one.steady[name] = found.verdict == "usable"
        if step.action == "adopt" and bounds.mode == "dry_run":
            one.dry_at[name] = now
            logger.info(
                "dry run: prior %r of model %r would be moved by %.3f nats (%s)",
                name, bundle.name, step.length, step.reason,
            )  # fmt: skip
        return Automatic(name, bounds, step, now, base, revision.revision, found)

    def _watched(self, model: str) -> list[str]:
        asking = []
        for name in self._priors.names(model):
            entry = self._priors.newest(model, name)
            if name != DEFAULT and entry is not None and entry.body is not None:
                asking += [name] if entry.body.auto_adopt is not None else []
        return [DEFAULT, *asking][:MAX_WATCHED_PRIORS]

    def _target(self, bundle: Bundle, name: str) -> Vector | None:
        try:
            return self._priors.in_force(bundle, name).prior.target
        except (PriorDoesNotFit, UnknownPrior, InvalidPrior, UnknownLabelFrequencies):
            return None

    # ---- the store

    def _restore(self, one: Followed) -> None:
        """Continue from this worker's last state, or from the state of a worker that has ended.

        Each state of an ended worker goes to one worker alone: its rows must count once.
        """
        now, bundle, mine, gone = self._now(), one.served.bundle, [], []
        for kept in self._read(bundle.name):
            age = kept.age
            if kept.class_digest != bundle.class_digest or age is None:
                continue
            if age > _RESTORED_FOR:
                continue
            if kept.keeper == self._keeper:
                mine.append(kept)
            elif age > self._alive:
                gone.append(kept)
        for kept in [*mine, *gone]:
            if not one.served.stream.could_restore(kept.state):
                continue
            if (kept in mine or self._take_over(kept)) and one.served.stream.restore(kept.state):
                one.judged = Judged.of_document(kept.judged)
                one.restoring_until = None
                return
        if one.restoring_until is not None and now > one.restoring_until:
            one.restoring_until = None

    def _take_over(self, kept: KeptState) -> bool:
        if self._kept is None:
            return False
        try:
            return self._kept.take_over(kept, self._keeper)
        except StoreUnavailable as error:
            self._note(str(error))
            return False

    def _keep(self, one: Followed) -> None:
        """Store this worker's state if it has learnt something since the last time."""
        own = one.served.stream.now()
        state = one.served.stream.state()
        if self._kept is None or own is None or state is None:
            return
        bundle = one.served.bundle
        judged = one.judged.document() if self._slot == 0 and one.judged is not None else "{}"
        try:
            self._kept.keep(
                KeptState(bundle.name, self._keeper, bundle.class_digest, state, judged)
            )
            self._note("")
        except StoreUnavailable as error:
            self._note(str(error))

    def _others(self, one: Followed) -> list[Tracked]:
        """The estimates of other live workers, and the newest judgement among theirs."""
        bundle, found = one.served.bundle, []
        for kept in self._read(bundle.name, but=self._keeper):
            if kept.class_digest != bundle.class_digest:
                continue
            if kept.age is None or kept.age > self._alive:
                continue
            other = estimate_of(bundle, kept.state)
            if other is not None:
                found.append(other)
            judged = Judged.of_document(kept.judged)
            if self._slot and judged is not None and (
                one.judged is None or judged.at > one.judged.at
            ):  # fmt: skip
                one.judged, one.shown = judged, judged.verdict
        return found

    def _read(self, model: str, *, but: str = "") -> list[KeptState]:
        if self._kept is None:
            return []
        try:
            return self._kept.of(model, but=but)
        except StoreUnavailable as error:
            self._note(str(error))
            return []

    def _note(self, trouble: str) -> None:
        """Log trouble with the store, once until it is over."""
        if trouble and not self._store_trouble:
            logger.warning(
                "the tracked class prior is in memory only, and a restart loses it, until the "
                "store works again: %s",
                trouble,
            )
        self._store_trouble = trouble

    @property
    def _alive(self) -> timedelta:
        return max(_SHORTEST_ALIVE, timedelta(seconds=_ALIVE_LOOKS * self._every))


def _each(call: Callable[[_Item], object], items: Iterable[_Item]) -> None:
    """Call for every item; raise the first error at the end, so that it costs no other item."""
    first: Exception | None = None
    for item in items:
        try:
            call(item)
        except Exception as error:  # noqa: BLE001 - raised below
            first = first or error
    if first is not None:
        raise first


def adopted(automatic: Automatic, class_names: list[str], *, note: str) -> PriorBody:
    """The body that an automatic step stores. Raises ValueError for a step that adopts nothing."""
    if automatic.step.target is None:
        raise ValueError("this step adopts nothing")
    target = kept_vector(short_form(class_names, automatic.step.target))
    return automatic.base.model_copy(update={"target": target, "expected": True, "note": note})


def _told(each: Automatic, class_names: list[str]) -> dict[str, Any]:
    """Return a decision of automatic adoption as a JSON object."""
    step, bounds = each.step, each.bounds
    target = None
    if step.target is not None:
        target = short_form(class_names, np.round(step.target, 6))
    return {
        "mode": bounds.mode,
        "freeze": bounds.freeze,
        "bounds": bounds.model_dump(mode="json"),
        "action": step.action,
        "reason": step.reason,
        "target": target,
        "step_nats": step.length,
        "shortened": step.shortened,
        "decided_at": each.decided_at.isoformat(),
        "revision": each.revision,
    }
