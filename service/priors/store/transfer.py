"""Priors as a JSON document: the history of a store, to keep or to move to another."""

import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from service.contract.bundle import check_model_name
from service.contract.members.body import PriorBody, parse_prior, pydantic_errors
from service.priors.changes import Change, Delete, Replace
from service.priors.revisions import StoredRevision, check_prior_name
from service.priors.store.store import SqlPriorStore

IMPORTED_BY = "import"


class InvalidDocument(ValueError):
    """Not a document that `priors export` writes; the message names every wrong field."""


class Entry(BaseModel):
    """One revision. body is null for a deletion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    name: str
    revision: Annotated[int, Field(ge=1, strict=True)]
    class_digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    updated_at: datetime
    by: Annotated[str, Field(max_length=200)]
    note: Annotated[str, Field(max_length=2000)]
    body: PriorBody | None

    @field_validator("body", mode="before")
    @classmethod
    def _checked(cls, body: object) -> PriorBody | None:
        """Check the body as a client's prior is checked: its type alone does not limit the
        costs.
        """
        return body if body is None or isinstance(body, PriorBody) else parse_prior(body)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        check_model_name(self.model)
        check_prior_name(self.name)
        if (self.class_digest == "") != (self.body is None):
            raise ValueError("class_digest must be empty for a deletion and not empty otherwise")
        if "\0" in self.note + self.by:
            raise ValueError("a text holds the character NUL; remove it")
        if self.updated_at.tzinfo is None:
            raise ValueError("updated_at has no time zone; expected one, as in …T12:00:00Z")
        return self


class Document(BaseModel):
    """Histories, oldest revision first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["priordial-priors-1"]
    entries: list[Entry]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        last: dict[tuple[str, str], int] = defaultdict(int)
        for entry in self.entries:
            key = (entry.model, entry.name)
            if entry.revision != last[key] + 1:
                raise ValueError(
                    f"prior '{entry.name}' of model '{entry.model}' goes from revision "
                    f"{last[key]} to {entry.revision}; expected revisions in ascending order"
                )
            last[key] = entry.revision
        return self


@dataclass(frozen=True)
class Imported:
    """The result of an import: numbers of priors."""

    whole: int
    """How many priors were new to the store; their whole history was imported."""
    newest: int
    """How many priors the store already had; their newest revision was added to its history."""
    unchanged: int


def export_document(
    store: SqlPriorStore, *, model: str | None = None
) -> tuple[Document, list[StoredRevision]]:
    """The history of all priors or of one model's; also the damaged entries.

    Priors with a damaged entry are left out.
    """
    entries = store.everything(model)
    damaged = [entry for entry in entries if entry.damaged]
    without = {(entry.model, entry.name) for entry in damaged}
    kept = [_exported(entry) for entry in entries if (entry.model, entry.name) not in without]
    return Document(format="priordial-priors-1", entries=kept), damaged


def parse_document(text: str | bytes) -> Document:
    """Check a document. Raises InvalidDocument."""
    try:
        return Document.model_validate_json(text)
    except ValidationError as error:
        faults = [
            f"{name}: {message}" if name else message for name, message in pydantic_errors(error)
        ]
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InvalidDocument(re.sub(r"\s+", " ", "; ".join(faults[:5])) + more) from None


def import_document(store: SqlPriorStore, document: Document) -> Imported:
    """Add what the store lacks. Importing the same document twice changes nothing more.

    A prior that the store does not know gets its whole history, as it was written. A known prior
    keeps its own history, and gets the document's newest state as a new revision unless it has it.
    """
    histories: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in document.entries:
        histories[entry.model, entry.name].append(entry)
    new = [key for key in histories if store.read(*key, 1) is None]
    store.restore(_stored(entry) for key in new for entry in histories[key])
    newest = unchanged = 0
    for (model, name), entries in histories.items():
        if (model, name) in new:
            continue
        before = store.history(model, name, before=None, limit=1)
        written = store.write(model, name, _change_to(entries[-1]), by=IMPORTED_BY, after=-1)
        changed = written.entry.revision > before[0].revision
        newest, unchanged = newest + changed, unchanged + (not changed)
    return Imported(len(new), newest, unchanged)


def _change_to(entry: Entry) -> Change:
    if entry.body is None:
        return Delete(entry.name, if_stored=True)
    return Replace(entry.name, entry.body, entry.class_digest)


def _exported(entry: StoredRevision) -> Entry:
    return Entry(
        model=entry.model,
        name=entry.name,
        revision=entry.revision,
        class_digest=entry.class_digest,
        updated_at=entry.updated_at,
        by=entry.by,
        note=entry.note,
        body=entry.body,
    )


def _stored(entry: Entry) -> StoredRevision:
    return StoredRevision(
        model=entry.model,
        name=entry.name,
        revision=entry.revision,
        body=entry.body,
        class_digest=entry.class_digest,
        updated_at=entry.updated_at.astimezone(UTC),
        by=entry.by,
        note=entry.note,
        deleted=entry.body is None,
    )
