"""The table of priors: who writes its rows, how far it grows, and what it refuses."""

import threading
from queue import SimpleQueue

import numpy as np
import pytest

from service.contract.members.sparse import Sparse, SparseOffset
from service.graph.prior_table import PriorTable, TableFull


def test_a_row_in_use_is_never_overwritten_and_an_unused_one_is_reused():
    table = PriorTable(3, capacity=3)
    a, b = (table.acquire(key, np.full(3, value)) for key, value in (("a", 1.0), ("b", 2.0)))
    before = table.rows
    c = table.acquire("c", np.full(3, 3.0))  # no slot is free: the table grows
    assert len({a, b, c, PriorTable.NO_PRIOR}) == 4
    assert table.rows is not before
    table.release(a)
    while table.acquire(object(), np.zeros(3)) != a:
        pass  # every free slot goes first, then the released one
    assert (table.rows[b] == 2).all()
    assert (table.rows[c] == 3).all()


def test_the_same_prior_takes_one_slot():
    table = PriorTable(3)
    first = table.acquire("a", np.ones(3))
    generation = table.generation
    assert table.acquire("a", np.ones(3)) == first
    assert table.generation == generation


class _Noted:
    """An offset [C] that notes the thread which makes it."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.made_in: list[int] = []

    def __array__(self, dtype=None, copy=None):
        self.made_in.append(threading.get_ident())
        return np.full(self.classes, 7.0, np.float32)


def test_acquiring_makes_no_row_and_the_reader_writes_each_row_once():
    table, offset = PriorTable(3), _Noted(3)
    slot = table.acquire("a", offset)
    table.acquire("a", offset)
    assert offset.made_in == []
    assert table.generation == 0
    found: list[int] = []

    def read() -> None:
        found.append(threading.get_ident())
        assert (table.rows[slot] == 7).all()

    reader = threading.Thread(target=read)
    reader.start()
    reader.join()
    assert (table.rows[slot] == 7).all()
    assert offset.made_in == found
    assert table.generation == 1


def test_growing_keeps_every_row_and_leaves_the_array_of_a_running_call_alone():
    table = PriorTable(2, capacity=2)
    slots = [table.acquire(at, np.full(2, float(at))) for at in range(1)]
    before = table.rows
    copy = before.copy()
    slots += [table.acquire(at, np.full(2, float(at))) for at in range(1, 40)]
    after = table.rows
    assert (after[slots] == np.arange(40)[:, None]).all()
    assert (after[PriorTable.NO_PRIOR] == 0).all()
    assert (before == copy).all()


def test_a_slot_that_changes_hands_before_it_is_written_gets_the_row_of_its_last_prior():
    table = PriorTable(2, capacity=2)
    slot = table.acquire("a", np.ones(2))
    table.release(slot)
    assert table.acquire("b", np.full(2, 2.0)) == slot
    assert (table.rows[slot] == 2).all()
    assert table.generation == 1


def test_a_full_table_refuses_a_further_prior_until_one_is_released():
    table = PriorTable(4, capacity=2, max_bytes=5 * 4 * 4)
    held = [table.acquire(at, np.zeros(4)) for at in range(table.most_priors)]
    assert table.most_priors == 4
    with pytest.raises(TableFull, match="4 different priors"):
        table.acquire("more", np.zeros(4))
    assert table.acquire(0, np.zeros(4)) == held[0]
    table.release(held[3])
    assert table.acquire("more", np.zeros(4)) == held[3]
    assert len(table.rows) == 5


def test_a_refused_request_of_many_priors_holds_none_of_them():
    table = PriorTable(4, capacity=2, max_bytes=3 * 4 * 4)
    for _ in range(3):
        with pytest.raises(TableFull):
            table.acquire_all((at, np.zeros(4)) for at in range(3))
    assert len(table.acquire_all((at, np.zeros(4)) for at in range(5, 7))) == 2


def test_a_row_that_could_not_be_made_is_made_at_the_next_reading():
    class Fails(_Noted):
        def __array__(self, dtype=None, copy=None):
            if not self.made_in:
                self.made_in.append(0)
                raise MemoryError
            return super().__array__(dtype, copy)

    table = PriorTable(3)
    slot = table.acquire("a", Fails(3))
    with pytest.raises(MemoryError):
        _ = table.rows
    assert (table.rows[slot] == 7).all()


def test_only_what_takes_long_to_write_is_slow():
    one = SparseOffset(Sparse(200_000, 0.0, np.empty(0, np.int64), np.empty(0)), Sparse(
        200_000, 1.0, np.empty(0, np.int64), np.empty(0)
    ))  # fmt: skip
    vast, small = PriorTable(200_000), PriorTable(10, capacity=2)
    assert not vast.is_slow
    vast.acquire("a", one)
    small.acquire("a", np.zeros(10))
    small.acquire("b", np.zeros(10))
    assert vast.is_slow
    assert not small.is_slow
    _ = vast.rows
    assert not vast.is_slow


def test_rows_are_right_while_one_thread_acquires_and_another_reads():
    table, wrong = PriorTable(64, capacity=2), []
    asked: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
    answered: SimpleQueue[int] = SimpleQueue()

    def read() -> None:
        while (item := asked.get()) is not None:
            slot, value = item
            if not (table.rows[slot] == value).all():
                wrong.append(item)
            answered.put(slot)

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(1, 3000):
        asked.put((table.acquire(value, np.full(64, float(value))), value))
        while not answered.empty():
            table.release(answered.get())
    asked.put(None)
    reader.join()
    assert wrong == []
