"""No request is left without an answer, in whatever order requests, loop and thread take turns.

The real batcher runs on a loop and a thread that the test steps by hand. A search visits every
state that some order of the steps leads to. Wherever the loop and the thread have nothing left to
do, every request must have had its reply once, and nothing may be queued, running or held. From
each state, the steps of the loop and the thread alone must lead there.
"""

import asyncio
import contextlib
from collections import deque

import numpy as np
import pytest

from service.batching import batcher as batching
from service.batching.batcher import Batcher
from service.batching.queue import Entry
from service.batching.work import Deadline, DeadlinePassed, Overloaded, Work
from service.graph.prior_table import PriorTable
from service.graph.session import GraphOutputs

MAX_STATES = 60_000


class Loop:
    """An event loop whose callbacks run one at a time, when the test says so."""

    def __init__(self):
        self.ready = deque()
        self.woken = deque()
        """Callbacks of the thread; each reaches `ready` in a step of its own."""
        self.timers = []

    def call_soon(self, callback, *arguments):
        self.ready.append((callback, arguments))

    def call_soon_threadsafe(self, callback, *arguments):
        self.woken.append((callback, arguments))

    def create_future(self):
        return Future()

    def call_later(self, _seconds, callback, *arguments):
        timer = Timer(callback, arguments)
        self.timers.append(timer)
        return timer


class Future:
    """A future that runs nothing by itself. Setting it twice is an error, as it is in asyncio."""

    def __init__(self):
        self.outcome = None

    def done(self):
        return self.outcome is not None

    def set_result(self, result):
        assert not self.done()
        self.outcome = result or "result"

    set_exception = set_result

    def cancel(self):
        if not self.done():
            self.outcome = "cancelled"

    def __await__(self):
        if not self.done():
            yield


class Timer:
    """A call that a deadline makes."""

    def __init__(self, callback, arguments):
        self.callback, self.arguments, self.is_over = callback, arguments, False

    def cancel(self):
        self.is_over = True

    def fire(self):
        self.is_over = True
        self.callback(*self.arguments)


class Thread:
    """A graph thread that takes a batch in one step and reports it in another."""

    def __init__(self, run, report):
        self._run, self._report = run, report
        self.inbox, self.running, self.is_over = self, None, False
        self.batches = deque()

    def put(self, batch):
        self.batches.append(batch)

    def take(self):
        batch = self.batches.popleft()
        if batch is None:
            self.is_over = True
            return
        try:
            self.running = self._run(batch.begin())
        except Exception as error:  # noqa: BLE001 - the thread reports whatever it is
            self.running, self.is_over = error, True

    def report(self):
        result, self.running = self.running, None
        self._report(self, result, 0.001)


class Client:
    """Who asked, and may leave."""

    def __init__(self):
        self.connection, self.disconnected = self, False


class Silent:
    """A record that nobody reads."""

    def batch(self, facts):
        pass

    def refused(self, error):
        pass

    def wants_logits(self):
        return False


def graph(inputs, *, tau, **_):
    if (inputs == DEADLY).any():
        raise MemoryError("the rows at fault")
    ones = np.ones(len(inputs), np.float32)
    return GraphOutputs(inputs[:, :1].astype(np.int64), tau[:, None], inputs[:, 0] * 0, ones)


DEADLY = 666.0
STARTED = 100.0


class World:
    """A batcher and all that acts on it, after some steps."""

    def __init__(self, scenario):
        self.loop, self.threads, self.now = Loop(), [], STARTED
        WORLD[:] = [self]
        self.scenario, self.replies, self.entries, self.refused = scenario, {}, [], 0
        self.table = PriorTable(4)
        self.batcher = Batcher(
            graph,
            self.table,
            record=Silent(),
            cost_seconds=self._cost,
            max_batch_rows=2,
            max_queued_rows=8,
            max_queued_bytes=10_000,
            max_waiting_rows=scenario.get("max_waiting_rows"),
            inline_seconds=0.5,
            clock=lambda: self.now,
        )
        self.batcher._vain_waits = scenario.get("vain_waits", 0)
        self.draining, self.is_closed, self.costs = None, False, 0
        if scenario.get("thread_dies"):
            whole = self.batcher._batch_run.run_wanted

            def dying(pieces):
                if any(piece.entry.ask == 1 for piece in pieces):
                    raise MemoryError("the thread")
                return whole(pieces)

            self.batcher._batch_run.run_wanted = dying

    def thread(self, _name, run, report):
        self.threads.append(Thread(run, report))
        return self.threads[-1]

    def _cost(self, rows):
        self.costs += 1
        if self.costs == self.scenario.get("cost_fails_at"):
            raise ArithmeticError("the estimate")
        return float(rows > self.scenario["inline_rows"])

    # -- steps

    def steps(self):
        """The names of the steps that can be taken now, beside the inner ones."""
        found = []
        if len(self.entries) < len(self.scenario["requests"]):
            found.append(("arrive",))
        ends = self.scenario.get("ends")
        if ends == "drain" and self.draining is None:
            found.append(("drain",))
        if not self.is_closed and (ends == "close" or self._is_drained()):
            found.append(("close",))
        if self.scenario.get("late") and self.now == STARTED:
            found.append(("late",))
        return found + self._rude_steps()

    def inner_steps(self):
        """The names of the steps that the loop and the thread can take now, by themselves."""
        found = [("loop",)] if self.loop.ready else []
        found += [("wake",)] if self.loop.woken else []
        for at, thread in enumerate(self.threads):
            if thread.running is not None:
                found.append(("report", at))
            elif thread.batches and not thread.is_over:
                found.append(("take", at))
        if self._has_to_drain():
            found.append(("go_on_draining",))
        return found

    def _rude_steps(self):
        found = []
        for at, entry in enumerate(self.entries):
            if entry.work.deadline.is_hard and any(
                timer.arguments == (entry,) and not timer.is_over for timer in self.loop.timers
            ):
                found.append(("expire", at))
            if at in self.scenario.get("leaves", ()) and not entry.caller.disconnected:
                found.append(("leave", at))
        return found

    def _has_to_drain(self):
        """Whether `drain` was woken and has not run since."""
        if self.draining is None or self._is_drained():
            return False
        return not self.batcher._drained

    def _is_drained(self):
        return self.draining is not None and self.draining.cr_frame is None

    def take(self, step):
        name, *at = step
        if name in ("take", "report"):
            getattr(self.threads[at[0]], name)()
        else:
            getattr(self, f"_{name}")(*at)

    def _loop(self):
        callback, arguments = self.loop.ready.popleft()
        callback(*arguments)

    def _wake(self):
        self.loop.ready.append(self.loop.woken.popleft())

    def _expire(self, at):
        (timer,) = [t for t in self.loop.timers if t.arguments == (self.entries[at],)]
        timer.fire()

    def _leave(self, at):
        caller = self.entries[at].caller
        if isinstance(caller, Client):
            caller.disconnected = True
        else:
            self.entries[at].ask.cancel()

    def _drain(self):
        self.draining = self.batcher.drain()
        self._go_on_draining()

    def _close(self):
        self.is_closed = True
        self.batcher.close()

    def _late(self):
        self.now += 2

    def _arrive(self):
        number = len(self.entries)
        rows, options = self.scenario["requests"][number]
        inputs = np.full((rows, options.get("width", 2)), options.get("value", 1.0), np.float32)
        limited = options.get("hard") or options.get("soft")
        deadline = Deadline(self.now + 1, bool(options.get("hard"))) if limited else Deadline()
        slot = self.table.acquire(number, np.zeros(4))
        work = Work(inputs, 1.0, slot, (slot,), 1, deadline=deadline)
        try:
            if options.get("submit"):
                self._submit(work)
            else:
                entry = Entry(work, caller=Client(), reply=self._reply, ask=number)
                self.entries.append(entry)
                self.batcher.put(entry)
        except (Overloaded, DeadlinePassed) as error:
            self.replies.setdefault(number, []).append(error)
            self.entries[number].error = error

    def _submit(self, work):
        """Let the batcher make the entry, and keep it."""
        put = self.batcher.put

        def keep(entry):
            self.entries.append(entry)
            put(entry)

        self.batcher.put = keep
        try:
            self.batcher.submit(work, caller=Client())
        finally:
            del self.batcher.put

    def _go_on_draining(self):
        """Let `drain` run to its next wait or to its end, as a task does."""
        with contextlib.suppress(StopIteration):
            self.draining.send(None)

    def _reply(self, entries):
        for entry in entries:
            self.replies.setdefault(entry.ask, []).append(entry.error)
        again = self.scenario.get("again")
        if again and len(self.entries) < len(self.scenario["requests"]) + again:
            self.scenario = {**self.scenario, "again": again - 1}
            self.scenario["requests"] = [*self.scenario["requests"], (1, {})]
            self._arrive()

    # -- what a state is, and what must hold when all is done

    def key(self):
        """Two states with the same key have the same future."""
        queue, number = self.batcher, self.entries.index

        def own(pieces):
            return tuple((number(p.entry), p.start) for p in pieces)

        results = [
            len(result) if isinstance(result, list) else str(result)
            for _, result, _ in queue._results
        ]
        return (
            tuple(
                (e.pieces_left, e.stop, repr(e.error), e.caller.disconnected, self._outcome(e))
                for e in self.entries
            ),
            tuple(sorted((at, len(found)) for at, found in self.replies.items())),
            own(queue._queue.pieces),
            tuple((own(batch.pieces), batch._begun) for batch in queue._in_flight),
            tuple((callback.__name__, len(more)) for callback, more in self.loop.ready),
            len(self.loop.woken),
            tuple(
                (
                    tuple(batch and own(batch.pieces) for batch in thread.batches),
                    repr(thread.running)
                    if isinstance(thread.running, Exception)
                    else thread.running and tuple(own(pieces) for pieces, _ in thread.running),
                    thread.is_over,
                    thread is queue._thread,
                )
                for thread in self.threads
            ),
            tuple(results),
            (queue._is_scheduled, queue._turns, queue._seen_rows, queue.failure),
            tuple(map(number, queue._finished)),
            (min(queue._vain_waits, 70), self.is_closed, self.now, self.costs),
            self.draining and (self._is_drained(), [each.done() for each in queue._drained] == []),
            tuple(timer.is_over for timer in self.loop.timers),
            self.scenario.get("again"),
        )

    @staticmethod
    def _outcome(entry):
        return isinstance(entry.ask, Future) and repr(type(entry.ask.outcome))

    def check(self):
        """Every request that arrived was answered once, and nothing of it is left."""
        for number, entry in enumerate(self.entries):
            if isinstance(entry.ask, Future) and number not in self.replies:
                assert entry.ask.done(), f"request {number}"
            else:
                assert len(self.replies.get(number, ())) == 1, f"request {number}"
            assert entry.done()
        assert self.draining is None or self._is_drained(), "it waits to be drained"
        queue = self.batcher
        assert not queue._in_flight
        assert (queue.queued_rows, queue._queue.bytes, queue._finished) == (0, 0, [])
        assert not any(self.table._holders)
        assert queue.failure is None


SCENARIOS = {
    "in the thread": {"inline_rows": 0, "requests": [(1, {})] * 4},
    "on the loop": {"inline_rows": 8, "requests": [(1, {})] * 4},
    "some here, some there": {"inline_rows": 1, "requests": [(1, {}), (2, {}), (1, {}), (1, {})]},
    "in several pieces": {"inline_rows": 0, "requests": [(1, {}), (5, {}), (1, {})]},
    "of two shapes": {"inline_rows": 0, "requests": [(1, {}), (1, {"width": 3}), (1, {})]},
    "with rows at fault": {
        "inline_rows": 1,
        "requests": [(1, {}), (2, {"value": DEADLY}), (1, {})],
    },
    "and clients leave": {
        "inline_rows": 0,
        "requests": [(1, {}), (3, {}), (1, {})],
        "leaves": {0, 1},
    },
    "and deadlines pass": {
        "inline_rows": 0,
        "requests": [(1, {"hard": 1}), (3, {"hard": 1}), (1, {})],
    },
    "and calls are cancelled": {
        "inline_rows": 1,
        "requests": [(1, {"submit": 1}), (3, {"submit": 1}), (1, {"submit": 1})],
        "leaves": {0, 1},
    },
    "and soft deadlines pass": {
        "inline_rows": 1,
        "requests": [(1, {"soft": 1}), (3, {"soft": 1}), (1, {"hard": 1}), (1, {})],
        "late": True,
    },
    "and the model is unloaded": {
        "inline_rows": 1,
        "requests": [(1, {}), (3, {"submit": 1}), (1, {"hard": 1})],
        "ends": "close",
    },
    "and the model is swapped": {
        "inline_rows": 1,
        "requests": [(1, {}), (3, {"submit": 1}), (1, {})],
        "leaves": {1},
        "ends": "drain",
    },
    "on the loop, alone for long": {
        "inline_rows": 8,
        "requests": [(1, {})] * 4,
        "vain_waits": batching._VAIN_WAITS - 1,
    },
    "on the loop, alone for longer": {
        "inline_rows": 1,
        "requests": [(1, {}), (1, {}), (2, {}), (1, {})],
        "vain_waits": 2 * batching._VAIN_WAITS - 2,
    },
    "and the estimate fails at first": {
        "inline_rows": 1,
        "requests": [(1, {}), (2, {}), (1, {})],
        "cost_fails_at": 1,
    },
    "and the estimate fails later": {
        "inline_rows": 8,
        "requests": [(1, {})] * 4,
        "cost_fails_at": 3,
    },
    "and the queue is full": {"inline_rows": 0, "requests": [(1, {})] * 4, "max_waiting_rows": 1},
    "and the thread dies": {"inline_rows": 0, "requests": [(1, {})] * 4, "thread_dies": True},
    "and an answer brings a request": {
        "inline_rows": 1,
        "requests": [(1, {}), (2, {})],
        "again": 2,
    },
}


WORLD = []
"""The world whose batcher is being stepped."""


def _thread(*given):
    return WORLD[0].thread(*given)


def world_after(path, scenario):
    world = World(dict(scenario))
    for step in path:
        world.take(step)
    return world


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_request_is_answered_once_in_whatever_order_loop_and_thread_go_on(
    name, monkeypatch, caplog
):
    caplog.set_level("CRITICAL")
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: WORLD[0].loop)
    monkeypatch.setattr(batching, "GraphThread", _thread)
    following = visit(SCENARIOS[name])
    assert len(following) > 40
    assert_none_goes_on_for_ever(following)


def visit(scenario):
    """Check every state; return each with the one after its first inner step, or None at rest.

    A world goes on with the first step that can be taken. For the others, the path to them is
    walked anew in another world.
    """
    following, paths = {}, [()]
    while paths:
        path = paths.pop()
        world, inner, before = world_after(path, scenario), [], None
        while True:
            state = world.key()
            if inner:
                following[before] = state
            if state in following:
                break
            following[state] = None
            assert len(following) < MAX_STATES
            inner = world.inner_steps()
            if not inner:
                check_after(path, world)
            first, *others = [*inner, *world.steps(), None]
            if first is None:
                break
            paths.extend((*path, step) for step in others[:-1])
            path, before = (*path, first), state
            world.take(first)
    return following


def check_after(path, world):
    try:
        world.check()
    except AssertionError as error:
        raise AssertionError(f"after {path}: {error}") from error


def assert_none_goes_on_for_ever(following):
    ending = {None}
    for start in following:
        state, way = start, set()
        while state not in ending:
            assert state not in way, "it goes on for ever"
            way.add(state)
            state = following[state]
        ending |= way
