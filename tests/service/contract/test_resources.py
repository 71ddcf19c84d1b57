"""The memory and processors that a process may use, read from files as the kernel writes them; and
its standard streams.
"""

import os
import sys
from pathlib import Path

import pytest

from service.contract.resources import (
    available_memory,
    available_threads,
    flushed,
    memory_kills,
    open_standard_streams,
    processors,
)

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


def test_the_processes_that_the_kernel_killed_for_want_of_memory_are_those_of_the_own_group(root):
    (root / "sys/fs/cgroup/memory.events").write_text("oom 9\noom_kill 9\n")
    (root / "sys/fs/cgroup/shop/memory.events").write_text("low 0\noom 5\noom_kill 3\n")
    assert memory_kills(root) == 3
    (root / "proc/self/cgroup").write_text("4:memory:/shop\n")
    folder = root / "sys/fs/cgroup/memory/shop"
    folder.mkdir(parents=True)
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert memory_kills(root) == 2


def test_where_no_group_counts_them_nothing_was_killed_for_want_of_memory(root):
    assert memory_kills(root) == 0


def test_without_a_quota_every_processor_of_the_affinity_is_usable(root):
    (root / "sys/fs/cgroup/shop/cpu.max").write_text("max 100000\n")
    found = processors(root)
    assert found.quota is None
    assert found.usable == found.affinity == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "usable"), [("100000 100000", 1), ("40000 100000", 1), ("150000 100000", 2)]
)
def test_the_quota_of_the_group_limits_the_processors(root, quota, usable, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    file = root / "sys/fs/cgroup/shop/cpu.max"
    file.write_text(f"{quota}\n")
    found = processors(root)
    assert found.usable == usable
    assert found.quota_source == str(file)


def test_the_quota_of_a_group_above_counts_too(root, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (root / "sys/fs/cgroup/shop/cpu.max").write_text("800000 100000\n")
    (root / "sys/fs/cgroup/cpu.max").write_text("400000 100000\n")
    assert processors(root).usable == 4


def test_the_quota_of_control_groups_version_1(root, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (root / "proc/self/cgroup").write_text("4:cpu,cpuacct:/shop\n")
    group = root / "sys/fs/cgroup/cpu,cpuacct/shop"
    group.mkdir(parents=True)
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert processors(root).usable == 64
    (group / "cpu.cfs_quota_us").write_text("300000\n")
    assert processors(root).usable == 3


def test_a_group_outside_the_container_counts_by_what_the_container_sees(root, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (root / "proc/self/cgroup").write_text("0::/../../elsewhere\n")
    (root / "sys/fs/cgroup/cpu.max").write_text("200000 100000\n")
    assert processors(root).usable == 2


def test_the_threads_of_this_process_are_the_processors_that_it_may_use():
    assert available_threads() == processors().usable >= 1


@pytest.mark.parametrize(("number", "name"), [(0, "stdin"), (1, "stdout"), (2, "stderr")])
def test_a_closed_standard_stream_is_led_to_nothing(monkeypatch, capfd, number, name):
    with capfd.disabled():
        kept = os.dup(number)
        os.close(number)
        monkeypatch.setattr(sys, name, None)
        try:
            was_open = open_standard_streams()
            opened = Path(f"/proc/self/fd/{number}").readlink()
            stream = getattr(sys, name)
        finally:
            os.dup2(kept, number)
            os.close(kept)
    assert was_open == (name != "stdout")
    assert opened == Path(os.devnull)
    assert stream.fileno() == number


def test_output_that_cannot_be_written_is_told_once_and_then_dropped(monkeypatch):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert flushed()
        full.write("lost")
        assert not flushed()
        assert flushed()
