"""A model version that is no longer served leaves nothing behind, however many came before it."""

import asyncio
import contextlib
import gc
import re
import shutil
import threading
import weakref

import numpy as np
import pytest

from service.contract.bundle import load_bundle
from service.observe.metrics import Metrics
from service.observe.run_folder import RunFolder
from service.observe.tally import Tally
from service.observe.version_tallies import KEPT, VersionTallies
from service.priors.recent import LogitReservoir
from service.server.assembly.service import Service
from service.settings import Settings
from service.wire.parameters import NO_PARAMETERS
from tests.support.eventually import eventually_async
from tests.support.small_models import COUNTS, inputs, linear_model, publish_model

SWAPS = KEPT + 6


def publish_version(models, version):
    return publish_model(models, model=linear_model(seed=version))


def versions_told(metrics):
    body = b"".join(metrics.exposition("text/plain")[0]).decode()
    return {int(found) for found in re.findall(r'predictions_total\{[^}]*version="(\d+)"', body)}


def test_everything_of_a_retired_version_is_gone(tmp_path):
    """Threads, sessions, logits, priors, series: held by anything at all, one of them would still
    be alive.
    """
    models = tmp_path / "models"
    publish_version(models, 1)
    gone: list[tuple[str, weakref.ref]] = []

    def alive():
        gc.collect()
        return [name for name, ref in gone if ref() is not None and not name.endswith(f" {SWAPS}")]

    async def swap_on():
        run_folder = RunFolder(tmp_path / "run")
        service = Service(
            Settings(
                models=models, store=f"sqlite:///{tmp_path}/p.db", provider="cpu", inline_us=0
            ),
            run_folder,
        )
        await service.start()
        for version in range(2, SWAPS + 2):
            await score(service)
            model = service.repository.find()
            each = (
                model,
                model.graph,
                model.batcher,
                model.table,
                model.recent,
                model.metrics,
                model.bundle,
            )
            gone.extend((f"{type(o).__name__} of {version - 1}", weakref.ref(o)) for o in each)
            del model, each
            service.metrics.exposition("text/plain")
            service.drift.look()
            publish_version(models, version)
            await service.repository.load("linear")
            if version > 3:
                shutil.rmtree(models / "linear" / str(version - 3))
            await asyncio.gather(*service.repository._retiring)
        service.drift.look()
        with contextlib.suppress(AssertionError):  # a thread may still be at the end of its look
            await eventually_async(lambda: not alive())
        reported = versions_told(service.metrics)
        graph_threads = [t.name for t in threading.enumerate() if t.name.startswith("graph-linear")]
        folders = run_folder.tallies()
        await service.stop()
        return alive(), reported, graph_threads, folders

    left, reported, graph_threads, folders = asyncio.run(swap_on())
    assert left == []
    assert reported == set(range(SWAPS + 1 - 2 - KEPT + 1, SWAPS + 2))
    assert len(graph_threads) <= 2
    assert len(folders) == 1 + 2 + KEPT


async def score(service):
    model = service.repository.find()
    with model.held():
        given = {"tau": 1.0, "prior": {"target": [1, 2, 3, 4, 5]}}
        for rows, asked in ((3, NO_PARAMETERS._replace(**given)), (70, NO_PARAMETERS)):
            prior = await service.classifier.revision_for(model.bundle, asked.prior, None)
            await model.batcher.submit(service.classifier.admit(model, inputs(rows), asked, prior))


@pytest.fixture
def metrics(tmp_path):
    folder = RunFolder(tmp_path / "run")
    made = Metrics(Tally(folder.own), folder, max_class_series=1000, max_batch_rows=64, version="1")
    yield made
    made.stop()


@pytest.fixture
def bundles(tmp_path):
    """Versions 1 … of one model."""
    return [
        load_bundle(publish_model(tmp_path / "models", class_counts=COUNTS))
        for _ in range(KEPT + 3)
    ]


def test_the_last_answers_of_a_version_are_still_told_after_it_has_gone(metrics, bundles):
    metrics.model(bundles[0])._changed[0] += 3
    metrics.forget(bundles[0])
    body = b"".join(metrics.exposition("text/plain")[0]).decode()
    assert 'priordial_decisions_changed_total{model="linear",version="1"} 3' in body


def test_a_version_that_is_loaded_again_goes_on_with_its_counts(metrics, bundles):
    first = bundles[0]
    metrics.model(first)._changed[0] += 3
    metrics.forget(first)
    metrics.model(first)._changed[0] += 1
    body = b"".join(metrics.exposition("text/plain")[0]).decode()
    assert 'priordial_decisions_changed_total{model="linear",version="1"} 4' in body
    for other in bundles[1:]:
        metrics.model(other)
        metrics.forget(other)
    assert 1 in versions_told(metrics), "it serves"


def test_a_version_that_is_loaded_while_it_is_still_unloading_is_counted_on(tmp_path, bundles):
    tallies = VersionTallies(RunFolder(tmp_path / "run"))
    first = tallies.use(bundles[0])
    assert tallies.use(bundles[0]) is first
    tallies.leave(bundles[0])
    first.cells("priordial_decisions_changed", {"version": "1"})[0] += 1
    for other in bundles[1:]:
        tallies.use(other)
        tallies.leave(other)
    assert RunFolder(tmp_path / "run").version("linear", 1).is_dir()
    tallies.close()


def test_what_a_worker_that_ended_has_counted_is_kept_and_then_bounded_alike(tmp_path, bundles):
    folder = RunFolder(tmp_path / "run")
    before = VersionTallies(folder)
    before.use(bundles[0]).cells("priordial_decisions_changed", {"version": "1"})[0] += 2
    before.close()
    after = VersionTallies(folder)
    assert after.use(bundles[0]).cells("priordial_decisions_changed", {"version": "1"})[0] == 2
    after.leave(bundles[0])
    for other in bundles[1:]:
        after.use(other)
        after.leave(other)
    assert not folder.version("linear", 1).exists()
    assert len(folder.versions()) == KEPT


def test_the_memory_of_recent_logits_comes_with_the_rows_and_goes_with_the_reservoir():
    """Pages of their own: those of an allocator would stay in use, or be torn up, when a version
    goes.
    """
    reservoir = LogitReservoir(1000, max_rows=1000, max_bytes=2**22)
    base = reservoir._rows
    while isinstance(base, np.ndarray):
        base = base.base
    pages = weakref.ref(base.obj if isinstance(base, memoryview) else base)
    assert type(pages()).__name__ == "mmap"
    reservoir.add(np.ones((3, 1000), np.float32))
    assert reservoir.sample().logits.sum() == 3000
    del reservoir, base
    assert pages() is None
