"""A library that is missing is traced to the extra that installs it."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from service.contract.extras import EXTRAS, absent, missing_extra

ROOT = Path(__file__).parents[3]
IMPORT_NAMES = {
    "backports.zstd": "backports",
    "pysimdjson": "simdjson",
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "onnxruntime-gpu": "onnxruntime",
}
"""The import name of each library whose name on the package index does not show it."""


@pytest.mark.parametrize("first", ["serve", "training"])
def test_a_library_of_two_extras_is_installed_by_the_one_named_first(first):
    advice = missing_extra(ModuleNotFoundError(name="PIL.Image"), first=first)
    assert advice == f"PIL is not installed. Install it with: pip install 'priordial[{first}]'"


def test_a_library_of_another_extra_is_installed_by_that_one():
    advice = missing_extra(ModuleNotFoundError(name="torch.nn"), first="serve")
    assert advice is not None
    assert advice.endswith("'priordial[training]'")


def test_a_missing_module_of_ours_keeps_its_traceback():
    assert missing_extra(ModuleNotFoundError(name="service.lost"), first="serve") is None


def test_an_extra_is_absent_as_soon_as_one_of_its_libraries_is(monkeypatch):
    assert absent("grpc") is None
    monkeypatch.setitem(sys.modules, "grpc_health", None)  # as where it is not installed
    assert absent("grpc") == (
        "grpc_health is not installed. Install it with: pip install 'priordial[grpc]'"
    )


def test_every_library_of_an_extra_is_known_by_its_import_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    libraries = {
        re.split(r"[\[><=;~! ]", requirement)[0]
        for requirements in project["optional-dependencies"].values()
        for requirement in requirements
    } - {"priordial"}
    known = {name for names in EXTRAS.values() for name in names}
    assert {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in libraries} <= known
