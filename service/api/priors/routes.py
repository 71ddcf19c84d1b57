"""Reading and changing priors over HTTP: what each route does."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from pydantic import BaseModel

from service.api.edge.access import audit
from service.api.edge.json_body import read_json, read_object
from service.api.priors import views
from service.api.priors.preconditions import condition_of, etag, not_modified
from service.contract.bundle import Bundle
from service.contract.prior import InvalidPrior, parse_prior
from service.priors.priors import PriorDoesNotFit, PriorRevision, Priors, StoredRevision, Written
from service.priors.revisions import BUILT_IN, DEFAULT, MAX_REVISION, UnknownPrior

Name = Annotated[str, Path(description="A prior's name; `uniform` and `training` are built in")]
FindModel = Callable[[str | None], Bundle]


class PriorRoutes:
    """Reading and changing priors."""

    def __init__(self, priors: Priors, find_model: FindModel, *, require_if_match: bool) -> None:
        self._priors, self._find_model, self._require_if_match = (
            priors,
            find_model,
            require_if_match,
        )

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
        revision: Annotated[int | None, Query(ge=0, le=MAX_REVISION)] = None,
    ) -> Response:
        """The vectors of a prior, or of one of its revisions."""
        bundle = self._bundle(request)
        entry = await self._entry(bundle, name, revision)
        number = 0 if entry is None else entry.revision
        if not_modified(request, number):
            return Response(status_code=304, headers={"ETag": etag(number)})
        return await self._answer(bundle, name, entry)

    async def put_default(self, request: Request) -> Response:
        """Store a new revision of `default`."""
        return await self.put(request, DEFAULT)

    async def put(self, request: Request, name: Name) -> Response:
        """Store a new revision; none when the body is what is in force already."""
        bundle = self._bundle(request)
        condition = condition_of(request, required=self._require_if_match)
        body = parse_prior(await read_json(request))
        written = await self._priors.put(
            bundle, name, body, by=request.state.by, condition=condition
        )
        return await self._written(request, "put", bundle, written)

    async def add(self, request: Request, name: Name) -> Response:
        """Add observed counts to what is stored."""
        bundle = self._bundle(request)
        condition = condition_of(request)
        body = await read_object(request, members={"add": True, "note": False})
        written = await self._priors.add(
            bundle,
            name,
            _addition(body["add"]),
            by=request.state.by,
            note=_note(body),
            condition=condition,
        )
        return await self._written(request, "add", bundle, written)

    async def rollback(self, request: Request, name: Name) -> Response:
        """Store a new revision equal to an old one."""
        bundle = self._bundle(request)
        condition = condition_of(request, required=self._require_if_match)
        body = await read_object(request, members={"revision": True, "note": False})
        revision = body["revision"]
        if type(revision) is not int or not 1 <= revision <= MAX_REVISION:
            raise InvalidPrior([("revision", "expected a whole number of at least 1")])
        written = await self._priors.rollback(
            bundle, name, revision, by=request.state.by, note=_note(body), condition=condition
        )
        return await self._written(request, "rollback", bundle, written, to=revision)

    async def delete(self, request: Request, name: Name) -> Response:
        """Take a prior out of use; its history stays."""
        bundle = self._bundle(request)
        condition = condition_of(request, required=self._require_if_match)
        await self._priors.remove(bundle, name, by=request.state.by, condition=condition)
        audit(request, action="delete", model=bundle.name, name=name)
        return Response(status_code=204)

    async def revisions(
        self,
        request: Request,
        name: Name,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=1, le=MAX_REVISION)] = None,
    ) -> Response:
        """The history of a prior, newest first, deletions included."""
        bundle = self._bundle(request)
        if name in BUILT_IN:
            return _json(views.RevisionPage(revisions=[], next=None))
        entries = await self._priors.history(bundle.name, name, before=before, limit=limit + 1)
        if not entries and before is None and name != DEFAULT:
            raise UnknownPrior(f"there never was a prior '{name[:64]}' of model '{bundle.name}'")
        lines = [views.revision_line(entry) for entry in entries[:limit]]
        more = len(entries) > limit
        return _json(views.RevisionPage(revisions=lines, next=lines[-1].revision if more else None))

    async def replicas(self, request: Request, name: Name) -> Response:
        """Which revision each worker of each replica serves, as they last told the store."""
        bundle = self._bundle(request)
        entry = await self._entry(bundle, name, None)
        newest = 0 if entry is None else entry.revision
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
        agree = all(line.revision == newest for line in lines) if entry is not None else True
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
        """The entry in force or that of a revision; None for a built-in and an unstored default."""
        if revision is None:
            entry = self._priors.newest(bundle.name, name)
            if entry is None:
                self._priors.select(bundle, name)  # says which priors there are
            return entry
        if revision == 0 and (name == DEFAULT or name in BUILT_IN):
            return None
        entry = await self._priors.entry(bundle.name, name, revision)
        if entry.deleted:
            raise UnknownPrior(f"revision {revision} of prior '{name}' is a deletion")
        return entry

    async def _answer(
        self, bundle: Bundle, name: str, entry: StoredRevision | None, *, status: int = 200
    ) -> Response:
        resolved: PriorRevision | None = None
        warnings: list[str] = []
        try:
            resolved = self._priors.resolved(bundle, name, entry)
        except PriorDoesNotFit as error:
            warnings = [str(error)]
        view = views.prior_view(bundle, name, resolved, entry, warnings=warnings)
        return _json(view, status=status, headers={"ETag": etag(view.revision)})

    async def _written(
        self, request: Request, action: str, bundle: Bundle, written: Written, **more: object
    ) -> Response:
        entry = written.entry
        audit(
            request,
            action=action,
            model=bundle.name,
            name=entry.name,
            revision=entry.revision,
            **more,
        )
        status = 201 if action == "put" and written.created else 200
        return await self._answer(bundle, entry.name, entry, status=status)


def _addition(value: object) -> dict[str, Any]:
    """The `add` member of a PATCH. Raises InvalidPrior."""
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
                (f"add.{field}.{key}", "expected a number of at least 0")
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
"""Of an addition; the sums of larger ones would overflow."""


def _note(body: dict[str, Any]) -> str:
    note = body.get("note", "")
    if not isinstance(note, str) or len(note) > 2000:
        raise InvalidPrior([("note", "expected a text of at most 2000 characters")])
    return note


def _json(view: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(view.model_dump_json(), status, headers=headers, media_type="application/json")
