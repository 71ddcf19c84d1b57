"""The headers If-Match, If-None-Match and ETag of priors. An ETag is the revision in quotes."""

import re

from fastapi import Request

from service.api.edge.errors import Problem
from service.priors.changes import Condition, Revisions

_TAG = re.compile(r'(W/)?"([^"]*)"|([0-9]+)')


def etag(revision: int) -> str:
    """Return the strong ETag of a revision."""
    return f'"{revision}"'


def condition_of(request: Request, *, required: bool = False) -> Condition:
    """Read the condition of a write from If-Match and If-None-Match.

    required: whether a request without either is refused. Raises Problem: 400 for a header that
    cannot be read, 428 for a required header that is missing.
    """
    condition = Condition(
        if_match=_revisions(request.headers.getlist("if-match"), "If-Match", strong=True),
        if_none_match=_revisions(
            request.headers.getlist("if-none-match"), "If-None-Match", strong=False
        ),
    )
    if required and condition == Condition():
        raise Problem(
            "precondition-required",
            'name the revision that this replaces: If-Match: "7", or If-None-Match: * to create',
        )
    return condition


def not_modified(request: Request, revision: int) -> bool:
    """Whether the caller already has this revision, by its If-None-Match."""
    known = _revisions(request.headers.getlist("if-none-match"), "If-None-Match", strong=False)
    return known == "*" or (known is not None and revision in known)


def _revisions(values: list[str], header: str, *, strong: bool) -> Revisions | None:
    """The revisions that a header names; None if the header is missing.

    A tag that is not a revision matches none; with `strong`, neither does a weak tag.
    """
    if not values:
        return None
    text = ",".join(values).strip()
    if text == "*":
        return "*"
    revisions = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _TAG.fullmatch(part)
        if match is None:
            raise Problem(
                "malformed", f'{header} cannot be read; expected "7", a list of such tags, or *'
            )
        digits = match[2] if match[3] is None else match[3]
        if re.fullmatch(r"[0-9]{1,16}", digits) and not (strong and match[1]):
            revisions.add(int(digits))
    return frozenset(revisions)
