"""Many callers, one graph call; bounded; a fault reaches those it concerns and nobody else."""

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest

from service.batching import batcher as batching
from service.batching.batcher import MAX_TURNS, Batcher
from service.batching.queue import FLOOD_SECONDS, Entry
from service.batching.work import (
    Abandoned,
    BatcherFailed,
    Deadline,
    DeadlinePassed,
    Overloaded,
    RequestTooLarge,
    UnscorableRows,
    Work,
)
from service.graph.prior_table import PriorTable
from service.graph.session import GraphOutputs


class FakeGraph:
    """Echoes: class index = first feature, probability = tau. An input may make it fail."""

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fail_on = None
        self.nan_on = None

    def run(
        self,
        inputs,
        *,
        tau,
        prior_index,
        prior_table,
        top_k,
        generation=0,
        with_logits=False,
        full=False,
    ):
        self.entered.set()
        assert self.gate.wait(10)
        self.calls.append(len(inputs))
        first = inputs[:, 0]
        if self.fail_on is not None and (first == self.fail_on).any():
            raise RuntimeError("bad row")
        probability = np.repeat(tau[:, None], top_k, axis=1).astype(np.float32)
        if self.nan_on is not None:
            probability[first == self.nan_on] = np.nan
        index = np.repeat(first[:, None], top_k, axis=1).astype(np.int64)
        return GraphOutputs(
            index, probability, first.astype(np.int64), np.ones(len(inputs), np.float32)
        )


def rows(*values):
    return np.array([[v, 0] for v in values], np.float32)


def work(*values, tau=1.0, deadline=None, **more):
    if deadline is not None:
        more["deadline"] = Deadline(deadline)
    return Work(rows(*values), tau, 0, (), more.pop("top_k", 1), **more)


class Recorded:
    """What a batcher reported; `batch` may be made to fail."""

    def __init__(self, on_batch=None):
        self.facts, self.refusals = [], []
        self.batch = self.facts.append if on_batch is None else on_batch

    def refused(self, error):
        self.refusals.append(error)

    def wants_logits(self):
        return False


class Client:
    """A caller that may leave."""

    def __init__(self, *, disconnected=False):
        self.connection, self.disconnected = self, disconnected


class Clock:
    """A time that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make(graph, *, inline=False, **more):
    record = Recorded(more.pop("on_batch", None))
    batcher = Batcher(
        graph.run,
        more.pop("table", None) or PriorTable(4),
        cost_seconds=more.pop("cost_seconds", lambda _rows: 0.0 if inline else 1.0),
        max_batch_rows=more.pop("max_batch_rows", 8),
        max_queued_rows=more.pop("max_queued_rows", 100),
        max_queued_bytes=more.pop("max_queued_bytes", 10_000),
        max_waiting_rows=more.pop("max_waiting_rows", None),
        max_flood_rows=more.pop("max_flood_rows", None),
        inline_seconds=more.pop("inline_seconds", 0.5),
        try_graph=more.pop("try_graph", None),
        record=record,
        clock=more.pop("clock", time.monotonic),
    )
    batcher.facts, batcher.refusals = record.facts, record.refusals
    return batcher


def answer(scored):
    return scored.outputs.top_index[scored.start : scored.stop, 0].tolist()


async def entered(graph):
    await asyncio.to_thread(graph.entered.wait, 10)


@pytest.mark.parametrize("inline", [True, False])
def test_requests_that_arrive_together_share_one_graph_call(inline):
    async def go():
        graph = FakeGraph()
        batcher = make(graph, inline=inline)
        futures = [batcher.submit(work(i, tau=i / 10)) for i in range(5)]
        scored = await asyncio.gather(*futures)
        assert [answer(s) for s in scored] == [[0], [1], [2], [3], [4]]
        for i, one in enumerate(scored):
            assert one.outputs.top_probability[one.start, 0] == np.float32(i / 10)
        assert graph.calls == [5]
        assert [f.rows for f in batcher.facts] == [5]

    asyncio.run(go())


@pytest.mark.parametrize(("seconds", "is_answered"), [(0.6, False), (0.02, True)])
def test_where_no_thread_can_be_started_short_batches_run_on_the_loop_and_others_are_refused(
    monkeypatch, seconds, is_answered
):
    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    async def go():
        graph = FakeGraph()
        batcher = make(graph, cost_seconds=lambda _rows: seconds, inline_seconds=0.001)
        threads = batching.GraphThread
        monkeypatch.setattr(batching, "GraphThread", no_thread)
        together = [batcher.submit(work(i)) for i in range(2)]
        if is_answered:
            assert [answer(each) for each in await asyncio.gather(*together)] == [[0], [1]]
        else:
            for each in together:
                with pytest.raises(BatcherFailed, match="no thread can be started"):
                    await each
        assert batcher.busy_since is None
        assert batcher.failure is None
        monkeypatch.setattr(batching, "GraphThread", threads)
        assert answer(await batcher.submit(work(7))) == [7]

    asyncio.run(go())


async def submitted_in_turns(batcher, count):
    """One request in each of so many successive turns of the loop."""
    futures = []
    for turn in range(count):
        futures.append(batcher.submit(work(turn)))
        await asyncio.sleep(0)
    await asyncio.gather(*futures)


def test_a_client_that_sends_alone_stops_waiting_for_others_until_they_come():
    async def go():
        graph = FakeGraph()
        batcher = make(graph, inline=True)

        async def turns_of_one():
            future, turns = batcher.submit(work(0)), 0
            while not future.done():
                await asyncio.sleep(0)
                turns += 1
            return turns

        alone = [await turns_of_one() for _ in range(200)]
        assert alone[-1] < alone[0]
        assert alone.count(alone[0]) < 50
        await asyncio.gather(batcher.submit(work(0)), batcher.submit(work(1)))
        graph.calls.clear()
        await submitted_in_turns(batcher, MAX_TURNS - 1)
        assert graph.calls == [MAX_TURNS - 1]

    asyncio.run(go())


def test_a_cheap_batch_waits_while_the_loop_still_reads_but_not_for_ever():
    async def go():
        graph = FakeGraph()
        await submitted_in_turns(make(graph, inline=True), MAX_TURNS - 1)
        assert graph.calls == [MAX_TURNS - 1]
        graph.calls.clear()
        await submitted_in_turns(make(graph, inline=True, max_batch_rows=100), 50)
        assert sum(graph.calls) == 50
        assert max(graph.calls) <= MAX_TURNS

    asyncio.run(go())


def test_a_costly_batch_begins_in_the_turn_after_its_first_request():
    async def go():
        graph = FakeGraph()
        batcher = make(graph)
        first = batcher.submit(work(0))
        await asyncio.sleep(0)
        assert batcher.busy_since is not None
        await first

    asyncio.run(go())


def test_what_is_to_happen_after_a_batch_happens_when_all_of_it_is_delivered_and_harms_nobody(
    caplog,
):
    """The replies: one call for all entries with the same reply, when each of them is finished."""
    calls, all_replied = [], asyncio.Event()

    def failing(entries):
        calls.append(("failing", [answer(entry) for entry in entries]))
        raise RuntimeError("no answer can be made")

    def fine(entries):
        calls.append(("fine", [answer(entry) for entry in entries]))
        all_replied.set()

    async def go():
        batcher = make(FakeGraph(), inline=True)
        for i, reply in enumerate([failing, fine, failing, fine]):
            batcher.put(Entry(work(i), caller=Client(), reply=reply))
        await asyncio.wait_for(all_replied.wait(), 10)
        assert calls == [("failing", [[0], [2]]), ("fine", [[1], [3]])]
        assert "could not be answered" in caplog.text
        assert batcher.failure is None

    asyncio.run(go())


def test_it_waits_for_the_outer_batch_when_another_is_delivered_within():
    """A reply may queue again at once; that request is answered later, never within the reply."""
    order, all_replied = [], asyncio.Event()

    async def go():
        graph = FakeGraph()
        batcher = make(graph)

        def inner(_entries):
            order.append("inner")
            all_replied.set()

        def outer(_entries):
            order.append("outer begins")
            while not batcher._results:
                pass  # the thread runs the other batch
            batcher.put(Entry(work(1), caller=Client(), reply=inner))
            order.append("outer ends")

        batcher.put(Entry(work(0), caller=Client(), reply=outer))
        batcher.put(Entry(wide(2), caller=Client(), reply=inner))
        await asyncio.wait_for(all_replied.wait(), 10)
        assert order[:2] == ["outer begins", "outer ends"]

    asyncio.run(go())


def wide(value):
    """Work of another shape, which never shares a batch with `work`."""
    return work(value)._replace(inputs=np.full((1, 3), value, np.float32))


def test_outside_of_a_batch_it_happens_in_the_next_turn():
    """A request that expires has its reply though no batch is delivered."""

    async def go():
        graph = FakeGraph()
        graph.gate.clear()
        batcher = make(graph)
        running = batcher.submit(work(0))
        await entered(graph)
        soon = Deadline(time.monotonic() + 0.01, is_hard=True)
        with pytest.raises(DeadlinePassed):
            await batcher.submit(work(1)._replace(deadline=soon))
        assert not running.done()
        graph.gate.set()
        await running

    asyncio.run(go())


def test_what_queues_while_a_batch_runs_is_the_next_batch():
    async def go():
        graph = FakeGraph()
        batcher = make(graph)
        graph.gate.clear()
        first = batcher.submit(work(0))
        await entered(graph)
        later = [batcher.submit(work(i)) for i in range(1, 5)]
        assert batcher.queued_rows == 4
        graph.gate.set()
        await asyncio.gather(first, *later)
        assert graph.calls == [1, 4]

    asyncio.run(go())


def test_a_request_larger_than_a_batch_is_answered_whole_and_in_order():
    async def go():
        graph = FakeGraph()
        batcher = make(graph, max_batch_rows=4)
        one, big = batcher.submit(work(9)), batcher.submit(work(*range(11)))
        assert answer(await big) == list(range(11))
        assert answer(await one) == [9]
        assert max(graph.calls) <= 4

    asyncio.run(go())


def test_a_full_queue_refuses_at_once_and_holds_nothing_of_the_refused():
    async def go():
        graph = FakeGraph()
        batcher = make(graph, max_queued_rows=3)
        graph.gate.clear()
        running = batcher.submit(work(0))
        await entered(graph)
        queued = [batcher.submit(work(i)) for i in range(3)]
        with pytest.raises(Overloaded):
            batcher.submit(work(4))
        graph.gate.set()
        await asyncio.gather(running, *queued)
        assert answer(await batcher.submit(work(5))) == [5]

    asyncio.run(go())


def test_a_request_that_could_never_be_queued_is_too_large():
    async def go():
        batcher = make(FakeGraph(), max_queued_rows=3, max_queued_bytes=100)
        with pytest.raises(RequestTooLarge, match="4 instances"):
            batcher.submit(work(1, 2, 3, 4))

    asyncio.run(go())


@pytest.mark.parametrize("inline", [True, False])
def test_only_the_guilty_row_of_a_failing_batch_fails(inline):
    async def go():
        graph = FakeGraph()
        graph.fail_on = 3
        batcher = make(graph, inline=inline)
        futures = [
            batcher.submit(work(0, 1)),
            batcher.submit(work(2, 3, 4)),
            batcher.submit(work(5)),
        ]
        done = await asyncio.gather(*futures, return_exceptions=True)
        assert answer(done[0]) == [0, 1]
        assert answer(done[2]) == [5]
        assert isinstance(done[1], UnscorableRows)
        assert done[1].rows == [1]
        assert "bad row" in str(done[1])

    asyncio.run(go())


def test_a_row_that_becomes_nan_fails_its_own_request_and_is_named():
    async def go():
        graph = FakeGraph()
        graph.nan_on = 7
        batcher = make(graph, max_batch_rows=3)
        fine, bad = batcher.submit(work(1)), batcher.submit(work(2, 3, 4, 7))
        assert answer(await fine) == [1]
        with pytest.raises(UnscorableRows) as caught:
            await bad
        assert caught.value.rows == [3]

    asyncio.run(go())


def test_the_limit_of_bytes_counts_texts_and_not_their_references():
    async def go():
        graph = FakeGraph()
        batcher = make(graph, max_queued_bytes=10_000)
        graph.gate.clear()
        running = batcher.submit(work(0))
        await entered(graph)
        texts = Work(np.array(["x" * 4000], object)[:, None], 0.0, 0, (), 1)
        batcher.submit(texts)
        batcher.submit(texts)
        assert 8000 < batcher._queue.bytes < 10_000
        with pytest.raises(Overloaded):
            batcher.submit(texts)
        with pytest.raises(RequestTooLarge, match="bytes together"):
            batcher.submit(texts._replace(inputs=np.array(["x" * 11_000], object)[:, None]))
        batcher.close()
        assert batcher._queue.bytes == 0
        graph.gate.set()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(go())


def test_a_deadline_is_checked_at_entry_and_at_the_head_of_the_queue():
    async def go():
        graph, clock = FakeGraph(), Clock()
        batcher = make(graph, clock=clock)
        with pytest.raises(DeadlinePassed):
            batcher.submit(work(0, deadline=clock.now))
        graph.gate.clear()
        running = batcher.submit(work(0))
        await entered(graph)
        late = batcher.submit(work(1, deadline=clock.now + 1e-4))
        fine = batcher.submit(work(2, deadline=clock.now + 1))
        clock.now += 0.5
        graph.gate.set()
        await running
        with pytest.raises(DeadlinePassed, match="500 ms ago"):
            await late
        assert answer(await fine) == [2]
        assert graph.calls == [1, 1]
        assert [type(each) for each in batcher.refusals] == [DeadlinePassed] * 2

    asyncio.run(go())


def test_work_whose_caller_left_is_not_done():
    async def go():
        graph = FakeGraph()
        batcher = make(graph)
        graph.gate.clear()
        running = batcher.submit(work(0))
        await entered(graph)
        left = batcher.submit(work(1), caller=Client(disconnected=True))
        cancelled = batcher.submit(work(2))
        cancelled.cancel()
        graph.gate.set()
        await running
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await batcher.drain()
        assert not left.done() or isinstance(left.exception(), Abandoned)
        assert [type(each) for each in batcher.refusals] == [Abandoned] * 2
        assert graph.calls == [1]

    asyncio.run(go())


def test_a_prior_slot_is_held_until_the_rows_are_scored_even_when_the_caller_leaves():
    async def go():
        graph = FakeGraph()
        batcher = make(graph)
        table = batcher._delivery._table
        graph.gate.clear()
        slot = table.acquire("a", np.ones(4))
        future = batcher.submit(Work(rows(0), 1.0, slot, (slot,), 1))
        await entered(graph)
        future.cancel()
        await asyncio.sleep(0)
        assert table._holders[slot] == 1
        graph.gate.set()
        await batcher.drain()
        assert table._holders[slot] == 0

    asyncio.run(go())


def test_long_rows_of_new_priors_are_written_in_the_thread_though_the_batch_is_cheap():
    written_in = []

    class Offset:
        def __array__(self, dtype=None, copy=None):
            written_in.append(threading.get_ident())
            return np.ones(200_000, np.float32)

    async def go():
        table = PriorTable(200_000)
        batcher = make(FakeGraph(), inline=True, table=table)
        slot = table.acquire("a", Offset())
        await batcher.submit(Work(rows(0), 1.0, slot, (slot,), 1))
        assert len(written_in) == 1
        assert written_in[0] != threading.get_ident()

    asyncio.run(go())


def test_a_row_for_which_there_is_no_memory_is_not_called_unscorable():
    class NoMemory(FakeGraph):
        def run(self, inputs, **more):
            raise MemoryError

    async def go():
        batcher = make(NoMemory(), inline=True)
        with pytest.raises(MemoryError):
            await batcher.submit(work(0, 1))

    asyncio.run(go())


def test_different_input_shapes_are_not_joined():
    async def go():
        graph = FakeGraph()
        batcher = make(graph)
        done = await asyncio.gather(
            batcher.submit(work(1)), batcher.submit(wide(5)), batcher.submit(work(2))
        )
        assert [answer(s) for s in done] == [[1], [5], [2]]
        assert graph.calls == [1, 1, 1]

    asyncio.run(go())


@pytest.mark.parametrize("inline", [True, False])
def test_a_loop_that_breaks_fails_its_callers_turns_red_and_starts_again(inline, caplog):
    async def go():
        graph = FakeGraph()
        batcher = make(graph, inline=inline)
        cost, seen_red = batcher._cost, []

        def broken(_rows):
            batcher._cost = cost
            raise MemoryError("the loop")

        batcher._cost = broken
        both = [batcher.submit(work(0)), batcher.submit(work(*range(8)))]
        both[0].add_done_callback(lambda _: seen_red.append(batcher.failure))
        done = await asyncio.gather(*both, return_exceptions=True)
        assert [type(each) for each in done] == [BatcherFailed, BatcherFailed]
        assert seen_red == ["MemoryError: the loop"]
        assert answer(await batcher.submit(work(3))) == [3]
        assert batcher.failure is None

    asyncio.run(go())
    assert "it restarts" in caplog.text


@pytest.mark.parametrize("inline", [True, False])
def test_a_graph_that_fails_on_its_warm_up_too_is_lost_and_no_row_is_at_fault(inline, caplog):
    async def go():
        graph = FakeGraph()
        batcher = make(graph, inline=inline, try_graph=lambda: graph.run(**example))
        graph.fail_on = 3
        bad = await asyncio.gather(batcher.submit(work(3)), return_exceptions=True)
        assert [type(each) for each in bad] == [UnscorableRows]
        assert batcher.lost is None
        example["inputs"][0, 0] = 3
        lost = await asyncio.gather(
            batcher.submit(work(3)), batcher.submit(work(1)), return_exceptions=True
        )
        assert [type(each) for each in lost] == [BatcherFailed, BatcherFailed]
        assert "cannot score any request" in batcher.lost
        assert type((await asyncio.gather(batcher.submit(work(3)), return_exceptions=True))[0]) is (
            BatcherFailed
        )

    example = {
        "inputs": rows(0), "tau": np.zeros(1, np.float32), "prior_index": np.zeros(1, np.int64),
        "prior_table": None, "top_k": 1,
    }  # fmt: skip
    asyncio.run(go())
    assert "its graph fails on every input" in caplog.text


def test_only_rows_that_answer_traffic_are_told_to_be_answered():
    async def go():
        graph = FakeGraph()
        graph.nan_on = 7
        batcher = make(graph, max_batch_rows=16)
        graph.gate.clear()
        first = batcher.submit(work(0))
        await entered(graph)
        sent = [
            batcher.submit(each)
            for each in (work(1, 2), work(3, is_traffic=False), work(4, 7, 5), work(6))
        ]
        graph.gate.set()
        await asyncio.gather(first, *sent, return_exceptions=True)
        await asyncio.gather(batcher.submit(work(1)), batcher.submit(work(2)))
        reported = [None if f.answered is None else f.answered.tolist() for f in batcher.facts]
        assert reported == [None, [True, True, False, False, False, False, True], None]
        assert batcher._delivery.explorations == 0

    asyncio.run(go())


@pytest.mark.parametrize("inline", [True, False])
def test_a_batch_that_cannot_be_recorded_is_answered(inline, caplog):
    async def go():
        def on_batch(_facts):
            raise MemoryError("metrics")

        batcher = make(FakeGraph(), inline=inline, on_batch=on_batch)
        both = await asyncio.gather(batcher.submit(work(1)), batcher.submit(work(2)))
        assert [answer(each) for each in both] == [[1], [2]]
        assert batcher.failure is None

    asyncio.run(go())
    assert "is missing in the metrics" in caplog.text


@pytest.mark.parametrize("inline", [True, False])
def test_an_answer_that_cannot_be_cut_out_of_its_batch_fails_alone(inline, monkeypatch):
    cut = Entry.scored

    def scored(entry, *result):
        if entry.work.tau == 6.5:
            raise MemoryError("slicing")
        return cut(entry, *result)

    monkeypatch.setattr(Entry, "scored", scored)

    async def go():
        batcher = make(FakeGraph(), inline=inline)
        sent = [batcher.submit(work(i, tau=6.5 if i == 1 else 1.0)) for i in range(3)]
        done = await asyncio.gather(*sent, return_exceptions=True)
        assert isinstance(done[1], MemoryError)
        assert [answer(done[0]), answer(done[2])] == [[0], [2]]
        assert batcher.failure is None

    asyncio.run(go())


def test_rows_that_fail_only_together_are_answered_one_by_one():
    class Small(FakeGraph):
        """Out of memory for more than two rows."""

        def run(self, inputs, **more):
            if len(inputs) > 2:
                raise MemoryError("too many rows")
            return super().run(inputs, **more)

    async def go():
        graph = Small()
        batcher = make(graph)
        done = await asyncio.gather(batcher.submit(work(*range(7))), batcher.submit(work(8)))
        assert [answer(each) for each in done] == [list(range(7)), [8]]

    asyncio.run(go())


def test_a_thread_that_dies_is_replaced(caplog):
    async def go():
        graph = FakeGraph()
        batcher = make(graph)
        runs = batcher._batch_run
        runs.run_wanted = None  # calling None raises outside of the batch's own guard
        with pytest.raises(BatcherFailed):
            await batcher.submit(work(0))
        del runs.run_wanted
        assert answer(await batcher.submit(work(1))) == [1]

    asyncio.run(go())


def test_closing_fails_what_is_still_queued():
    async def go():
        graph = FakeGraph()
        batcher = make(graph)
        future = batcher.submit(work(0))
        batcher.close()
        with pytest.raises(BatcherFailed):
            await future

    asyncio.run(go())


def test_a_hanging_graph_call_is_visible_from_another_thread():
    async def go():
        graph = FakeGraph()
        batcher = make(graph)
        graph.gate.clear()
        future = batcher.submit(work(0))
        await entered(graph)
        assert batcher.busy_since is not None
        graph.gate.set()
        await future
        assert batcher.busy_since is None

    asyncio.run(go())


async def one_running_and_one_at_hand():
    """A held graph, its batcher of 4 rows a batch, and two requests: one runs, one is next."""
    graph = FakeGraph()
    batcher = make(graph, max_batch_rows=4)
    graph.gate.clear()
    first = batcher.submit(work(0))
    await entered(graph)
    second = batcher.submit(work(1))
    await asyncio.sleep(0)
    return graph, batcher, first, second


def test_the_next_batch_is_at_hand_while_one_runs_and_takes_company_until_it_begins():
    async def go():
        graph, batcher, first, early = await one_running_and_one_at_hand()
        assert len(batcher._in_flight) == 2  # it is in the thread's inbox
        assert batcher.queued_rows == 1  # and has not begun
        joined = [batcher.submit(work(i)) for i in range(2, 5)]
        over = [batcher.submit(work(i)) for i in range(5, 7)]
        await asyncio.sleep(0)
        assert batcher.queued_rows == 6
        graph.gate.set()
        done = await asyncio.gather(first, early, *joined, *over)
        assert [answer(each) for each in done] == [[i] for i in range(7)]
        assert graph.calls == [1, 4, 2]
        await batcher.drain()
        assert batcher.busy_since is None

    asyncio.run(go())


def test_a_batch_that_has_begun_takes_nothing_more():
    async def go():
        graph, batcher, first, second = await one_running_and_one_at_hand()
        batcher._in_flight[1].begin()  # as by the thread, of which the loop has not heard yet
        third = batcher.submit(work(2))
        await asyncio.sleep(0)
        assert [len(batch.pieces) for batch in batcher._in_flight] == [1, 1]
        graph.gate.set()
        assert [answer(each) for each in await asyncio.gather(first, second, third)] == [
            [0],
            [1],
            [2],
        ]
        assert graph.calls == [1, 1, 1]

    asyncio.run(go())


def test_another_shape_waits_for_a_batch_of_its_own():
    async def go():
        graph, batcher, first, second = await one_running_and_one_at_hand()
        other = batcher.submit(wide(2))
        await asyncio.sleep(0)
        assert [len(batch.pieces) for batch in batcher._in_flight] == [1, 1]
        graph.gate.set()
        await asyncio.gather(first, second, other)
        assert graph.calls == [1, 1, 1]

    asyncio.run(go())


def test_a_loop_that_breaks_with_a_batch_ahead_fails_the_callers_of_both():
    async def go():
        graph = FakeGraph()
        batcher = make(graph, max_batch_rows=2)
        graph.gate.clear()
        running = batcher.submit(work(0, 1))
        await entered(graph)
        ahead = batcher.submit(work(2, 3))
        await asyncio.sleep(0)
        batcher._crashed(MemoryError("the loop"))
        done = await asyncio.gather(running, ahead, return_exceptions=True)
        assert [type(each) for each in done] == [BatcherFailed, BatcherFailed]
        graph.gate.set()
        assert answer(await batcher.submit(work(4))) == [4]

    asyncio.run(go())


def test_the_next_batch_starts_while_the_loop_is_still_busy_with_arrivals():
    """In a flood a turn of the loop is long: a request that arrives starts the next batch."""

    async def go():
        graph = FakeGraph()
        batcher = make(graph, max_batch_rows=1)
        graph.gate.clear()
        first = batcher.submit(work(1))
        await entered(graph)
        second = batcher.submit(work(2))
        graph.gate.set()
        give_up = time.monotonic() + 10
        while not batcher._results and time.monotonic() < give_up:
            pass  # the loop does not turn here
        graph.entered.clear()
        third = batcher.submit(work(3))
        assert graph.entered.wait(10)
        assert answer(await first) == [1]
        assert [answer(await each) for each in (second, third)] == [[2], [3]]

    asyncio.run(go())


def test_what_would_wait_too_long_is_refused_though_the_queue_has_room_and_nothing_waits_in_vain():
    async def go():
        graph = FakeGraph()
        batcher = make(graph, max_waiting_rows=3)
        graph.gate.clear()
        running = batcher.submit(work(0))
        await entered(graph)
        large = batcher.submit(work(*range(5)))  # an empty queue takes it: it waits for nobody
        with pytest.raises(Overloaded):
            batcher.submit(work(9))
        graph.gate.set()
        assert answer(await running) == [0]
        assert answer(await large) == list(range(5))
        few = [batcher.submit(work(i)) for i in range(3)]
        assert [answer(await each) for each in few] == [[0], [1], [2]]

    asyncio.run(go())


def fill(batcher, rows):
    """Submit requests of one row until one is refused or `rows` are queued."""
    entries = []
    with contextlib.suppress(Overloaded):
        entries.extend(batcher.submit(work(row)) for row in range(rows))
    return entries


def test_a_burst_has_more_room_than_a_flood_which_ends_with_the_refusals():
    async def go():
        graph, clock = FakeGraph(), Clock()
        batcher = make(graph, max_waiting_rows=9, max_flood_rows=3, clock=clock)
        rounds = []
        for passed in (0.0, 0.0, 2 * FLOOD_SECONDS):
            clock.now += passed
            graph.gate.clear()
            graph.entered.clear()
            running = batcher.submit(work(0))
            await entered(graph)
            waiting = fill(batcher, 20)
            graph.gate.set()
            assert answer(await running) == [0]
            assert [answer(await each) for each in waiting] == [[n] for n in range(len(waiting))]
            rounds.append(len(waiting))
        return rounds

    assert asyncio.run(go()) == [9, 3, 9]


def test_one_large_request_that_is_refused_is_no_flood():
    async def go():
        graph = FakeGraph()
        batcher = make(graph, max_waiting_rows=9, max_flood_rows=3)
        graph.gate.clear()
        running = batcher.submit(work(0))
        await entered(graph)
        first = batcher.submit(work(1))
        with pytest.raises(Overloaded):
            batcher.submit(work(*range(9)))
        others = fill(batcher, 8)
        assert len(others) == 8
        graph.gate.set()
        await asyncio.gather(running, first, *others)

    asyncio.run(go())


@pytest.mark.parametrize("inline", [True, False])
def test_rows_that_are_not_finite_fail_their_own_requests_without_a_graph_call(inline):
    async def go():
        graph = FakeGraph()
        batcher = make(graph, inline=inline, max_batch_rows=4)
        sent = [work(0), work(1, float("nan"), 2), work(3), work(*range(5), float("inf"))]
        done = await asyncio.gather(*map(batcher.submit, sent), return_exceptions=True)
        assert [answer(done[0]), answer(done[2])] == [[0], [3]]
        assert (
            str(done[1]) == "instance 1 holds NaN or infinity in float32; expected finite numbers"
        )
        assert done[3].rows == [5]
        assert sum(graph.calls) <= 6
        assert graph.calls.count(1) <= 2

    asyncio.run(go())


def test_what_waits_in_the_threads_inbox_is_looked_at_once_more_before_it_runs():
    async def go():
        graph, clock = FakeGraph(), Clock()
        batcher = make(graph, max_batch_rows=1, clock=clock)
        graph.gate.clear()
        running = batcher.submit(work(0))
        await entered(graph)
        late = batcher.submit(work(1, deadline=clock.now + 0.05))
        await asyncio.sleep(0)
        assert len(batcher._in_flight) == 2
        clock.now += 0.1
        graph.gate.set()
        with pytest.raises(DeadlinePassed):
            await late
        assert answer(await running) == [0]
        assert graph.calls == [1]

    asyncio.run(go())
