"""The sample of recent logits: bounded, recent, proportional to the traffic, and cheap."""

import threading

import numpy as np
import pytest

from service.priors.recent import LogitReservoir


class Clock:
    """Stands in for the time module of the reservoir."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("service.priors.recent.time", clock)
    return clock


def rows(n, value, width=3):
    return np.full((n, width), value, np.float32)


def test_rows_and_bytes_are_bounded():
    reservoir = LogitReservoir(1000, max_rows=500, max_bytes=400_000)
    for _ in range(30):
        reservoir.add(rows(64, 1.0, 1000))
    sample = reservoir.sample()
    assert len(sample.logits) <= reservoir.capacity == 100
    assert sample.logits.nbytes <= 400_000
    assert LogitReservoir(10**7, max_rows=500, max_bytes=400_000).capacity == 1


def test_switched_off_it_holds_nothing():
    reservoir = LogitReservoir(3, max_rows=0)
    reservoir.add(rows(5, 1.0))
    assert len(reservoir.sample().logits) == 0
    assert reservoir.sample().since is None


def test_until_it_is_full_every_row_is_kept_once():
    reservoir = LogitReservoir(1, max_rows=100)
    for i in range(10):
        reservoir.add(np.arange(10 * i, 10 * i + 10, dtype=np.float32)[:, None])
    assert sorted(reservoir.sample().logits[:, 0]) == list(range(100))


def test_a_batch_that_does_not_fit_is_sampled_without_repeats():
    reservoir = LogitReservoir(1, max_rows=100, seed=3)
    reservoir.add(np.arange(70, dtype=np.float32)[:, None])
    reservoir.add(np.arange(100, 400, dtype=np.float32)[:, None])
    kept = reservoir.sample().logits[:, 0]
    assert len(set(kept)) == 100
    assert sorted(kept)[:70] == list(range(70))


def test_what_was_added_is_copied():
    reservoir = LogitReservoir(3)
    given = rows(4, 1.0)
    reservoir.add(given)
    given[:] = 2.0
    assert (reservoir.sample().logits == 1.0).all()


def test_a_batch_larger_than_the_reservoir_is_thinned():
    reservoir = LogitReservoir(1, max_rows=10)
    reservoir.add(np.arange(1000, dtype=np.float32)[:, None])
    held = reservoir.sample().logits[:, 0]
    assert len(set(held)) == 10
    assert held.max() > 100, "not the first ten"


def test_full_it_renews_itself_within_its_window(clock):
    reservoir = LogitReservoir(3, max_rows=100, window_seconds=100.0, seed=0)
    reservoir.add(rows(100, 1.0))
    for _ in range(1300):
        clock.now += 0.1
        reservoir.add(rows(5, 2.0))
    sample = reservoir.sample()
    assert (sample.logits == 2.0).mean() >= 0.97
    recent = reservoir.sample(max_age=110)
    assert len(recent.logits) >= 60
    assert (recent.until - recent.since).total_seconds() <= 110


def test_a_burst_does_not_push_everything_else_out(clock):
    reservoir = LogitReservoir(3, max_rows=100, window_seconds=100.0, seed=0)
    for _ in range(100):
        clock.now += 1.0
        reservoir.add(rows(1, 1.0))
    for _ in range(1000):
        clock.now += 0.001
        reservoir.add(rows(1, 2.0))
    held = reservoir.sample().logits[:, 0]
    before, burst = 100 * (1 - np.exp(-1)), 1000  # rows, those before the burst by their age
    assert (held == 1.0).mean() == pytest.approx(before / (before + burst), abs=0.06)
    assert (held == 1.0).any()


def test_rows_count_as_often_as_they_were_seen(clock):
    reservoir = LogitReservoir(1, max_rows=1000, window_seconds=100.0, seed=0)
    for value, rate in ((1.0, 10), (2.0, 90)):  # half of the time each, but nine times as busy
        for _ in range(1000):
            clock.now += 0.1
            reservoir.add(rows(rate, value, 1))
    share = (reservoir.sample().logits == 2.0).mean()
    quiet, busy = 100 * np.exp(-1), 900  # rows per second, by the age of their half
    assert share == pytest.approx(busy / (busy + quiet), abs=0.03)


@pytest.mark.parametrize("rate", [1_000, 10_000])
def test_ten_seconds_into_fast_traffic_every_kept_row_can_be_used(clock, rate):
    reservoir = LogitReservoir(1, seed=0)
    for second in range(10):
        for _ in range(100):
            clock.now += 0.01
            if reservoir.wants_rows():
                reservoir.add(rows(rate // 100, second, 1))
            else:
                reservoir.pass_over(rate // 100)
    held = reservoir.sample().logits[:, 0]
    assert len(held) == 4096
    counts = np.bincount(held.astype(int), minlength=10)
    assert counts.min() > 250  # 410 of each second


def test_under_steady_traffic_few_logits_are_fetched(clock):
    reservoir = LogitReservoir(1, max_rows=1000, window_seconds=100.0, seed=0)
    fetched = 0
    for step in range(5000):
        clock.now += 0.1
        if reservoir.wants_rows():
            fetched += step >= 4000
            reservoir.add(rows(100, 1.0, 1))
        else:
            reservoir.pass_over(100)
    assert fetched <= 1000  # of 1,000 batches: 10 rows a second, each batch gives what is due
    ages = clock.now - reservoir._seen
    assert ages.mean() == pytest.approx(100, rel=0.15)


def test_a_window_of_rows_or_of_time_holds_the_newest(clock):
    reservoir = LogitReservoir(1, max_rows=100)
    for value in range(10):
        clock.now += 60
        reservoir.add(rows(10, value, 1))
    assert set(reservoir.sample(newest=20).logits[:, 0]) == {8.0, 9.0}
    assert set(reservoir.sample(max_age=130).logits[:, 0]) == {7.0, 8.0, 9.0}
    clock.now += 1000
    assert reservoir.sample(max_age=130).since is None


def test_adding_never_waits_for_a_reader():
    reservoir = LogitReservoir(3, max_rows=10)
    with reservoir._lock:
        added = threading.Thread(target=reservoir.add, args=(rows(1, 1.0),))
        added.start()
        added.join(10)
        assert not added.is_alive()
    reservoir.add(rows(1, 1.0))
    assert len(reservoir.sample().logits) == 1
