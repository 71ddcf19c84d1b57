"""What the system does not allow is named before it is met."""

import errno
import resource
import subprocess
import sys

import pytest

from service.process.allowance import LEAST_FILES, too_few_files
from service.process.threads import failure_text
from tests.support.server import ROOT


@pytest.fixture
def open_files():
    """Sets the number of files that this process may open; the limit of before comes back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def may_open(count):
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))

    yield may_open
    may_open(soft)


def test_fewer_open_files_than_a_start_needs_are_told_with_the_remedy(open_files):
    assert too_few_files() is None
    open_files(LEAST_FILES)
    assert too_few_files() is None
    open_files(LEAST_FILES - 1)
    assert "open 63 files; expected at least 64" in too_few_files()
    assert "ulimit -n" in too_few_files()


def limited(script, *limits):
    """What a script prints in a process of its own with these limits of prlimit."""
    command = ["prlimit", *limits, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize(("limit", "command"), [("as", "ulimit -v"), ("data", "ulimit -d")])
def test_a_start_with_too_little_memory_is_one_line_that_names_the_limit(limit, command):
    script = "import sys; from service.__main__ import main; sys.exit(main(['serve']))"
    (line,) = limited(script, f"--{limit}={150 * 2**20}").splitlines()
    assert f"use 150 MiB of memory ({command}); expected at least" in line


def test_a_thread_that_finds_no_memory_is_told_with_that_limit_and_not_with_one_of_threads():
    script = (
        "import threading\n"
        "from service.process.threads import failure_text\n"
        "try:\n"
        "    for _ in range(64):\n"
        "        threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "except RuntimeError as error:\n"
        "    print(failure_text(error), flush=True)\n"
        "import os; os._exit(0)\n"
    )
    printed = limited(script, f"--as={200 * 2**20}")
    assert "can't start new thread; raise its limit of memory: ulimit -v is 204800 KiB" in printed


def test_an_error_without_words_is_told_all_the_same():
    assert failure_text(MemoryError()).startswith("no memory is left for it; ")
    assert failure_text(KeyError()) == "KeyError"
    assert "ulimit -u" in failure_text(
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    )
