"""Every command in README.md and docs/ is run, and prints what the page says."""

import contextlib
import shutil
import socket
import subprocess
import sys

import pytest

from tests.documents.blocks import ROOT, RUN, Desk, blocks_of, differences, examples_of
from tests.support.server import READY, starting

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES_WITH_EXAMPLES = [
    page
    for page in PAGES
    if any(block.language in RUN and not block.not_run for block in blocks_of(page))
]


def make_desk(folder):
    """A folder with the shipped models and the model of irises that the pages speak of."""
    desk = Desk(folder)
    for command in (
        ["examples/serve_scikit_learn.py"],
        [
            "-m",
            "priordial",
            "import",
            "iris.onnx",
            "--name",
            "iris",
            "--class-counts",
            "counts.json",
        ],
    ):
        subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
        )
    return desk


@contextlib.contextmanager
def served(desk):
    """The service that a page speaks to, with a new store in the folder of the desk."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        grpc_port = free.getsockname()[1]
    desk.grpc_address = f"127.0.0.1:{grpc_port}"
    with starting(
        desk.folder / "models",
        default_model="fashion",
        feedback_mib=16,
        store=f"sqlite:///{desk.folder}/priordial.db",
        grpc_port=grpc_port,
    ) as server:
        server.url = server.wait_for(READY, seconds=120)[1]
        desk.address = server.url.removeprefix("http://")
        yield server


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_desk(tmp_path_factory.mktemp("checkout")).folder


@pytest.fixture
def desk(checkout, tmp_path):
    shutil.copytree(checkout, tmp_path, dirs_exist_ok=True, symlinks=True)
    return Desk(tmp_path)


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_of_the_page_prints_what_the_page_says(page, desk):
    drifted = []
    if page.parent.name == "tutorials":  # which begin from nothing: no model of irises is there yet
        shutil.rmtree(desk.folder / "models" / "iris")
    with served(desk):
        for block in blocks_of(page):
            if block.language not in RUN or block.not_run:
                continue
            for example in examples_of(block):
                difference = differences(
                    example.expected,
                    desk.run(example, block.language),
                    numbers_vary=block.numbers_vary,
                )
                if difference:
                    drifted.append(f"{block.place}\n$ {example.command}\n{difference}")
    assert not drifted, "\n\n".join(drifted)


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("a b", "a\n  b"),
        ("first … last", "first, any\nlines, last"),
        ('{"p": 0.55175}', '{"p":0.55178}'),
        ("0.123", "0.1230001"),
    ],
)
def test_an_example_may_differ_in_spaces_elided_text_and_rounding(expected, printed):
    assert differences(expected, printed) == ""


def test_where_numbers_vary_any_number_will_do_and_nothing_else():
    assert differences("12 s, 3.5 %", "9 s, 41.25 %", numbers_vary=True) == ""
    assert differences("12 s, 3.5 %", "9 ms, 41.25 %", numbers_vary=True) != ""


@pytest.mark.parametrize(
    ("expected", "printed"),
    [("a b", "a c"), ("a", "a b"), ("0.551", "0.552"), ("revision 1", "revision 2")],
)
def test_an_example_may_not_differ_in_anything_else(expected, printed):
    assert differences(expected, printed) != ""


def test_a_block_that_is_not_run_says_why(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs Docker -->\n```console\n$ docker ps\n```\n")
    assert [block.not_run for block in blocks_of(page)] == ["needs Docker"]


def test_python_comments_behind_print_are_its_output(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)  # 2\n```\n")
    assert [one.expected for one in examples_of(blocks_of(page)[0])] == ["2"]


def test_the_readme_has_examples():
    assert ROOT / "README.md" in PAGES_WITH_EXAMPLES
