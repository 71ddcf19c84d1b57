"""Calls are run by the threads that there are where no further thread can be started."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.process.executor import Executor


@pytest.fixture
def no_thread_starts(monkeypatch):
    """Called: no thread can be started from then on."""

    def start(_):
        raise RuntimeError("can't start new thread")

    return lambda: monkeypatch.setattr(threading.Thread, "start", start)


def test_calls_wait_for_the_one_thread_where_no_other_can_be_started(no_thread_starts):
    with Executor(4, "few") as executor:
        no_thread_starts()
        begun, may_end = threading.Event(), threading.Event()

        def hold():
            begun.set()
            assert may_end.wait(30)

        holding = executor.submit(hold)
        assert begun.wait(30)
        others = [executor.submit(pow, 2, each) for each in range(5)]
        may_end.set()
        assert [each.result(30) for each in others] == [1, 2, 4, 8, 16]
        holding.result(30)


def test_the_standard_executor_loses_such_a_call(no_thread_starts):
    with ThreadPoolExecutor(4) as executor:
        no_thread_starts()
        with pytest.raises(RuntimeError):
            executor.submit(int)


def test_an_executor_without_any_thread_is_refused_at_once(no_thread_starts):
    no_thread_starts()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Executor(1, "none")
