"""Every error that a caller can see: one table of statuses, one form of body (RFC 9457)."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from service.batching import work
from service.contract import adjustment, prior
from service.contract.members import body
from service.evaluate import feedback
from service.priors import caution, preview, revisions
from service.priors.orders import wishes
from service.process.threads import is_no_thread, raise_limit
from service.repository import on_demand, order_book, repository
from service.wire import faults

PROBLEM_JSON = "application/problem+json"
WITH_ERROR = ("/v2", "/v1/models")
"""At and below these paths, problems are application/json and have the member `error`, too."""

TITLES = {
    "malformed": (400, "The request is malformed"),
    "no-key": (401, "An API key is needed"),
    "unknown-key": (401, "The API key is not known"),
    "forbidden": (403, "The API key may not do this"),
    "not-found": (404, "There is no such resource"),
    "unknown-model": (404, "No such model"),
    "unknown-prior": (404, "No such prior"),
    "method-not-allowed": (405, "The method is not allowed here"),
    "not-acceptable": (406, "No accepted media type is available"),
    "too-slow": (408, "The request did not arrive in time"),
    "conflict": (409, "The request conflicts with the current state"),
    "unknown-label-frequencies": (409, "The label frequencies are unknown"),
    "prior-does-not-fit": (409, "The prior belongs to another class list"),
    "too-little-traffic": (409, "There is too little recent traffic"),
    "not-adoptable": (409, "The estimate cannot be adopted"),
    "too-many-flips": (409, "The prior would change too many recent answers"),
    "stale": (412, "The resource has changed since it was read"),
    "too-large": (413, "The request is too large"),
    "url-too-long": (414, "The URL is too long"),
    "unsupported-media-type": (415, "The media type is not supported"),
    "invalid": (422, "The request is well-formed but invalid"),
    "precondition-required": (428, "If-Match is required"),
    "overloaded": (429, "The queue is full"),
    "rate-limited": (429, "The API key's rate limit is reached"),
    "headers-too-large": (431, "The headers are too large"),
    "unavailable": (503, "The service cannot answer now"),
    "deadline": (504, "The deadline passed"),
    "internal": (500, "The service failed"),
}


class Problem(Exception):
    """A refusal or failure to report to the caller. `kind` is a key of `TITLES`."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status, self.title = TITLES[kind]
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})

    def body(self, *, with_error: bool = False) -> bytes:
        """Return the JSON body. with_error: add the member `error`, as some protocols have it."""
        members: dict[str, Any] = {
            "type": f"/problems/{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors is not None:
            members["errors"] = list(self.errors)
        if with_error:
            members["error"] = self.detail
        return orjson.dumps(members)


def kinds() -> Mapping[type[Exception], str]:
    """Return the status table: the kind of problem for each class of domain error."""
    return {
        faults.Malformed: "malformed",
        faults.InvalidInput: "invalid",
        faults.InvalidParameter: "invalid",
        faults.InvalidImage: "invalid",
        faults.TooLarge: "too-large",
        faults.UnsupportedBody: "unsupported-media-type",
        adjustment.InvalidTau: "invalid",
        body.InvalidPrior: "invalid",
        prior.UnknownLabelFrequencies: "unknown-label-frequencies",
        revisions.InvalidReference: "invalid",
        revisions.UnknownPrior: "unknown-prior",
        revisions.PriorDoesNotFit: "prior-does-not-fit",
        revisions.PriorConflict: "conflict",
        revisions.StaleRevision: "stale",
        revisions.RevisionNotHere: "unavailable",
        revisions.StoreUnavailable: "unavailable",
        revisions.PriorsBusy: "overloaded",
        feedback.InvalidFeedback: "invalid",
        preview.TooLittleTraffic: "too-little-traffic",
        preview.NotAdoptable: "not-adoptable",
        caution.TooManyFlips: "too-many-flips",
        work.UnscorableRows: "invalid",
        work.RequestTooLarge: "too-large",
        work.Overloaded: "overloaded",
        work.DeadlinePassed: "deadline",
        work.Abandoned: "deadline",
        work.BatcherFailed: "unavailable",
        on_demand.UnknownModel: "unknown-model",
        repository.ModelFailed: "invalid",
        order_book.OtherWorkerFailed: "unavailable",
        repository.NoRollout: "invalid",
        wishes.NoTrial: "conflict",
        MemoryError: "unavailable",
    }


_NO_MEMORY = (
    "the machine has no memory left for this request; send it again later, or send fewer rows"
)
_KINDS = kinds()
_RETRY = {"overloaded", "unavailable"}


def problem_of(error: Exception) -> Problem:
    """Turn any error into a Problem.

    An error that is not in the table is a fault of the service: the answer is `internal` and
    reveals nothing about it.
    """
    if isinstance(error, Problem):
        return error
    kind = next((_KINDS[each] for each in type(error).__mro__ if each in _KINDS), None)
    if is_no_thread(error):
        reason = f"no thread can be started for this request; {raise_limit()}"
        return Problem("unavailable", reason, headers={"Retry-After": "1"})
    if kind is None:
        return Problem(
            "internal", "the service failed; the log has the cause under this request's id"
        )
    return Problem(
        kind,
        _NO_MEMORY if isinstance(error, MemoryError) else str(error),
        errors=getattr(error, "errors", None),
        headers={"Retry-After": "1"} if kind in _RETRY else None,
    )
