"""Models of the answers of the prior routes, which document and check them."""

from datetime import datetime
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from service.api.long_views import MANY_CLASSES, ByClass, shown_by_class, view_of
from service.contract.bundle import Bundle
from service.contract.members.body import PriorBody, document_of, kept_vector
from service.contract.members.named import short_form
from service.contract.shift.verdict import Assessment, Verdict
from service.priors.preview import Outcome, Preview
from service.priors.recent import Sample
from service.priors.revisions import PriorRevision, StoredRevision
from service.process.slices import Made


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PriorLine(_View):
    """One prior in a list. `fits` is false if it has another class list and is not applied."""

    name: str
    revision: int
    updated_at: datetime
    by: str
    note: str
    fits: bool


class PriorList(_View):
    """The stored priors of a model, and those that always exist."""

    model: str
    priors: list[PriorLine]
    built_in: list[str]


class PriorView(_View):
    """A prior. Vectors are normalised, by class name; null if unknown or for another class list.

    `decisions_changed` is the share of recent answers whose label a write changed. It is null in
    answers to GET, and if no recent answers are kept.
    """

    model: str
    version: int
    name: str
    revision: int
    updated_at: datetime | None
    by: str | None
    note: str
    expected: bool
    fits: bool
    label_frequencies: ByClass | None
    source_prior: ByClass | None
    target: ByClass | None
    decisions_changed: float | None
    warnings: list[str]
    as_written: dict[str, Any] | None


class RevisionLine(_View):
    """One entry of a history. `equals`: the oldest revision on the page with the same content."""

    revision: int
    updated_at: datetime
    by: str
    note: str
    deleted: bool
    equals: int | None


class RevisionPage(_View):
    """Entries, newest first. `next` is the `before` of the next page; null on the last page."""

    revisions: list[RevisionLine]
    next: int | None


class ReplicaLine(_View):
    """A worker process and the revision that it serves."""

    replica: str
    worker: str
    pid: int
    revision: int
    seen_at: datetime


class Replicas(_View):
    """The revision that each worker serves. `agree`: all serve the newest known to this worker."""

    model: str
    name: str
    revision: int
    agree: bool
    replicas: list[ReplicaLine]


class Rule(_View):
    """The prior and tau of one side of a preview; a candidate has neither name nor revision."""

    name: str | None
    revision: int | None
    tau: float


class Pair(_View):
    """A number under the prior in force and under the candidate."""

    before: float
    after: float


class MaybePair(_View):
    """A number under the prior in force and under the candidate; null for a prior without costs."""

    before: float | None
    after: float | None


class PreviewClass(_View):
    """One class: its share of the decisions, and its mean probability."""

    label: str
    index: int
    before: float
    after: float
    probability_before: float
    probability_after: float


class PreviewView(_View):
    """The changes that a candidate would have made; numbers are null without recent traffic."""

    model: str
    version: int
    rows: int
    since: datetime | None
    until: datetime | None
    before: Rule
    after: Rule
    decisions_changed: float | None
    divergence: Pair | None
    expected_error: Pair | None
    expected_balanced_error: Pair | None
    rejected: Pair | None
    expected_cost: MaybePair | None
    classes: list[PreviewClass]
    warnings: list[str]


class EstimateView(_View):
    """The estimated class prior of recent traffic, with a 95 % interval for each class.

    `verdict` says whether it can be trusted, `reason` why and what to do, `evidence` holds the
    numbers behind it. `candidate` is the estimate pulled toward the target in force, more strongly
    the fewer rows there are; it can be PUT as it is. `calibrated` says whether the model's
    estimation block was used.
    """

    model: str
    version: int
    rows: int
    effective_rows: float
    since: datetime | None
    until: datetime | None
    verdict: Verdict
    reason: str
    evidence: dict[str, Any]
    calibrated: bool
    target: ByClass
    low: ByClass
    high: ByClass
    warnings: list[str]
    candidate: dict[str, Any]


def prior_line(entry: StoredRevision, *, fits: bool) -> PriorLine:
    """Make the line of an entry in the list of priors. fits: whether it has the model's classes."""
    return PriorLine(
        name=entry.name,
        revision=entry.revision,
        updated_at=entry.updated_at,
        by=entry.by,
        note=entry.note,
        fits=fits,
    )


def revision_line(entry: StoredRevision) -> RevisionLine:
    """Make the line of an entry in a history."""
    return RevisionLine(
        revision=entry.revision,
        updated_at=entry.updated_at,
        by=entry.by,
        note=entry.note,
        deleted=entry.deleted,
        equals=entry.equals,
    )


def prior_view(
    bundle: Bundle,
    name: str,
    resolved: PriorRevision | None,
    entry: StoredRevision | None,
    *,
    warnings: list[str],
    decisions_changed: float | None = None,
) -> PriorView:
    """Make the view of a prior.

    resolved: its vectors; None if it does not fit the model. entry: None if it is not stored.
    decisions_changed: the share of recent answers that the write changed, 0 to 1, or None.
    """
    prior = None if resolved is None else resolved.prior
    names = bundle.class_names
    body = None if entry is None else entry.body
    return view_of(PriorView, bundle)(
        model=bundle.name,
        version=bundle.version,
        name=name,
        revision=entry.revision if entry is not None else 0,
        updated_at=None if entry is None else entry.updated_at,
        by=None if entry is None else entry.by,
        note="" if entry is None else entry.note,
        expected=bool(body and body.expected),
        fits=resolved is not None,
        label_frequencies=None if prior is None else _by_class(names, prior.label_frequencies),
        source_prior=None if prior is None else _by_class(names, _exp(prior.log_source)),
        target=None if prior is None else _by_class(names, prior.target),
        decisions_changed=decisions_changed,
        warnings=[*warnings, *(() if prior is None else prior.warnings)],
        as_written=None if body is None else document_of(body),
    )


def preview_view(
    bundle: Bundle,
    sample: Sample,
    found: Preview | None,
    *,
    before: Rule,
    after: Rule,
    warnings: list[str],
) -> PreviewView:
    """Make the view of a preview.

    found: None if there was no traffic. before, after: the prior in force and the candidate.
    """
    return view_of(PreviewView, bundle)(
        model=bundle.name,
        version=bundle.version,
        rows=0 if found is None else found.rows,
        since=sample.since,
        until=sample.until,
        before=before,
        after=after,
        decisions_changed=None if found is None else found.decisions_changed,
        divergence=None
        if found is None
        else Pair(before=found.before.divergence, after=found.after.divergence),
        expected_error=_pair(found, "expected_error"),
        expected_balanced_error=_pair(found, "expected_balanced_error"),
        rejected=_pair(found, "rejected"),
        expected_cost=None
        if found is None
        else MaybePair(before=found.before.expected_cost, after=found.after.expected_cost),
        classes=[] if found is None else _classes(bundle, found.before, found.after),
        warnings=warnings,
    )


def estimate_view(
    bundle: Bundle, sample: Sample, found: Assessment, *, base: PriorBody, warnings: list[str]
) -> EstimateView:
    """The answer for an estimate. Its candidate is `base` with the estimate as the target."""
    names, estimate = bundle.class_names, found.estimate
    note = f"estimated from {estimate.n} rows of recent traffic; verdict {found.verdict}"
    return view_of(EstimateView, bundle)(
        model=bundle.name,
        version=bundle.version,
        rows=estimate.n,
        effective_rows=estimate.effective_n,
        since=sample.since,
        until=sample.until,
        verdict=found.verdict,
        reason=found.reason,
        evidence=found.evidence(),
        calibrated=found.calibrated,
        target=shown_by_class(names, estimate.prior),
        low=shown_by_class(names, estimate.low),
        high=shown_by_class(names, estimate.high),
        warnings=warnings,
        candidate=document_of(candidate_body(bundle, found, base=base, note=note)),
    )


def candidate_body(bundle: Bundle, found: Assessment, *, base: PriorBody, note: str) -> PriorBody:
    """Return `base` with the candidate of an estimate as its target, and this note."""
    target = kept_vector(short_form(bundle.class_names, found.candidate))
    return base.model_copy(update={"target": target, "expected": True, "note": note})


def _classes(bundle: Bundle, before: Outcome, after: Outcome) -> list[dict[str, Any]] | Made:
    columns = (before.rates, after.rates, before.mean_probability, after.mean_probability)
    members = tuple(PreviewClass.model_fields)

    def made(begin: int, end: int) -> list[dict[str, Any]]:
        parts = (column[begin:end].tolist() for column in columns)
        rows = zip(bundle.class_names[begin:end], range(begin, end), *parts, strict=True)
        return [dict(zip(members, row, strict=True)) for row in rows]

    count = len(bundle.class_names)
    return made(0, count) if count <= MANY_CLASSES else Made(count, made)


def _pair(found: Preview | None, name: str) -> Pair | None:
    if found is None:
        return None
    before, after = getattr(found.before, name), getattr(found.after, name)
    return None if before is None or after is None else Pair(before=before, after=after)


def _by_class(names: list[str], vector: Any) -> ByClass | Made | None:
    return None if vector is None else shown_by_class(names, vector)


def _exp(log_vector: Any) -> Any:
    return None if log_vector is None else np.exp(log_vector)
