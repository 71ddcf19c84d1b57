"""Looking before leaping: what a candidate would change in recent traffic, and what prior the traffic has."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Path, Request, Response

from service.api.edge.errors import Problem
from service.api.edge.json_body import read_json
from service.api.priors import views
from service.contract.adjustment import check_tau
from service.contract.bundle import Bundle
from service.contract.prior import InvalidPrior, PriorBody, UnknownLabelFrequencies
from service.priors.preview import TooLittleTraffic, estimate, preview
from service.priors.priors import PriorRevision, Priors, RevisionNotInMemory
from service.priors.recent import LogitReservoir
from service.priors.revisions import UnknownPrior, parse_prior_reference
from service.priors.rule import Rule

_MAX_WAITING = 4
Name = Annotated[str, Path(description="A prior's name")]


class Insight:
    """Preview and estimate. They compute in a thread, one at a time, a few may wait."""

    def __init__(
        self,
        priors: Priors,
        find_model: Callable[[str | None], Bundle],
        find_reservoir: Callable[[Bundle], LogitReservoir | None],
        *,
        tau_cap: float,
    ) -> None:
        self._priors, self._find_model, self._find_reservoir = priors, find_model, find_reservoir
        self._tau_cap = tau_cap
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def preview(self, request: Request, name: Name, tau: float | None = None) -> Response:
        """Compare the prior in force with a candidate on recent traffic; nothing is stored.

        The body is a prior as for PUT, beside or instead of it `tau`; or `{"prior": NAME[@REVISION] or a prior, "tau": …}`.
        """
        bundle = self._bundle(request)
        reservoir = self._reservoir(bundle)
        before = self._in_force(bundle, name)
        after, asked_tau = await self._candidate(bundle, await read_json(request), before)
        if tau is not None and asked_tau is not None and tau != asked_tau:
            raise Problem("malformed", "tau is given twice with different values")
        after_tau = self._tau(bundle, tau if asked_tau is None else asked_tau)
        if after_tau and after.offset is None:
            raise UnknownLabelFrequencies(
                "the label frequencies are unknown: give label_frequencies, or tau 0"
            )
        before_tau = 0.0 if before.offset is None else bundle.tau
        sample = await asyncio.to_thread(reservoir.sample)
        found = None
        if len(sample.logits):
            async with self._my_turn():
                found = await asyncio.to_thread(
                    preview,
                    sample.logits,
                    temperature=bundle.temperature,
                    before=Rule(before.prior, before_tau),
                    after=Rule(after.prior, after_tau),
                )
        view = views.preview_view(
            bundle,
            sample,
            found,
            before=views.Rule(name=before.name, revision=before.revision, tau=before_tau),
            after=views.Rule(
                name=after.name,
                revision=None if after.name is None else after.revision,
                tau=after_tau,
            ),
            warnings=[*after.prior.warnings, *_approximate(bundle)],
        )
        return Response(view.model_dump_json(), media_type="application/json")

    async def estimate(self, request: Request, name: Name) -> Response:
        """The class prior of recent traffic, with intervals. A candidate: it is never applied by itself."""
        bundle = self._bundle(request)
        reservoir = self._reservoir(bundle)
        current = self._in_force(bundle, name)
        if current.prior.log_source is None:
            raise UnknownLabelFrequencies(
                "an estimate needs label frequencies, and neither the prior nor the model has any"
            )
        sample = await asyncio.to_thread(reservoir.sample)
        async with self._my_turn():
            found = await asyncio.to_thread(
                estimate, sample.logits, temperature=bundle.temperature, prior=current.prior
            )
        entry = self._priors.newest(bundle.name, current.name or name)
        base = entry.body if entry is not None and entry.body is not None else PriorBody()
        view = views.estimate_view(bundle, sample, found, base=base, warnings=_approximate(bundle))
        return Response(view.model_dump_json(), media_type="application/json")

    def _bundle(self, request: Request) -> Bundle:
        return self._find_model(request.path_params.get("model"))

    def _reservoir(self, bundle: Bundle) -> LogitReservoir:
        reservoir = self._find_reservoir(bundle)
        if reservoir is None or reservoir.capacity == 0:
            raise TooLittleTraffic("no recent logits are kept: the reservoir is switched off")
        return reservoir

    def _in_force(self, bundle: Bundle, name: str) -> PriorRevision:
        """The prior of this name, or the default for a name that is still to be stored."""
        try:
            return self._priors.select(bundle, name)
        except UnknownPrior:
            return self._priors.select(bundle)

    async def _candidate(
        self, bundle: Bundle, body: Any, in_force: PriorRevision
    ) -> tuple[PriorRevision, Any]:
        """The prior that the body describes, and its tau as given."""
        if not isinstance(body, dict):
            raise InvalidPrior([("", "expected a JSON object: a prior, or tau, or both")])
        prior = {key: value for key, value in body.items() if key not in ("tau", "prior")}
        tau = body.get("tau")
        if "prior" not in body:
            return (self._priors.inline(bundle, prior) if prior else in_force), tau
        if prior:
            raise InvalidPrior(
                [(key, "stands beside 'prior', which is the whole prior") for key in prior]
            )
        if isinstance(body["prior"], str):
            return await self._named(bundle, body["prior"]), tau
        return self._priors.inline(bundle, body["prior"]), tau

    async def _named(self, bundle: Bundle, text: str) -> PriorRevision:
        reference = parse_prior_reference(text)
        try:
            return self._priors.select(
                bundle, reference.name, at=reference.at, at_least=reference.at_least
            )
        except RevisionNotInMemory:
            assert reference.at is not None
            return await self._priors.fetch(bundle, reference.name, reference.at)

    def _tau(self, bundle: Bundle, tau: Any) -> float:
        return bundle.tau if tau is None else check_tau(tau, cap=self._tau_cap)

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        if self._waiting >= _MAX_WAITING:
            raise Problem(
                "overloaded",
                "other previews and estimates are being computed",
                headers={"Retry-After": "1"},
            )
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1


def _approximate(bundle: Bundle) -> list[str]:
    if bundle.provenance.get("source_prior") != "approximate":
        return []
    return ["the model's source prior is approximate: its training objective has no exact one"]
