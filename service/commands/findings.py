"""The checks that `check` and `doctor` share, and how they print their findings."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from service.contract.bundle import Bundle, load_bundle, misplaced, models_of
from service.contract.resources import available_threads
from service.graph import providers, session
from service.observe.traces import TracesUnavailable, open_traces
from service.priors.revisions import StoreUnavailable
from service.priors.store import InvalidStoreUrl, open_store, store_url
from service.process.exit_codes import DONE, FAILED
from service.settings import InvalidSetting, Settings, check_extras, check_paths, check_threads
from service.stores.mirror import NoRoom, open_mirror
from service.stores.remote import InvalidModelsUrl, LocalCopyFailed, RemoteUnavailable

Finding = tuple[bool | None, str, str]
"""(True: good, False: bad, None: neither; the subject; the finding as text)."""

_MARKS = {True: "ok  ", False: "BAD ", None: "    "}


def show(findings: Iterable[Finding]) -> int:
    """Print each finding at once. Returns FAILED if any is bad, else DONE."""
    good = True
    for verdict, subject, found in findings:
        good = good and verdict is not False
        line = f"{_MARKS[verdict]} {subject:<24} {found}"
        encoding = sys.stdout.encoding or "utf-8"  # under LANG=C it may have few letters
        line = line.encode(encoding, "backslashreplace").decode(encoding)
        sys.stdout.write("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) + "\n")
        sys.stdout.flush()
    return DONE if good else FAILED


def paths(settings: Settings) -> Finding:
    """Look for the files and folders of the settings, and count the processors."""
    try:
        check_paths(settings)
        check_threads(settings, processors=available_threads())
    except InvalidSetting as error:
        return False, "files and folders", str(error)
    models = settings.models
    where = models if isinstance(models, str) else models.resolve()
    return True, "files and folders", f"models are read from '{where}'"


def store(url: str, *, reads: str, optional: bool) -> Finding:
    """Connect to the store as `serve` does at its start.

    reads: the standby that priors are read from, or "". optional: a failure does not count.
    """
    try:
        opened = open_store(url, reads=reads)
    except InvalidStoreUrl as error:
        return False, "prior store", str(error)
    try:
        opened.open()
    except StoreUnavailable as error:
        return (None if optional else False), "prior store", f"cannot be used: {error}"
    finally:
        opened.close()
    where = "" if store_url(url) == url else f" ({store_url(url)})"
    return True, "prior store", f"reachable, and its tables are as expected{where}"


def extras(settings: Settings) -> Iterator[Finding]:
    """Look for the optional packages that the settings need."""
    if settings.traces:
        try:
            open_traces("check")
        except TracesUnavailable as error:
            yield False, "traces", str(error)
        else:
            yield True, "traces", "OpenTelemetry is installed; the collector was not contacted"
    if settings.grpc_port:
        try:
            check_extras(settings)
        except InvalidSetting as error:
            yield False, "gRPC", str(error)
        else:
            yield True, "gRPC", "its packages are installed"


def models(settings: Settings) -> Iterator[tuple[Finding, Bundle | None]]:
    """Open the newest version of each model on the provider that would serve it.

    Yields each finding, with the bundle of a model that opens.
    """
    device = providers.Device(
        settings.device_id, memory_mib=settings.gpu_memory_mib, tf32=settings.tf32
    )
    try:
        provider = providers.resolve_provider(settings.provider, device)
    except providers.ProviderUnavailable as error:
        yield (False, "models", f"not opened: {error}"), None
        return
    try:
        mirror = open_mirror(
            settings.models, settings.models_cache, max_bytes=settings.models_cache_mib * 2**20
        )
        if mirror is not None:
            mirror.refresh()
    except (InvalidModelsUrl, RemoteUnavailable) as error:
        yield (False, "models", str(error)), None
        return
    models = Path(settings.models) if mirror is None else mirror.folder
    there, unreadable = models_of(models)
    for name, reason in unreadable.items():
        yield (False, f"model {name}", reason), None
    for reason in misplaced(models):
        yield (None, "models", f"{reason}; it is not served"), None
    if not there and not unreadable:
        fine = None if settings.allow_no_models else False
        text = f"'{settings.models}' has no model (--allow-no-models starts without one)"
        yield (fine, "models", text), None
    for name, numbers in there.items():
        version = numbers[-1]
        folder = models / name / str(version)
        try:
            if mirror is not None:
                mirror.fetch(folder)
            bundle = load_bundle(folder)
            opened = session.open_graph(
                folder, bundle, provider=provider, intra_op_threads=1, device=device
            )
        except (
            ValueError,
            NoRoom,
            RemoteUnavailable,
            LocalCopyFailed,
            providers.ProviderUnavailable,
        ) as error:
            yield (False, f"model {name}/{version}", str(error)), None
            continue
        classes = len(bundle.class_names)
        found = f"{classes} classes, opens on {opened.provider}"
        yield (True, f"model {name}/{version}", found), bundle


def model_names(folder: Path) -> list[str]:
    """Return the names of the models in a folder."""
    return list(models_of(folder)[0])
