"""What the system does not allow is told before it is met."""

import resource

import pytest

from service.process.allowance import LEAST_FILES, too_few_files


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
