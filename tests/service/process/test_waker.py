"""`service.process.waker`: a thread waits for a descriptor and can be woken meanwhile."""

import os
import threading

import pytest

from service.process.waker import Waker

LONG = 60.0
"""Seconds that no test waits: each ends early, or hangs until its time limit."""


@pytest.fixture
def waker():
    waker = Waker()
    yield waker
    waker.close()


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_setting_ends_the_wait_of_another_thread_for_a_descriptor(waker, pipe):
    waiting = threading.Thread(target=waker.wait_for, args=(pipe[0], LONG))
    waiting.start()
    waker.set()
    waiting.join()
    assert waker.is_set()


def test_a_descriptor_that_can_be_read_ends_the_wait(waker, pipe):
    os.write(pipe[1], b"x")
    waker.wait_for(pipe[0], LONG)
    assert not waker.is_set()


def test_setting_twice_wakes_once_and_clearing_forgets_it(waker, pipe):
    waker.set()
    waker.set()
    waker.wait_for(pipe[0], LONG)
    waker.clear()
    waker.clear()
    assert not waker.wait(0)
    waker.wait_for(pipe[0], 0)
    waker.set()
    assert waker.wait(LONG)


def test_after_it_is_closed_it_is_still_an_event(waker):
    waker.set()
    waker.close()
    waker.close()
    assert waker.wait(LONG)
    waker.clear()
    waker.set()
    assert waker.is_set()
