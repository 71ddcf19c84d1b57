"""The memory that a process may use, read from files as the kernel writes them."""

import pytest

from service.process.machine import available_memory

GIB = 2**30


@pytest.fixture
def root(tmp_path):
    """A machine of 16 GiB whose process is in the group /shop of control groups version 2."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16777216 kB\nMemFree:  1 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/shop\n")
    (tmp_path / "sys/fs/cgroup/shop").mkdir(parents=True)
    return tmp_path


def test_without_a_limit_it_is_the_memory_of_the_machine(root):
    (root / "sys/fs/cgroup/shop/memory.max").write_text("max\n")
    assert available_memory(root) == 16 * GIB


def test_the_smallest_limit_of_the_group_and_its_parents_counts(root):
    (root / "sys/fs/cgroup/shop/memory.max").write_text(f"{4 * GIB}\n")
    (root / "sys/fs/cgroup/memory.max").write_text(f"{2 * GIB}\n")
    assert available_memory(root) == 2 * GIB


def test_a_limit_of_version_1_counts_and_its_word_for_none_does_not(root):
    (root / "proc/self/cgroup").write_text("4:memory:/shop\n")
    folder = root / "sys/fs/cgroup/memory/shop"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert available_memory(root) == 16 * GIB
    (folder / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    assert available_memory(root) == GIB
