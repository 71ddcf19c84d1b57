"""`priors list|show|diff|rollback`: look at a store's priors and return to an older revision.

These verbs work on the store itself, so they also work while no service runs. Services that use
the store serve a change within a second or two.
"""

import getpass
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from service.contract.members.body import STRUCTURED, PriorBody, VectorSpec
from service.contract.nearest import did_you_mean
from service.priors.changes import Change, Delete, ReturnTo, same_prior
from service.priors.revisions import (
    StoredRevision,
    StoreUnavailable,
    UnknownPrior,
    check_prior_name,
)
from service.priors.store import SqlPriorStore, open_store
from service.priors.webhook import Changed, send

HISTORY = 20
"""The most revisions that `show` lists."""
DIFFERENCES = 30
"""The most classes that `diff` lists; those that differ most come first."""


def run(given: Mapping[str, Any], url: str, environment: Mapping[str, str]) -> None:
    """Carry out a parsed command line. Raises UnknownPrior, StoreUnavailable and the like."""
    with closing(open_store(url)) as store:
        store.open(create=False)
        if given["action"] == "list":
            _list(store, given["model"])
            return
        name = given["name"]
        model = given["model"] or _only_model(store)
        if given["action"] == "show":
            _show(store, model, name, given["revision"])
        elif given["action"] == "diff":
            _diff(store, model, name, old=given["old"], new=given["new"])
        else:
            changed = _rollback(store, model, name, to=given["to"], note=given["note"])
            _announce(changed, environment)


def _newest(store: SqlPriorStore) -> dict[tuple[str, str], StoredRevision]:
    """The newest entry of each prior, deletions included, by model and name."""
    newest: dict[tuple[str, str], StoredRevision] = {}
    for entry in store.newest().entries:
        key = (entry.model, entry.name)
        if key not in newest or newest[key].revision < entry.revision:
            newest[key] = entry
    return newest


def check_model(store: SqlPriorStore, model: str | None) -> None:
    """Raise UnknownPrior where the store has never held a prior of the model that was named."""
    models = sorted({model for model, _ in _newest(store)})
    if model is not None and model not in models:
        there = f"priors of {', '.join(models)}" if models else "no priors"
        raise UnknownPrior(
            f"--model is '{model}', and the store has {there}{did_you_mean(model, models)}"
        )


def _only_model(store: SqlPriorStore) -> str:
    models = sorted({model for model, _ in _newest(store)})
    if len(models) == 1:
        return models[0]
    there = ", ".join(models) if models else "no model"
    raise UnknownPrior(
        f"--model is missing, and the store has priors of {there}; name the model with --model"
    )


def _list(store: SqlPriorStore, model: str | None) -> None:
    check_model(store, model)
    entries = [
        entry
        for (of_model, _), entry in sorted(_newest(store).items())
        if model in (None, of_model) and not entry.deleted
    ]
    rows = [(e.model, e.name, *_line(e)) for e in entries]
    _table(("model", "prior", "revision", "stored at (UTC)", "by", "note"), rows)


def _show(store: SqlPriorStore, model: str, name: str, revision: int | None) -> None:
    history = _history(store, model, name)
    entry = _entry(store, model, name, history[0].revision if revision is None else revision)
    rows = [
        (*_line(e), "deleted" if e.deleted else "" if e.equals is None else f"= {e.equals}")
        for e in history[:HISTORY]
    ]
    _table(("revision", "stored at (UTC)", "by", "note", ""), rows)
    if len(history) > HISTORY:
        sys.stdout.write("…\n")
    body = None if entry is None or entry.body is None else entry.body.model_dump(mode="json")
    number = 0 if entry is None else entry.revision
    sys.stdout.write(f"\nrevision {number} of prior '{name}' of model '{model}':\n")
    sys.stdout.write(json.dumps(body, ensure_ascii=False, indent=1) + "\n")


def _diff(store: SqlPriorStore, model: str, name: str, *, old: int | None, new: int | None) -> None:
    history = _history(store, model, name)
    new = history[0].revision if new is None else new
    old = max(0, new - 1) if old is None else old
    bodies = []
    for revision in (old, new):
        entry = _entry(store, model, name, revision)
        bodies.append(None if entry is None else entry.body)
    sys.stdout.write(f"prior '{name}' of model '{model}': revision {old} -> {new}\n")
    before, after = (PriorBody() if body is None else body for body in bodies)
    for revision, body in ((old, bodies[0]), (new, bodies[1])):
        if body is None:
            sys.stdout.write(
                f"revision {revision}: nothing stored, so the model's own rule applies\n"
            )
    lines = [line for field in PriorBody.model_fields for line in _changes(field, before, after)]
    sys.stdout.write("\n".join(lines or ["no difference"]) + "\n")


def _changes(field: str, before: PriorBody, after: PriorBody) -> Iterator[str]:
    """Yield the lines that describe how one field differs."""
    old, new = getattr(before, field), getattr(after, field)
    if old == new:
        return
    if field in STRUCTURED:
        pair = [body.model_dump(mode="json").get(field, {}) for body in (before, after)]
        for name in sorted({*pair[0], *pair[1]}):
            a, b = (members.get(name) for members in pair)
            if a != b:
                yield f"{field}.{name}: {_short(a)} -> {_short(b)}"
        return
    if not isinstance(old, (dict, list)) or not isinstance(new, (dict, list)):
        yield f"{field}: {_short(old)} -> {_short(new)}"
        return
    keys = sorted({str(key) for vector in (old, new) for key in _keys(vector)})
    shares = _shares(old, keys, before.others), _shares(new, keys, after.others)
    pairs = [(key, shares[0].get(key, 0.0), shares[1].get(key, 0.0)) for key in keys]
    pairs = [(key, a, b) for key, a, b in pairs if not math.isclose(a, b, rel_tol=1e-9)]
    pairs.sort(key=lambda pair: -abs(_log(pair[2]) - _log(pair[1])))
    yield f"{field}: {len(pairs)} of {len(keys)} classes differ in their share"
    for key, a, b in pairs[:DIFFERENCES]:
        factor = f"× {b / a:.3g}" if a and b else ""
        yield f"  {key:<30} {a:>12.6g} -> {b:<12.6g} {factor}".rstrip()
    if len(pairs) > DIFFERENCES:
        yield f"  … and {len(pairs) - DIFFERENCES} more"


def _rollback(
    store: SqlPriorStore, model: str, name: str, *, to: int | None, note: str
) -> Changed | None:
    """Store the change and print the outcome; None when there was nothing to change."""
    check_prior_name(name)
    newest = _history(store, model, name)[0]
    to = _last_different(store, newest) if to is None else to
    note = note or f"back to revision {to}"
    old = _entry(store, model, name, to)
    if old is None:
        change: Change = Delete(name, note=note, if_stored=True)
    else:
        change = ReturnTo(name, old, old.class_digest, note)
    written = store.write(model, name, change, by=f"cli:{getpass.getuser()}", after=-1)
    revision = written.entry.revision
    if not written.changed:
        sys.stdout.write(f"prior '{name}' of model '{model}' already equals revision {to}\n")
        return None
    what = "nothing stored" if old is None else f"the prior of revision {to}"
    sys.stdout.write(f"revision {revision} of prior '{name}' of model '{model}': {what}\n")
    return Changed("rollback", written.entry)


def _last_different(store: SqlPriorStore, current: StoredRevision) -> int:
    """Return the newest older revision whose prior differs from the current one; 0 if there is
    none.
    """
    if current.deleted:
        raise UnknownPrior(f"prior '{current.name}' is not in use; name a revision with --to")
    for entry in _history(store, current.model, current.name)[1:]:
        if entry.deleted:
            return 0
        old = store.read(entry.model, entry.name, entry.revision)
        if old is None or old.body is None:  # damaged
            continue
        if current.body is None or not same_prior(old.body, current.body):
            return old.revision
    return 0


def _announce(changed: Changed | None, environment: Mapping[str, str]) -> None:
    """Send the change to the webhook that the environment names, if any, in one attempt."""
    url = environment.get("PRIORDIAL_WEBHOOK", "")
    secret = environment.get("PRIORDIAL_WEBHOOK_SECRET", "")
    if changed is None or not (url and secret):
        return
    trouble = send(url, secret.encode(), changed)
    if trouble is not None:
        sys.stderr.write(f"warning: PRIORDIAL_WEBHOOK did not accept the announcement: {trouble}\n")


def _history(store: SqlPriorStore, model: str, name: str) -> list[StoredRevision]:
    history = store.history(model, name, before=None, limit=1000)
    if not history:
        known = ", ".join(f"'{n}' of {m}" for m, n in sorted(_newest(store))[:20]) or "none"
        near = did_you_mean(name, [n for m, n in _newest(store) if m == model])
        raise UnknownPrior(
            f"the store has no prior '{name}' of model '{model}'; it has {known}{near}"
        )
    return history


def _entry(store: SqlPriorStore, model: str, name: str, revision: int) -> StoredRevision | None:
    """A revision; None for revision 0 and for a deleted prior. Raises UnknownPrior."""
    if revision == 0:
        return None
    entry = store.read(model, name, revision)
    if entry is None:
        raise UnknownPrior(
            f"prior '{name}' of model '{model}' has no revision {revision}; `priors show` lists "
            "them"
        )
    if entry.damaged:
        raise StoreUnavailable(
            "corrupt",
            f"revision {revision} of prior '{name}' is damaged in the store; write the prior "
            "again, or restore the store from a backup",
        )
    return None if entry.deleted else entry


def _keys(vector: VectorSpec) -> Iterable[object]:
    """The keys of a vector: class names, or the indices of a list."""
    return vector if isinstance(vector, dict) else range(len(vector))


def _shares(vector: VectorSpec, keys: Iterable[str], others: float | None) -> dict[str, float]:
    """The entries divided by their sum, by class name or, for a list, by index.

    others: the value of each of the `keys` that an object does not name.
    """
    items = vector.items() if isinstance(vector, dict) else enumerate(vector)
    unnamed = dict.fromkeys(keys, others) if others is not None and isinstance(vector, dict) else {}
    values = {**unnamed, **{str(key): value for key, value in items}}
    total = math.fsum(values.values()) or 1.0
    return {key: value / total for key, value in values.items()}


def _log(share: float) -> float:
    return math.log(share) if share else -1e9


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def _line(entry: StoredRevision) -> tuple[str, str, str, str]:
    moment = entry.updated_at.strftime("%Y-%m-%d %H:%M:%S")
    return str(entry.revision), moment, entry.by, " ".join(entry.note.split())[:60]


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    lines: list[tuple[str, ...]] = [titles, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
