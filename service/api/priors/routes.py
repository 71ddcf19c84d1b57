"""Reads and changes priors over HTTP."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from pydantic import BaseModel

from service.api.edge.access import audit
from service.api.edge.json_body import read_json, read_object
from service.api.edge.numbers import Whole
from service.api.long_views import apart_if_long, rendered
from service.api.priors import views
from service.api.priors.insight import Flips, Insight, Window
from service.api.priors.preconditions import condition_of, etag, not_modified
from service.contract.bundle import Bundle
from service.contract.members.body import InvalidPrior, parse_prior, short
from service.contract.nearest import did_you_mean
from service.priors.changes import AddCounts, Condition, Draft
from service.priors.names import DEFAULT, MAX_REVISION
from service.priors.preview import check_adoptable, evidence_note
from service.priors.priors import Priors
from service.priors.revisions import (
    BUILT_IN,
    PriorConflict,
    PriorDoesNotFit,
    PriorRevision,
    StaleRevision,
    StoredRevision,
    UnknownPrior,
    Written,
    check_prior_name,
)
from service.priors.snapshot import resolve
from service.priors.webhook import Changed

Name = Annotated[str, Path(description="A prior's name; `uniform` and `training` are built in")]
FindModel = Callable[[str | None], Bundle]
Announce = Callable[[Changed], None]


Force = Annotated[
    bool, Query(description="store it even if it changes more answers than --max-flip-share")
]


class PriorRoutes:
    """The handlers of the routes of priors."""

    def __init__(
        self,
        priors: Priors,
        find_model: FindModel,
        insight: Insight,
        *,
        require_if_match: bool,
        announce: Announce,
    ) -> None:
        """Connect the routes to the stored priors.

        find_model: returns the bundle that a request names. insight: counts the answers that a
        change affects. require_if_match: refuse writes without If-Match. announce: called with
        every stored change.
        """
        self._priors, self._find_model, self._insight = priors, find_model, insight
        self._require_if_match, self._announce = require_if_match, announce

    async def all(self, request: Request) -> Response:
        """The stored priors that are in use."""
        bundle = self._bundle(request)
        misfits = {entry.name for entry in self._priors.misfits(bundle)}
        entries = [
            self._priors.newest(bundle.name, name) for name in self._priors.names(bundle.name)
        ]
        lines = [
            views.prior_line(entry, fits=entry.name not in misfits)
            for entry in entries
            if entry is not None
        ]
        return _json(views.PriorList(model=bundle.name, priors=lines, built_in=sorted(BUILT_IN)))

    async def one(
        self,
        request: Request,
        name: Name,
        revision: Annotated[Whole | None, Query(ge=0, le=MAX_REVISION)] = None,
    ) -> Response:
        """The vectors of a prior, or of one of its revisions."""
        bundle = self._bundle(request)
        entry = await self._entry(bundle, name, revision)
        number = 0 if entry is None else entry.revision
        if not_modified(request, number):
            return Response(status_code=304, headers={"ETag": etag(number)})
        return await self._answer(bundle, name, entry)

    async def put_default(self, request: Request, force: Force = False) -> Response:  # noqa: FBT002 - a parameter of the query
        """Store a new revision of `default`."""
        return await self.put(request, DEFAULT, force)

    async def put(self, request: Request, name: Name, force: Force = False) -> Response:  # noqa: FBT002
        """Store a new revision, unless the body equals the one in force."""
        bundle = self._bundle(request)
        condition = condition_of(request, required=self._require_if_match)
        body = await asyncio.to_thread(parse_prior, await read_json(request))
        check_prior_name(name)
        candidate = await asyncio.to_thread(resolve, bundle, name, 0, body, None)
        flips = await self._insight.flips(bundle, name, candidate, force=force)
        written = await self._priors.put(
            bundle, name, body, by=request.state.by, condition=condition
        )
        return await self._written(request, "put", bundle, written, flips=flips, force=force)

    async def add(self, request: Request, name: Name, force: Force = False) -> Response:  # noqa: FBT002
        """Add observed counts to the stored ones, as a new revision."""
        bundle = self._bundle(request)
        condition = condition_of(request)
        body = await read_object(request, members={"add": True, "note": False})
        addition, note = await asyncio.to_thread(_addition, body["add"]), _note(body)
        check_prior_name(name)
        current = self._priors.newest(bundle.name, name)

        def drafted() -> Draft | None:
            change = AddCounts.checked(
                name, addition, bundle=bundle, note=note, condition=condition
            )
            return change.apply(current)

        draft = await asyncio.to_thread(drafted)
        flips = None
        if draft is not None and draft.body is not None:
            candidate = await asyncio.to_thread(resolve, bundle, name, 0, draft.body, None)
            flips = await self._insight.flips(bundle, name, candidate, force=force)
        written = await self._priors.add(
            bundle, name, addition, by=request.state.by, note=note, condition=condition
        )
        return await self._written(request, "add", bundle, written, flips=flips, force=force)

    async def rollback(self, request: Request, name: Name) -> Response:
        """Store a new revision equal to an old one; revision 0 means that nothing is stored."""
        bundle = self._bundle(request)
        condition = condition_of(request, required=self._require_if_match)
        body = await read_object(request, members={"revision": True, "note": False})
        revision = body["revision"]
        if type(revision) is not int or not 0 <= revision <= MAX_REVISION:
            expected = "expected a whole number: an older revision, or 0 to have nothing stored"
            raise InvalidPrior([("revision", expected)])
        if revision == 0 and name == DEFAULT and not await self._has_history(bundle, name):
            return await self._nothing_stored(bundle, name)
        written = await self._priors.rollback(
            bundle, name, revision, by=request.state.by, note=_note(body), condition=condition
        )
        return await self._written(request, "rollback", bundle, written, to=revision)

    async def adopt(
        self,
        request: Request,
        name: Name,
        window: Window = None,
        force: Force = False,  # noqa: FBT002
    ) -> Response:
        """Store the estimate of recent traffic as the target, if it is good enough.

        The verdict must be usable, the step larger than twice the self-test's error, and the 5 %
        quantile of the gain large enough. The revision's note holds the evidence. `force` skips
        the rule.
        """
        bundle = self._bundle(request)
        condition = condition_of(request, required=self._require_if_match)
        check_prior_name(name)
        # Another worker may have stored a newer revision, which the estimate must start from.
        before = await self._priors.refreshed(bundle, name)
        condition.check(name, before)
        _, found = await self._insight.assess(bundle, name, window)
        if not force:
            check_adoptable(found)
        base, note = await self._insight.base(bundle, name), evidence_note(found)
        draft = partial(views.candidate_body, bundle, found, base=base, note=note)
        body = await asyncio.to_thread(draft)
        candidate = await asyncio.to_thread(resolve, bundle, name, 0, body, None)
        flips = await self._insight.flips(bundle, name, candidate, force=force)
        unchanged = (
            Condition(if_none_match="*")
            if before is None
            else Condition(if_match=frozenset({before.revision}))
        )
        try:
            written = await self._priors.put(
                bundle, name, body, by=request.state.by, condition=unchanged
            )
        except StaleRevision:
            raise PriorConflict(
                f"prior '{name}' was changed while the estimate was made; adopt again"
            ) from None
        return await self._written(request, "adopt", bundle, written, flips=flips, force=force)

    async def delete(self, request: Request, name: Name) -> Response:
        """Take a prior out of use: it is not listed, and reading it by name is 404.

        It can be stored again. Its history stays: `?revision=`, `/revisions` and rollback still
        find the old revisions.
        """
        bundle = self._bundle(request)
        condition = condition_of(request, required=self._require_if_match)
        written = await self._priors.remove(bundle, name, by=request.state.by, condition=condition)
        audit(request, action="delete", model=bundle.name, name=name)
        self._announce(Changed("delete", written.entry))
        return Response(status_code=204)

    async def revisions(
        self,
        request: Request,
        name: Name,
        limit: Annotated[Whole, Query(ge=1, le=1000)] = 100,
        before: Annotated[Whole | None, Query(ge=1, le=MAX_REVISION)] = None,
    ) -> Response:
        """The history of a prior, newest first, including deletions."""
        bundle = self._bundle(request)
        if name in BUILT_IN:
            return _json(views.RevisionPage(revisions=[], next=None))
        entries = await self._priors.history(bundle.name, name, before=before, limit=limit + 1)
        if not entries and before is None and name != DEFAULT:
            known = self._priors.names(bundle.name)
            raise UnknownPrior(
                f"model '{bundle.name}' never had a prior '{name[:64]}'"
                f"{did_you_mean(name[:64], known)}; GET /priors lists those in use"
            )
        lines = [views.revision_line(entry) for entry in entries[:limit]]
        more = len(entries) > limit
        return _json(views.RevisionPage(revisions=lines, next=lines[-1].revision if more else None))

    async def replicas(self, request: Request, name: Name) -> Response:
        """The revision that each worker of each replica serves, by its last report."""
        bundle = self._bundle(request)
        last = None if name in BUILT_IN else self._priors.last(bundle.name, name)
        if last is None:
            await self._priors.selected(
                bundle, name
            )  # raises for an unknown name, naming the known
        newest = 0 if last is None else last.revision
        served = [] if name in BUILT_IN else await self._priors.served(bundle.name, name)
        lines = [
            views.ReplicaLine(
                replica=s.replica,
                worker=s.worker,
                pid=s.pid,
                revision=s.revision,
                seen_at=s.seen_at,
            )
            for s in served
        ]
        agree = all(line.revision == newest for line in lines)
        return _json(
            views.Replicas(
                model=bundle.name, name=name, revision=newest, agree=agree, replicas=lines
            )
        )

    def _bundle(self, request: Request) -> Bundle:
        return self._find_model(request.path_params.get("model"))

    async def _entry(
        self, bundle: Bundle, name: str, revision: int | None
    ) -> StoredRevision | None:
        """The entry in force or of a revision; None for a built-in and an unstored `default`."""
        if revision is None:
            entry = self._priors.newest(bundle.name, name)
            if entry is None:
                await self._priors.selected(bundle, name)  # its message lists those of the model
            return entry
        if revision == 0 and (name == DEFAULT or name in BUILT_IN):
            return None
        entry = await self._priors.entry(bundle, name, revision)
        if entry.deleted:
            raise UnknownPrior(
                f"revision {revision} of prior '{name}' is a deletion, which has no vectors; ask "
                "for another revision"
            )
        return entry

    async def _has_history(self, bundle: Bundle, name: str) -> bool:
        return bool(await self._priors.history(bundle.name, name, before=None, limit=1))

    async def _answer(
        self,
        bundle: Bundle,
        name: str,
        entry: StoredRevision | None,
        *,
        status: int = 200,
        flips: Flips | None = None,
    ) -> Response:
        resolved: PriorRevision | None = None
        warnings = [] if flips is None else list(flips.warnings)
        try:
            resolve_it = partial(self._priors.resolved, bundle, name, entry)
            resolved = await apart_if_long(resolve_it, bundle)
        except PriorDoesNotFit as error:
            warnings.append(str(error))
        else:
            if resolved.prior.switch is not None:  # it may lead to a thousand others
                absent = await asyncio.to_thread(self._priors.missing, bundle, resolved)
                warnings += _leads_nowhere(absent)
        view = partial(
            views.prior_view,
            bundle,
            name,
            resolved,
            entry,
            warnings=warnings,
            decisions_changed=None if flips is None else flips.share,
        )
        number = 0 if entry is None else entry.revision
        return await self._prior(view, bundle, number, status)

    async def _nothing_stored(self, bundle: Bundle, name: str) -> Response:
        """The answer after a return to revision 0, which means that nothing is stored."""
        resolved, warnings = None, []
        if name == DEFAULT:
            resolve_it = partial(self._priors.resolved, bundle, name, None)
            resolved = await apart_if_long(resolve_it, bundle)
        else:
            warnings = [f"prior '{name}' is no longer stored: requests that name it get 404"]
        view = partial(views.prior_view, bundle, name, resolved, None, warnings=warnings)
        return await self._prior(view, bundle, 0)

    @staticmethod
    async def _prior(
        view: Callable[[], views.PriorView], bundle: Bundle, revision: int, status: int = 200
    ) -> Response:
        return Response(
            await rendered(view, bundle),
            status,
            headers={"ETag": etag(revision)},
            media_type="application/json",
        )

    async def _written(
        self,
        request: Request,
        action: str,
        bundle: Bundle,
        written: Written,
        *,
        flips: Flips | None = None,
        force: bool = False,
        to: int | None = None,
    ) -> Response:
        entry = written.entry
        share = None if flips is None else flips.share
        details = {"force": force or None, "to": to, "decisions_changed": share}
        audit(
            request,
            action=action,
            model=bundle.name,
            name=entry.name,
            revision=entry.revision,
            **{key: value for key, value in details.items() if value is not None},
        )
        if written.changed:
            self._announce(Changed(action, entry, share))
        if entry.deleted:
            return await self._nothing_stored(bundle, entry.name)
        status = 201 if action == "put" and written.created else 200
        return await self._answer(bundle, entry.name, entry, status=status, flips=flips)


def _leads_nowhere(names: list[str]) -> list[str]:
    """A warning that a context or schedule names priors which this model does not have."""
    if not names:
        return []
    shown = ", ".join(f"'{name}'" for name in names[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return [f"its context or schedule names priors that this model lacks: {shown}{more}"]


def _addition(value: object) -> dict[str, Any]:
    """Check the `add` member of a PATCH and return it. Raises InvalidPrior."""
    if not isinstance(value, dict) or not value:
        raise InvalidPrior([("add", "expected an object with target, label_frequencies, or both")])
    errors = []
    for field, counts in value.items():
        if field not in ("target", "label_frequencies"):
            errors.append((f"add.{field[:60]}", "unknown member"))
        elif not isinstance(counts, (dict, list)) or not counts:
            errors.append((f"add.{field}", "expected counts, by class name or in class order"))
        else:
            entries = counts.items() if isinstance(counts, dict) else enumerate(counts)
            errors += [
                (
                    f"add.{field}.{key}",
                    f"expected a number from 0 to {MAX_COUNT:g}; got {short(count)}",
                )
                for key, count in entries
                if isinstance(count, bool)
                or not isinstance(count, (int, float))
                or abs(count) > MAX_COUNT
            ]
    if errors:
        raise InvalidPrior(errors)
    return {
        field: {key: float(c) for key, c in counts.items()}
        if isinstance(counts, dict)
        else [float(c) for c in counts]
        for field, counts in value.items()
    }


MAX_COUNT = 1e300
"""The largest count of an addition; sums of larger ones would overflow."""


def _note(body: dict[str, Any]) -> str:
    note = body.get("note", "")
    if not isinstance(note, str) or len(note) > 2000:
        raise InvalidPrior([("note", "expected a text of at most 2000 characters")])
    return note


def _json(view: BaseModel) -> Response:
    return Response(view.model_dump_json(), media_type="application/json")
