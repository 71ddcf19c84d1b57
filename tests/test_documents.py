"""Everything that users rely on is documented, and everything documented exists."""

import ast
import collections
import dataclasses
import graphlib
import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from service import settings
from service.api.openapi import titles
from service.contract import bundle
from service.contract.inputs.spec import InputSpec
from service.observe import families

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "models/README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def text():
    return "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)


@pytest.mark.parametrize("item", dataclasses.fields(settings.Settings), ids=lambda item: item.name)
def test_every_setting_is_documented_by_its_flag(text, item):
    assert f"`{settings.flag_of(item.name)}" in text


@pytest.mark.parametrize(
    "name", [*families.COUNTERS, *families.HISTOGRAMS, *families.GAUGES, *families.VECTOR_GAUGES]
)
def test_every_metric_is_documented(text, name):
    assert name in text


@pytest.mark.parametrize(
    "name",
    [*bundle.Bundle.model_fields, *InputSpec.model_fields, *bundle.OutputSpec.model_fields],
)
def test_every_field_of_model_json_is_documented(name):
    assert f"`{name}`" in (ROOT / "models/README.md").read_text(encoding="utf-8")


NAMED = {"/models/fashion": "/models/{}", "/models/NAME": "/models/{}"}
"""What documents write for a model in a path."""


@pytest.mark.parametrize("operation", titles.OPERATIONS)
def test_every_route_is_documented(text, operation):
    for written, meant in NAMED.items():
        text = text.replace(written, meant)
    path = re.sub(r"\{[^}]*\}", "{}", operation.partition(" ")[2])
    assert path in re.sub(r"\{[^}]*\}", "{}", text)


def _tracked(*patterns):
    found = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [ROOT / name for name in found.stdout.split("\0") if name]


def test_every_link_between_the_documents_leads_somewhere():
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in _tracked("*.md")
        for target in re.findall(
            r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text(encoding="utf-8")
        )
        if not (path.parent / target).exists()
    ]
    assert broken == []


ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PROGRAMS = ("priordial", "service", "training", "benchmarks")
"""The packages whose rooms ARCHITECTURE.md names."""
MOST_MODULES, MOST_ARROWS, MOST_UNSAID = 15, 65, 4


def _rooms():
    """Each room of ARCHITECTURE.md with the names at its door."""
    rows = re.findall(r"^\| `([\w/]+)/` \|(.*)\|$", ARCHITECTURE, re.MULTILINE)
    return {
        room: re.findall(r"`([\w.]+)`", cells.rsplit("|", 1)[1] if cells.count("|") else "")
        for room, cells in rows
    }


def _modules():
    """Every module of the programs as its room and its name."""
    for program in PROGRAMS:
        for path in sorted((ROOT / program).rglob("*.py")):
            if path.name != "__init__.py":
                yield path.parent.relative_to(ROOT).as_posix(), path.stem


def _exists(room, name):
    """Whether a room has this module, this name in a module, or this name of its own."""
    package = room.replace("/", ".")
    module, _, attribute = name.partition(".")
    if (ROOT / room / f"{module}.py").exists():
        return not attribute or hasattr(
            importlib.import_module(f"{package}.{module}"), attribute.split(".")[0]
        )
    return not attribute and hasattr(importlib.import_module(package), module)


MAKE_COMMAND = re.compile(r"(?:`|^\$ |^ {4})make ([a-z][a-z-]*)(?=`|  | *#|\s*$)", re.MULTILINE)
"""`make NAME` as documents show it: in backquotes, after a prompt, or indented."""


def test_every_make_command_has_a_recipe():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    for path in [*_tracked("*.md"), *_tracked("*.py")]:
        named |= set(MAKE_COMMAND.findall(path.read_text(encoding="utf-8")))
    assert {"run", "train", "docs"} <= named
    for name in sorted(named):
        done = subprocess.run(
            ["make", "--dry-run", "--always-make", name],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Nothing to be done" not in done.stdout, f"make {name} does nothing"


def test_every_decision_says_what_because_instead_of_and_when_to_revisit():
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    for entry in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        parts = re.findall(r"^(What|Because|Instead of|Revisit when):", entry, re.MULTILINE)
        assert parts == ["What", "Because", "Instead of", "Revisit when"], entry.splitlines()[0]


def test_every_module_of_the_code_map_exists():
    named = set(re.findall(r"`((?:service|training|tests|docs)/[\w/]+\.\w+)`", ARCHITECTURE))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_module_lies_in_a_room_that_the_map_names():
    rooms = _rooms()
    assert sorted({f"{room}/{name}.py" for room, name in _modules() if room not in rooms}) == []


def test_every_room_of_the_map_exists():
    assert [room for room in _rooms() if not (ROOT / room).is_dir()] == []


@pytest.mark.parametrize("room", _rooms())
def test_every_name_at_a_rooms_door_exists(room):
    missing = [name for name in _rooms()[room] if not _exists(room, name)]
    assert missing == [], f"ARCHITECTURE.md names what {room} does not have: mend its row"


def test_no_room_has_more_modules_than_the_map_allows():
    sizes = collections.Counter(room for room, _ in _modules())
    assert {room: size for room, size in sizes.items() if size > MOST_MODULES} == {}


def _imports(program):
    """Each module of a program with the modules of it that it imports, also late or for types."""
    for path in sorted((ROOT / program).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        yield name, {target for target in found if target.startswith(f"{program}.")}


def test_the_rooms_of_the_service_have_few_arrows():
    arrows = {
        (name.split(".")[1], target.split(".")[1])
        for name, targets in _imports("service")
        for target in targets
        if "." in name and name.split(".")[1] != target.split(".")[1]
    }
    assert len(arrows) <= MOST_ARROWS


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_constructor_with_many_parameters_says_what_each_is(program):
    silent = []
    for path in sorted((ROOT / program).rglob("*.py")):
        for kind in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for made in ast.iter_child_nodes(kind) if isinstance(kind, ast.ClassDef) else ():
                if not isinstance(made, ast.FunctionDef) or made.name != "__init__":
                    continue
                names = [one.arg for one in (*made.args.args[1:], *made.args.kwonlyargs)]
                said = f"{ast.get_docstring(kind)} {ast.get_docstring(made)}"
                if len(names) > MOST_UNSAID:
                    silent += [
                        f"{path.relative_to(ROOT)}: {kind.name}({name})"
                        for name in names
                        if not re.search(rf"\b{name}\b", said)
                    ]
    assert silent == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_modules_import_each_other(program):
    imports = dict(_imports(program))
    graph = {
        name: {target if target in imports else target.rpartition(".")[0] for target in targets}
        for name, targets in imports.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_picture_of_the_rooms_equals_the_import_contracts():
    picture = re.search(r"```text\nservice/.*?─\n(.*?)```", ARCHITECTURE, re.DOTALL)[1]
    columns = [re.sub(r"[◄─┘│].*", "", line).rstrip() for line in picture.splitlines()]
    drawn = {
        "service": [line[:47].strip() for line in columns],
        "training": [line[47:].strip() for line in columns],
    }
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    held = {
        contract["containers"][0]: contract["layers"]
        for contract in contracts["tool"]["importlinter"]["contracts"]
        if "containers" in contract
    }
    for program, column in drawn.items():
        assert [line for line in column if line] == held[program]
