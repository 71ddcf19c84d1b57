"""Numbers outlive their process; on a full disk they are kept in memory, and the service reports
it.
"""

import contextlib
import resource
import shutil

import numpy as np
import pytest

from service.observe.metrics import Arrived, Metrics
from service.observe.run_folder import RunFolder
from service.observe.tally import Tally, TallyReader
from service.observe.version_tallies import VersionTallies
from tests.support.priors import make_bundle

LABELS = {"route": "/predict"}


@contextlib.contextmanager
def no_file_grows_beyond(size):
    """The kernel refuses to extend files, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def tally_in():
    """Opens tallies and closes them at the end."""
    opened = []

    def make(folder):
        opened.append(Tally(folder))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def read(folder, tally):
    (found,) = TallyReader().merged([folder], in_memory=tally.in_memory()).values()
    return found.tolist()


def test_blocks_have_disk_space_before_they_are_written(tmp_path, tally_in):
    tally = tally_in(tmp_path / "own")
    tally.cells("family", LABELS, 3)
    data = (tmp_path / "own" / "cells.bin").stat()
    assert data.st_blocks * 512 >= data.st_size > 0, "a sparse file would end us with SIGBUS"


def test_without_room_for_data_numbers_are_kept_in_memory_and_it_is_told(tmp_path, tally_in):
    tally = tally_in(tmp_path / "own")
    with no_file_grows_beyond(0):
        tally.cells("family", LABELS, 2)[:] += [1.0, 2.0]
    assert "kept in memory only" in tally.fault
    assert str(tmp_path / "own") in tally.fault
    assert read(tmp_path / "own", tally) == [1.0, 2.0]


def test_an_index_line_that_does_not_fit_leaves_no_half_line(tmp_path, tally_in):
    folder = tmp_path / "own"
    tally = tally_in(folder)
    tally.cells("first", LABELS)[0] = 7
    before = (folder / "cells.jsonl").read_bytes()
    with no_file_grows_beyond(len(before) + 10):
        tally.cells("second", LABELS)[0] = 5
    assert (folder / "cells.jsonl").read_bytes() == before
    tally.cells("third", LABELS)[0] = 3
    found = TallyReader().merged([folder], in_memory=tally.in_memory())
    assert {name: cells.tolist() for (name, _), cells in found.items()} == {
        "first": [7],
        "second": [5],
        "third": [3],
    }


def test_a_folder_that_cannot_be_made_costs_only_its_files(tmp_path, tally_in):
    (tmp_path / "file").write_text("not a folder")
    tally = tally_in(tmp_path / "file" / "own")
    tally.cells("family", LABELS)[0] += 1
    assert tally.fault is not None
    assert read(tmp_path / "file" / "own", tally) == [1.0]


def test_what_is_mapped_is_still_shown_when_files_cannot_be_opened(tmp_path, tally_in):
    tally = tally_in(tmp_path)
    tally.cells("family", LABELS)[0] = 4
    reader = TallyReader()
    assert len(reader.merged([tmp_path])) == 1
    (tmp_path / "cells.jsonl").rename(tmp_path / "away")
    (tmp_path / "cells.jsonl").symlink_to("cells.jsonl")  # opening fails, as without a descriptor
    ((_, cells),) = reader.merged([tmp_path]).items()
    assert cells.tolist() == [4]


def test_the_counts_of_a_folder_that_was_removed_and_made_again_are_the_new_ones(
    tmp_path, tally_in
):
    """As of a version that is loaded again after its counts were removed."""
    reader = TallyReader()
    for count in (5.0, 1.0):
        tally_in(tmp_path / "own").cells("family", LABELS)[0] = count
        ((shown,),) = reader.merged([tmp_path / "own"]).values()
        assert shown == count
        shutil.rmtree(tmp_path / "own")


def test_a_scrape_reads_the_versions_while_others_are_loaded(tmp_path, tally_in):
    versions = VersionTallies(RunFolder(tmp_path))

    class Interrupted(tuple):
        """A use of a version; whoever looks at it, is stopped there, while another is loaded."""

        __slots__ = ()

        def __iter__(self):
            versions.use(make_bundle(name=f"late-{len(versions._used)}"))
            return super().__iter__()

    for number in range(2):
        folder = tmp_path / str(number)
        versions._used[folder] = Interrupted((tally_in(folder), 1))
    assert versions.fault is None
    assert versions.in_memory() == []
    for number in range(2):
        del versions._used[tmp_path / str(number)]
    versions.close()


def test_a_scrape_shows_numbers_that_are_in_memory_only(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    folder = RunFolder(tmp_path / "file" / "run")
    made = Metrics(Tally(folder.own), folder, max_class_series=10, max_batch_rows=8, version="1")
    made.requests("/predict", 200, [Arrived(0.0, "a"), Arrived(0.0, "b")])
    body = b"".join(made.exposition("")[0]).decode()
    assert 'priordial_requests_total{route="/predict",status="200"} 2' in body
    assert "kept in memory only" in made.fault
    made.stop()


def test_gauges_that_cannot_be_published_are_told_and_tried_again(tmp_path):
    folder = RunFolder(tmp_path)
    made = Metrics(Tally(folder.own), folder, max_class_series=10, max_batch_rows=8, version="1")
    made.stop()  # one round of publishing each
    assert made.fault is None
    with no_file_grows_beyond(0):
        made._publish()
    assert "do not see this worker's gauges" in made.fault
    made._publish()
    assert made.fault is None


@pytest.mark.parametrize("length", [1, 4096, 10_000])
def test_blocks_of_any_length_are_zeros_and_do_not_overlap(tmp_path, tally_in, length):
    tally = tally_in(tmp_path)
    first, second = (tally.cells(name, LABELS, length) for name in ("first", "second"))
    assert not first.any()
    first += 1
    second += 2
    assert np.unique(first).tolist() == [1]
    assert np.unique(second).tolist() == [2]


@pytest.mark.parametrize("scraped_before", [False, True])
def test_numbers_whose_files_are_deleted_are_still_shown_and_it_is_told(
    tmp_path, tally_in, scraped_before
):
    """As a cleaner of /tmp does with files that are a few days old."""
    folder = RunFolder(tmp_path / "run")
    tally = tally_in(folder.own)
    made = Metrics(tally, folder, max_class_series=10, max_batch_rows=8, version="1")
    made.requests("/predict", 200, [Arrived(0.0, "a")])
    if scraped_before:
        made.exposition("")
    assert made.fault is None
    shutil.rmtree(tmp_path / "run")
    made.requests("/predict", 200, [Arrived(0.0, "b")])
    for _ in range(2):
        body = b"".join(made.exposition("")[0]).decode()
        assert 'priordial_requests_total{route="/predict",status="200"} 2' in body
    assert "have been deleted" in made.fault
    made.stop()
