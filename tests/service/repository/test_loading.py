"""What loading a model leaves behind: its measured cost, and no more memory than it needs."""

import asyncio
import functools
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from service.contract.bundle import load_bundle
from service.graph.providers import Device
from service.graph.session import open_graph
from service.observe.metrics import Metrics
from service.observe.model_metrics import ClassSeries
from service.observe.run_folder import RunFolder
from service.observe.tally import Tally
from service.priors.shift.stream import Stream
from service.repository import loading
from service.repository.report import read_report
from service.settings import Settings
from tests.support.small_models import FEATURES, linear_model, publish_model


def test_models_that_are_loaded_at_once_are_measured_one_after_the_other(tmp_path, monkeypatch):
    bundle = load_bundle(publish_model(tmp_path / "models"))
    both, met = threading.Barrier(2), []

    def warm(*_: object) -> dict[int, float]:
        try:
            both.wait(0.2)
        except threading.BrokenBarrierError:
            return {1: 1e-3}
        met.append(True)
        return {1: 1e-3}

    monkeypatch.setattr(loading.warm_up, "warm_up", warm)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: loading._warm(None, bundle, [1]), range(2)))
    assert [warm for warm, _ in found] == [{1: 1e-3}] * 2
    assert all(example.shape == (1, FEATURES) for _, example in found)
    assert not met


def test_memory_of_large_batches_goes_back_to_the_system_when_asked(tmp_path):
    """Runs in its own process: memory freed by other tests would be reused and hide the growth."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        found = process.submit(_memory_of_a_large_batch, tmp_path).result()
    before, after, again, half_an_array = found
    assert after < before - half_an_array
    assert again > after + half_an_array


def _memory_of_a_large_batch(tmp_path):
    classes, rows = 50_000, 64
    folder = publish_model(
        tmp_path / "models",
        model=linear_model(classes=classes),
        classes=classes,
        class_counts=[1.0] * classes,
    )
    graph = open_graph(folder, load_bundle(folder), provider="cpu", intra_op_threads=1)
    inputs = np.ones((rows, FEATURES), np.float32)
    settings = {"prior_table": np.zeros((1, classes), np.float32), "top_k": 1}

    def score(count: int) -> None:
        tau, index = np.ones(count, np.float32), np.zeros(count, np.int64)
        graph.run(inputs[:count], tau=tau, prior_index=index, **settings)

    score(rows)
    with_large_batch = _resident()
    with graph.returning_memory():
        score(1)
    half_an_array = rows * classes * 4 // 2
    after = _resident()
    score(rows)  # and grows again when it is needed
    return with_large_batch, after, _resident(), half_an_array


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def test_a_queue_is_bounded_in_time_but_a_burst_of_connections_always_has_room():
    most = functools.partial(loading._most_waiting, floor=loading.BURST_ROWS)
    assert most(1e-3, 300) == 300
    assert most(1e-3, 600) == 2 * most(1e-3, 300)
    assert most(1.0, 300) == loading.BURST_ROWS
    assert most(1e-3, 0) is None
    default = Settings()
    assert default.max_queue_ms > 0
    assert most(1e-3, default.max_queue_ms) >= 256


def test_a_session_keeps_no_second_copy_of_the_weights(tmp_path):
    folder = publish_model(tmp_path)
    graph = open_graph(folder, load_bundle(folder), provider="cpu", intra_op_threads=1)
    kept = [v for v in vars(graph._session).values() if isinstance(v, bytes | bytearray)]
    assert sum(map(len, kept)) == 0


def test_a_report_that_could_not_be_answered_is_left_out_with_a_line_in_the_log(tmp_path, caplog):
    path = tmp_path / "report.json"
    assert read_report(tmp_path) == {}
    path.write_text('{"a": [[1]]}', encoding="utf-8")
    assert read_report(tmp_path) == {"a": [[1]]}
    assert caplog.text == ""
    for text in ('{"a":' + "[" * 900 + "]" * 900 + "}", "[1]", "{", '{"a": NaN}'):
        caplog.clear()
        path.write_text(text, encoding="utf-8")
        assert read_report(tmp_path) == {}
        assert "report.json is not shown" in caplog.text


@pytest.mark.parametrize("target", ["/proc/self/mem", "x" * 300])
def test_a_report_that_cannot_be_read_keeps_no_model_from_serving(tmp_path, caplog, target):
    (tmp_path / "report.json").symlink_to(target)  # nobody can read its beginning, or name it
    assert read_report(tmp_path) == {}
    assert "report.json is not shown: it cannot be read: " in caplog.text


def test_what_a_model_of_many_classes_needs_is_worked_out_before_the_loop_takes_it(
    tmp_path, monkeypatch
):
    folder = publish_model(tmp_path / "models")
    run_folder = RunFolder(tmp_path / "run")
    metrics = Metrics(
        Tally(run_folder.own), run_folder, max_class_series=3, max_batch_rows=8, version="1"
    )
    loader = loading.Loader(
        provider="cpu", device=Device(), intra_op_threads=1, max_batch_rows=8, max_queued_rows=64,
        max_queue_ms=0, max_queued_bytes=2**20, inline_seconds=0.0, recent_rows=16,
        recent_bytes=2**20, calibrated_source=True, metrics=metrics,
    )  # fmt: skip
    make = loader.prepare(folder)

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("worked out on the event loop: for a million classes, half a second")

    monkeypatch.setattr(ClassSeries, "of", too_late)
    monkeypatch.setattr(Stream, "__init__", too_late)

    async def take() -> str:
        return make().bundle.name

    assert asyncio.run(take()) == "linear"
    metrics.stop()
