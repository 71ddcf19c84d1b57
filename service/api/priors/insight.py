"""Previews a candidate prior on recent traffic, and estimates the prior of that traffic."""

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

from fastapi import Path, Query, Request, Response

from service.api.edge.errors import Problem
from service.api.edge.json_body import read_json
from service.api.edge.numbers import Decimal
from service.api.edge.turns import Turns
from service.api.long_views import apart_if_long, rendered
from service.api.priors import views
from service.contract.adjustment import check_tau
from service.contract.bundle import Bundle
from service.contract.members.body import InvalidPrior, PriorBody
from service.contract.prior import UnknownLabelFrequencies
from service.contract.shift.tracking import Tracked
from service.contract.shift.verdict import Assessment
from service.priors import caution
from service.priors.preview import TooLittleTraffic, estimate, preview
from service.priors.priors import Priors
from service.priors.recent import LogitReservoir, Sample
from service.priors.revisions import PriorDoesNotFit, PriorRevision, UnknownPrior
from service.priors.rule import Rule, source_warnings
from service.wire.shown import short

MAX_WRITES = 100
"""The most writes that wait for their effect to be computed; each keeps its prior in memory."""
Name = Annotated[str, Path(description="A prior's name")]
Window = Annotated[
    str | None,
    Query(description="which recent rows: `600s` for a time, `2000` for the newest; default all"),
]


class Flips(NamedTuple):
    """The share of recent answers that a write changes (None without traffic), and warnings."""

    share: float | None
    warnings: list[str]


class Insight:
    """Computes previews and estimates in a thread, one at a time, while a few others may wait."""

    def __init__(
        self,
        priors: Priors,
        find_model: Callable[[str | None], Bundle],
        find_reservoir: Callable[[Bundle], LogitReservoir | None],
        *,
        tau_cap: float,
        max_flip_share: float,
        tracked: Callable[[Bundle], Tracked | None] = lambda _: None,
    ) -> None:
        """Connect to the priors and the recent traffic.

        find_model: returns the bundle of a model by name, of the default model for None.
        find_reservoir: returns its recent logits; None where none are kept. tau_cap: the largest
        tau that a request may ask for. max_flip_share: largest share of recent answers that a write
        may change. tracked: returns a tracker's estimate, for class lists so large that too few
        rows are kept.
        """
        self._priors, self._find_model, self._find_reservoir = priors, find_model, find_reservoir
        self._tau_cap, self._max_flip_share = tau_cap, max_flip_share
        self._tracked = tracked
        self._flipping = Turns("the effects of other priors are being computed", waiting=MAX_WRITES)
        self._turns = Turns("previews and estimates are being computed")

    async def preview(self, request: Request, name: Name, tau: Decimal | None = None) -> Response:
        """Compare the prior in force with a candidate on recent traffic; nothing is stored.

        The body is a prior as for PUT, `tau`, or both; or
        `{"prior": NAME[@REVISION] or a prior, "tau": …}`.
        """
        bundle = self._bundle(request)
        reservoir = self._reservoir(bundle)
        before = await self._in_force(bundle, name)
        after, asked_tau = await self._candidate(bundle, await read_json(request), before)
        if tau is not None and asked_tau is not None and tau != asked_tau:
            raise Problem(
                "malformed",
                "tau is given twice with different values, in the query and in the body; give only "
                "one of them",
            )
        after_tau = self._tau(bundle, tau if asked_tau is None else asked_tau)
        if after_tau and after.offset is None:
            raise UnknownLabelFrequencies(
                "the label frequencies are unknown: give label_frequencies, or tau 0"
            )
        before_tau = _default_tau(bundle, before)
        sample = await asyncio.to_thread(reservoir.sample)
        found = None
        if len(sample.logits):
            async with self._turns.turn():
                found = await asyncio.to_thread(
                    preview,
                    sample.logits,
                    temperature=bundle.temperature,
                    before=Rule(before.prior, before_tau),
                    after=Rule(after.prior, after_tau),
                )

        def view() -> views.PreviewView:
            return views.preview_view(
                bundle,
                sample,
                found,
                before=views.Rule(name=before.name, revision=before.revision, tau=before_tau),
                after=views.Rule(
                    name=after.name,
                    revision=None if after.name is None else after.revision,
                    tau=after_tau,
                ),
                warnings=[
                    *after.prior.warnings,
                    *caution.target_warnings(after.prior, bundle.class_names),
                    *caution.source_replaced(bundle, after.prior),
                    *source_warnings(bundle),
                ],
            )

        return Response(await rendered(view, bundle), media_type="application/json")

    async def estimate(self, request: Request, name: Name, window: Window = None) -> Response:
        """Estimate the class prior of recent traffic, with intervals and a verdict.

        Nothing is applied. `candidate` is the estimate, moved toward the target in force.
        """
        bundle = self._bundle(request)
        sample, found = await self.assess(bundle, name, window)
        base, warnings = await self.base(bundle, name), list(source_warnings(bundle))
        view = partial(views.estimate_view, bundle, sample, found, base=base, warnings=warnings)
        return Response(await rendered(view, bundle), media_type="application/json")

    async def assess(
        self, bundle: Bundle, name: str, window: str | None
    ) -> tuple[Sample, Assessment]:
        """Return (recent rows, the estimate for a prior from them).

        window: which rows, such as "600s" or "2000"; None for all. Raises Problem, and
        TooLittleTraffic for too few rows.
        """
        limits = _window(window)
        reservoir = self._reservoir(bundle)
        current = await self._in_force(bundle, name)
        if current.prior.log_source is None:
            raise UnknownLabelFrequencies(
                "an estimate needs label frequencies, and neither the prior nor the model has any: "
                "PUT the prior with label_frequencies"
            )
        sample = await asyncio.to_thread(reservoir.sample, **limits)

        def assessed() -> Assessment:
            return estimate(
                sample.logits,
                bundle=bundle,
                prior=current.prior,
                capacity=reservoir.capacity,
                tracked=None if limits else self._tracked(bundle),
            )

        async with self._turns.turn():
            found = await asyncio.to_thread(assessed)
        return sample, found

    async def base(self, bundle: Bundle, name: str) -> PriorBody:
        """Return the stored body of the prior in force; an estimate replaces its target."""
        current = await self._in_force(bundle, name)
        entry = self._priors.newest(bundle.name, current.name or name)
        return entry.body if entry is not None and entry.body is not None else PriorBody()

    async def flips(
        self, bundle: Bundle, name: str, candidate: PriorRevision, *, force: bool
    ) -> Flips:
        """Compute the share of recent answers that a candidate for the prior `name` would change.

        Raises TooManyFlips if it is above the limit and `force` is False.
        """
        target_warnings = partial(caution.target_warnings, candidate.prior, bundle.class_names)
        warnings = await apart_if_long(target_warnings, bundle)
        warnings += caution.source_replaced(bundle, candidate.prior)
        reservoir = self._find_reservoir(bundle)
        if reservoir is None or reservoir.capacity == 0:
            return Flips(None, warnings)
        try:
            in_force = await self._in_force(bundle, name)
        except PriorDoesNotFit:  # the prior to replace does not apply to this model
            in_force = await self._priors.selected(bundle, None)
        before, after = (
            Rule(each.prior, _default_tau(bundle, each)) for each in (in_force, candidate)
        )

        def compute() -> tuple[float, int] | None:
            logits = reservoir.sample().logits
            if len(logits) == 0:
                return None
            share = caution.flip_share(
                logits, temperature=bundle.temperature, before=before, after=after
            )
            return share, len(logits)

        async with self._flipping.turn():
            found = await asyncio.to_thread(compute)
        if found is None:
            return Flips(None, warnings)
        share, rows = found
        if not force:
            caution.check_flips(share, rows, most=self._max_flip_share)
        warning = caution.flip_warning(share, rows, tau=after.tau)
        return Flips(share, [*warnings, *filter(None, [warning])])

    def _bundle(self, request: Request) -> Bundle:
        return self._find_model(request.path_params.get("model"))

    def _reservoir(self, bundle: Bundle) -> LogitReservoir:
        reservoir = self._find_reservoir(bundle)
        if reservoir is None or reservoir.capacity == 0:
            raise TooLittleTraffic(
                "no recent logits are kept: start the service with --recent-rows above 0"
            )
        return reservoir

    async def _in_force(self, bundle: Bundle, name: str) -> PriorRevision:
        """The prior of this name, or the default if the name is not stored yet."""
        try:
            return await self._priors.selected(bundle, name)
        except UnknownPrior:
            return await self._priors.selected(bundle, None)

    async def _candidate(
        self, bundle: Bundle, body: Any, in_force: PriorRevision
    ) -> tuple[PriorRevision, Any]:
        """The prior that the body describes, and its tau as given."""
        if not isinstance(body, dict):
            raise InvalidPrior(
                [("", f"the body is {short(body)}; expected an object: a prior, or tau, or both")]
            )
        prior = {key: value for key, value in body.items() if key not in ("tau", "prior")}
        tau = body.get("tau")
        if "prior" not in body:
            return (await self._priors.requested(bundle, prior) if prior else in_force), tau
        if prior:
            raise InvalidPrior(
                [
                    (
                        key,
                        "is given together with 'prior', which is a complete prior; give only one",
                    )
                    for key in prior
                ]
            )
        if isinstance(body["prior"], str | dict):
            return await self._priors.requested(bundle, body["prior"]), tau
        return self._priors.inline(bundle, body["prior"]), tau

    def _tau(self, bundle: Bundle, tau: Any) -> float:
        return bundle.tau if tau is None else check_tau(tau, cap=self._tau_cap)


def _default_tau(bundle: Bundle, revision: PriorRevision) -> float:
    """The tau of requests that give none; 0 if nothing can be adjusted."""
    return 0.0 if revision.offset is None else bundle.tau


def _window(text: str | None) -> dict[str, Any]:
    """The arguments of LogitReservoir.sample for a window. Raises Problem."""
    if text is None:
        return {}
    found = re.fullmatch(r"([1-9][0-9]{0,8})(s?)", text)
    if found is None:
        raise Problem(
            "malformed",
            f"window is '{text[:20]}'; expected seconds, as in 600s, or rows, as in 2000",
        )
    number = int(found[1])
    return {"max_age": float(number)} if found[2] else {"newest": number}
