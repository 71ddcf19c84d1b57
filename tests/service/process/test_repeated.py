"""A call that a thread repeats: when it is made, and how it ends."""

import logging
import threading

from service.process.repeated import Repeated


def test_the_call_is_made_again_after_one_that_raised(caplog):
    made = threading.Semaphore(0)
    calls = []

    def call():
        calls.append(len(calls))
        made.release()
        if len(calls) == 1:
            raise ValueError("no reading")

    repeated = Repeated(call, name="test", every_seconds=1e-3, failure="nothing was read")
    with caplog.at_level(logging.ERROR):
        repeated.start()
        assert all(made.acquire(timeout=20) for _ in range(3))
        repeated.stop()

    (record,) = caplog.records
    assert record.getMessage().startswith("nothing was read; next attempt in 0.001 s")
    assert "no reading" in caplog.text


def test_a_thread_that_begins_at_once_makes_its_first_call_before_any_pause():
    made = threading.Event()
    repeated = Repeated(
        made.set, name="test", every_seconds=3600, failure="it failed", at_once=True
    )
    repeated.start()
    assert made.wait(20)
    repeated.stop()


def test_stop_waits_for_the_call_in_progress():
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def call():
        begun.set()
        may_end.wait(20)
        ended.append(True)

    repeated = Repeated(call, name="test", every_seconds=3600, failure="it failed", at_once=True)
    repeated.start()
    assert begun.wait(20)
    threading.Timer(0.05, may_end.set).start()
    repeated.stop()
    assert ended


def test_one_that_was_never_started_can_be_stopped():
    Repeated(print, name="test", every_seconds=1, failure="it failed").stop()
