"""`python -m service doctor`: shows what works on this machine, and why the rest does not."""

import importlib.metadata
import platform
from collections.abc import Iterator

from service.commands import findings
from service.commands.findings import Finding
from service.contract import resources
from service.graph import providers
from service.settings import Settings

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "fastapi", "uvicorn", "sqlalchemy")


def run(settings: Settings) -> int:
    """Print the findings. Returns DONE when the service could start on this machine, else
    FAILED.
    """
    return findings.show(examine(settings))


def examine(settings: Settings) -> Iterator[Finding]:
    """Examine everything, in the order in which a start needs it."""
    yield None, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in _PACKAGES:
        yield None, name, _version(name)
    yield from _runtime(settings.provider)
    found = resources.processors()
    quota = (
        "no quota" if found.quota is None else f"a quota of {found.quota:g} ({found.quota_source})"
    )
    threads = f"threads of one graph call: {resources.available_threads()}"
    yield None, "processors", f"{found.machine}, {found.affinity} by affinity, {quota}; {threads}"
    yield findings.paths(settings)
    yield findings.store(
        settings.store, reads=settings.store_reads, optional=settings.store_optional
    )
    yield from findings.extras(settings)
    for finding, _ in findings.models(settings):
        yield finding


def _runtime(wanted: str) -> Iterator[Finding]:
    try:
        providers.check_runtime()
    except providers.ProviderUnavailable as error:
        yield False, "runtime packages", str(error)
        return
    yield (
        True,
        "runtime packages",
        "exactly one of onnxruntime and onnxruntime-gpu is installed, as required",
    )
    for name in ("cpu", "cuda"):
        reason = providers.probe(name)
        needed = name == wanted or (name == "cpu" and wanted == "auto")
        verdict = reason is None if reason is None or needed else None
        yield verdict, f"provider {name}", "works" if reason is None else f"does not work: {reason}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
