"""`python -m service doctor`: what works on this machine, and why the rest does not."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

from service import machine
from service.contract.bundle import load_bundle, versions
from service.graph import providers
from service.graph import session as graph
from service.observe.traces import TracesUnavailable, open_traces
from service.priors.revisions import StoreUnavailable
from service.priors.store import InvalidStoreUrl, open_store
from service.settings import Settings

Finding = tuple[bool | None, str, str]
"""(good, bad or neither; what was looked at; what was found)."""

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "fastapi", "uvicorn", "sqlalchemy")


def run(settings: Settings) -> int:
    """Print the findings. Exit 0 when the service would start with these settings, else 1."""
    marks = {True: "ok  ", False: "BAD ", None: "    "}
    good = True
    for verdict, subject, found in findings(settings):
        good = good and verdict is not False
        sys.stdout.write(f"{marks[verdict]} {subject:<24} {found}\n")
    return 0 if good else 1


def findings(settings: Settings) -> Iterator[Finding]:
    """Everything that is looked at, in the order that a start needs it."""
    yield None, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in _PACKAGES:
        yield None, name, _version(name)
    yield from _runtime(settings.provider)
    found = machine.processors()
    quota = (
        "no quota" if found.quota is None else f"a quota of {found.quota:g} ({found.quota_source})"
    )
    threads = f"threads of one graph call: {machine.available_threads()}"
    yield None, "processors", f"{found.machine}, {found.affinity} by affinity, {quota}; {threads}"
    yield _store(settings.store, optional=settings.store_optional)
    if settings.traces:
        yield _traces()
    yield from _models(settings)


def _runtime(wanted: str) -> Iterator[Finding]:
    try:
        providers.check_runtime()
    except providers.ProviderUnavailable as error:
        yield False, "runtime packages", str(error)
        return
    yield True, "runtime packages", "one of onnxruntime and onnxruntime-gpu, as it must be"
    for name in ("cpu", "cuda"):
        reason = providers.probe(name)
        needed = name == wanted or (name == "cpu" and wanted == "auto")
        verdict = reason is None if reason is None or needed else None
        yield verdict, f"provider {name}", "works" if reason is None else f"does not work: {reason}"


def _store(url: str, *, optional: bool) -> Finding:
    try:
        store = open_store(url)
    except InvalidStoreUrl as error:
        return False, "prior store", str(error)
    try:
        store.open()
    except StoreUnavailable as error:
        return (None if optional else False), "prior store", f"cannot be used: {error}"
    finally:
        store.close()
    return True, "prior store", "reachable, its tables are as they should be"


def _traces() -> Finding:
    try:
        open_traces("doctor")
    except TracesUnavailable as error:
        return False, "traces", str(error)
    return True, "traces", "can be made; the collector was not asked"


def _models(settings: Settings) -> Iterator[Finding]:
    """Each model's newest version, opened on the provider that would serve it."""
    device = providers.Device(
        settings.device_id, memory_mib=settings.gpu_memory_mib, tf32=settings.tf32
    )
    try:
        provider = providers.resolve_provider(settings.provider, device)
    except providers.ProviderUnavailable as error:
        yield False, "models", f"not opened: {error}"
        return
    names = sorted(e.name for e in settings.models.glob("*") if versions(e))
    if not names:
        yield None, "models", f"none in {settings.models}"
    for name in names:
        version = versions(settings.models / name)[-1]
        folder = settings.models / name / str(version)
        try:
            bundle = load_bundle(folder)
            opened = graph.open_graph(
                folder, bundle, provider=provider, intra_op_threads=1, device=device
            )
        except (ValueError, providers.ProviderUnavailable) as error:
            yield False, f"model {name}/{version}", str(error)
            continue
        classes = len(bundle.class_names)
        yield True, f"model {name}/{version}", f"{classes} classes, opens on {opened.provider}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
