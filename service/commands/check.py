"""`python -m service check`: whether `serve` would start with these settings, and what it would
serve.
"""

import errno
from collections.abc import Iterator

from service.api.edge.access import Access, ExposedWithoutKeys, check_exposure, open_to_others
from service.api.edge.keys import InvalidKeys, parse_key_setting
from service.commands import findings
from service.commands.findings import Finding
from service.contract.bundle import Bundle
from service.contract.nearest import did_you_mean
from service.priors.revisions import PriorDoesNotFit, StoreUnavailable
from service.priors.snapshot import resolve_stored
from service.priors.store import InvalidStoreUrl, open_store
from service.process.allowance import too_few_files
from service.process.listener import check_free
from service.process.machine import PortTaken
from service.settings import Settings


def run(settings: Settings) -> int:
    """Print the findings. Returns DONE if `serve` would start, else FAILED."""
    return findings.show(check(settings))


def check(settings: Settings) -> Iterator[Finding]:
    """Check everything that a start depends on, without listening on a port."""
    yield True, "settings", "all are known and within their ranges"
    yield findings.paths(settings)
    yield from _access(settings)
    yield from _addresses(settings)
    too_few = too_few_files()
    if too_few is not None:
        yield False, "open files", too_few
    yield from findings.extras(settings)
    store = findings.store(
        settings.store, reads=settings.store_reads, optional=settings.store_optional
    )
    yield store
    bundles = []
    for finding, bundle in findings.models(settings):
        yield finding
        if bundle is not None:
            bundles.append(bundle)
    if settings.default_model is not None:
        yield _default_model(settings, settings.default_model, bundles)
    if store[0]:
        yield from _priors(settings, bundles)


def _access(settings: Settings) -> Iterator[Finding]:
    try:
        access = Access(parse_key_setting(settings.api_keys), file=settings.keys)
    except InvalidKeys as error:
        yield False, "keys", str(error)
        return
    if access.open_to_all:
        yield None, "keys", "none: anyone who can reach the port has every right"
    else:
        roles = ", ".join(sorted({role for key in access.keys for role in key.roles}))
        if roles:
            yield True, "keys", f"{len(access.keys)}, with the roles {roles}"
        else:  # `serve` starts, and takes the first key within a second
            yield None, "keys", f"{settings.keys} has no key yet, so nobody can use the service"
        risky = None if settings.keys is None else open_to_others(settings.keys)
        if risky is not None:
            yield None, "keys", risky
    try:
        check_exposure(
            settings.host,
            has_keys=not access.open_to_all,
            allow_anonymous=settings.allow_anonymous,
        )
    except ExposedWithoutKeys as error:
        yield False, "access", str(error)


def _addresses(settings: Settings) -> Iterator[Finding]:
    """Bind each port as `serve` does, and give it back. One in use may be this service's own."""
    ports = {"--port": settings.port, "--metrics-port": settings.metrics_port}
    for flag, port in (ports | {"--grpc-port": settings.grpc_port}).items():
        try:
            check_free(settings.host, port)
        except OSError as error:
            good = None if error.errno == errno.EADDRINUSE else False
            yield good, "address", f"{PortTaken(settings.host, port, error, flag=flag)}"
            if good is False:
                return


def _default_model(settings: Settings, name: str, opened: list[Bundle]) -> Finding:
    names = (
        [bundle.name for bundle in opened]
        if isinstance(settings.models, str)
        else findings.model_names(settings.models)
    )
    if name in names:
        return True, "default model", name
    near = did_you_mean(name, names)
    return False, "default model", f"there is no model '{name}' in '{settings.models}'{near}"


def _priors(settings: Settings, bundles: list[Bundle]) -> Iterator[Finding]:
    """Resolve the newest revision of each stored prior for the model that it belongs to."""
    by_name = {bundle.name: bundle for bundle in bundles}
    try:
        store = open_store(settings.store)
        store.open(create=False)
        try:
            entries = store.newest().entries
        finally:
            store.close()
    except (InvalidStoreUrl, StoreUnavailable) as error:
        yield False, "priors", str(error)
        return
    newest = {}
    for entry in sorted(entries, key=lambda entry: entry.change):
        newest[entry.model, entry.name] = entry
    fitting = 0
    for (model, name), entry in newest.items():
        if entry.deleted:
            continue
        subject = f"prior {model}/{name}@{entry.revision}"
        bundle = by_name.get(model)
        if entry.damaged:
            yield (
                False,
                subject,
                "is damaged in the store, so the revision before it is served; PUT the prior again",
            )
        elif bundle is None:
            yield None, subject, f"its model '{model}' is not in the models folder"
        else:
            try:
                resolve_stored(bundle, entry, bundle.class_digest)
            except PriorDoesNotFit as error:
                yield False, subject, str(error)
            else:
                fitting += 1
    yield True, "priors", f"{fitting} of {len(newest)} stored priors fit their models"
