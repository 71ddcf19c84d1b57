"""A load that hangs is given up and reported; loaded models keep serving, and no other load waits
for it.
"""

import asyncio
import contextlib
import http.client
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from service.observe.run_folder import RunFolder
from service.process.threads import TooManyWait
from service.repository import loading
from service.repository import loads as loads_module
from service.repository.loads import LoadHangs, Loads, Turn
from service.repository.repository import ModelFailed
from service.server.assembly.service import Service
from service.settings import Settings
from tests.support.eventually import eventually, eventually_async
from tests.support.faulty_models import publish_endless, publish_slow
from tests.support.server import running, starting
from tests.support.small_models import inputs, publish_model

LONG = 3600.0
BRIEF = 0.2


@pytest.fixture
def released():
    """Set at the end, so that no thread of a test outlives it."""
    event = threading.Event()
    yield event
    event.set()


# ---- loads alone


def test_a_load_that_hangs_is_given_up_with_its_stack_in_the_log(released, caplog):
    async def go():
        loads = Loads(seconds=BRIEF)
        hanging = loads.begin(("a", 1), released.wait)
        with pytest.raises(LoadHangs, match="--load-seconds"):
            await hanging
        assert loads.hanging() == ["a version 1"]
        with pytest.raises(
            LoadHangs, match="earlier load of this version hangs"
        ):  # one thread a version, however often it is asked for
            loads.begin(("a", 1), released.wait)
        assert await loads.begin(("a", 2), lambda: "another") == "another"
        released.set()
        await eventually_async(lambda: not loads.hanging())
        assert await loads.begin(("a", 1), lambda: "now") == "now"

    asyncio.run(go())
    (reported,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "in run" in reported
    assert "in wait" in reported
    assert "a version 1, which had timed out, has ended" in caplog.text


def test_hanging_loads_are_told_to_a_scrape_while_others_begin():
    """Whoever looks at this load, is stopped there, while another begins."""

    class Interrupted:
        what = "odd"

        @property
        def hangs(self):
            loads._known["late", len(loads._known)] = loads._known["a", 0]
            return True

    loads = Loads(seconds=LONG)
    loads._known.update({("a", number): Interrupted() for number in range(2)})
    assert loads.hanging() == ["odd", "odd"]


def test_a_load_that_was_stopped_with_the_whole_process_has_its_time_anew(released):
    async def go():
        loads = Loads(seconds=BRIEF)
        result = loads.begin(("linear", 1), released.wait)
        threading.Event().wait(1.5 + BRIEF)  # the loop stands still, as under SIGSTOP
        for _ in range(3):  # timers that are due run in the second turn
            await asyncio.sleep(0)
        assert loads.hanging() == []
        released.set()
        assert await result
        loads.close()

    asyncio.run(go())


def test_a_load_without_a_thread_is_refused_each_time_and_works_once_there_is_one(monkeypatch):
    def none(_):
        raise RuntimeError("can't start new thread")

    async def go():
        loads = Loads(seconds=LONG)
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", none)
            for _ in range(2):  # the second must not wait for the first
                with pytest.raises(TooManyWait, match="ulimit -u"):
                    loads.begin(("a", 1), int)
        assert await loads.begin(("a", 1), int) == 0

    asyncio.run(go())


def test_a_load_that_runs_already_is_joined(released):
    async def go():
        loads = Loads(seconds=LONG)
        first = loads.begin(("a", 1), lambda: released.wait() and "one")
        assert loads.begin(("a", 1), lambda: "two") is first
        released.set()
        assert await first == "one"
        assert await loads.begin(("a", 1), lambda: "two") == "two"

    asyncio.run(go())


def test_an_error_of_a_load_is_the_waiters_and_nobodys_else(caplog):
    def fail():
        raise ValueError("no")

    async def go():
        loads = Loads(seconds=LONG)
        with pytest.raises(ValueError, match="no"):
            await loads.begin(("a", 1), fail)
        left = loads.begin(("a", 2), fail)
        await eventually_async(left.done)

    asyncio.run(go())
    assert caplog.text == ""


def test_the_turn_of_a_load_that_hangs_passes_on_and_those_that_waited_have_their_whole_time(
    released,
):
    turn, order = Turn(), []

    def hang():
        with turn:
            order.append("hang")
            released.wait()

    def work(name):
        with turn:
            order.append(name)
        return name

    async def go():
        loads = Loads(seconds=2 * BRIEF)
        first = loads.begin(("hang", 1), hang)
        await eventually_async(lambda: order)
        loads._seconds = BRIEF
        others = [loads.begin((name, 1), partial(work, name)) for name in ("b", "c")]
        with pytest.raises(LoadHangs):
            await first
        assert sorted([await each for each in others]) == ["b", "c"]
        with turn:  # it is free again, and stays so when the one that hung comes back
            released.set()

    asyncio.run(go())
    assert order[0] == "hang"


def test_only_so_many_loads_work_at_once_and_one_that_hangs_makes_room(released, monkeypatch):
    monkeypatch.setattr(loads_module, "AT_ONCE", 2)
    at_once, most, lock, before = 0, 0, threading.Lock(), load_threads()

    def work():
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.01)
        with lock:
            at_once -= 1

    async def go():
        loads = Loads(seconds=2 * BRIEF)
        hanging = [loads.begin(("hang", version), released.wait) for version in (1, 2)]
        loads._seconds = BRIEF
        others = [loads.begin(("a", version), work) for version in range(20)]
        for each in hanging:
            with pytest.raises(LoadHangs):
                await each
        await asyncio.gather(*others)  # though they were in line for longer than one may work
        released.set()
        await eventually_async(lambda: not loads.hanging())
        await eventually_async(
            lambda: len(load_threads() - before) == 2
        )  # they replaced those that hung
        loads.close()
        await eventually_async(lambda: not load_threads() - before)

    asyncio.run(go())
    assert most == 2


def load_threads():
    return {thread for thread in threading.enumerate() if thread.name == "load"}


# ---- in the service


@contextlib.asynccontextmanager
async def service_of(tmp_path, **settings):
    made = Service(
        Settings(
            models=tmp_path / "models",
            store=f"sqlite:///{tmp_path}/p.db",
            provider="cpu",
            **settings,
        ),
        RunFolder(tmp_path / "run"),
    )
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
def blocked(tmp_path, monkeypatch, released):
    """Sessions of version 2 are not opened before `released`; returns the event that is set when
    one is being opened.
    """
    opening, open_graph = threading.Event(), loading.graphs.open_graph

    def open_slowly(folder, *arguments, **more):
        if folder.name == "2":
            opening.set()
            released.wait()
        return open_graph(folder, *arguments, **more)

    publish_model(tmp_path / "models")
    monkeypatch.setattr(loading.graphs, "open_graph", open_slowly)
    return opening


def state(service, version):
    return {v: why for _, v, why in service.repository.on_disk()}[version]


def served(service):
    return list(service.repository.all().get("linear", {}))


def test_a_version_whose_load_hangs_has_failed_and_the_one_before_serves_on(
    tmp_path, blocked, released
):
    async def go():
        async with service_of(tmp_path, load_seconds=LONG) as service:
            publish_model(tmp_path / "models")
            service.repository.loads._seconds = BRIEF  # less than a load takes that goes well
            with pytest.raises(ModelFailed, match=r"timed out after 0\.2 s"):
                await service.repository.load("linear")
            service.repository.loads._seconds = LONG
            assert "--load-seconds" in state(service, 2)
            assert served(service) == [1]
            assert service.health.why_not_live() is None
            assert service.health.why_degraded() == "the load of linear version 2 hangs"
            with pytest.raises(ModelFailed, match="earlier load of this version hangs"):
                await service.repository.load("linear")
            publish_model(tmp_path / "models", "other")
            await service.repository.load_all()
            assert set(service.repository.all()) == {"linear", "other"}
            released.set()
            await eventually_async(lambda: service.health.why_degraded() is None)
            await service.repository.load("linear")
            assert served(service) == [2, 1]

    asyncio.run(go())
    assert blocked.is_set()


def test_an_unload_ends_the_wait_for_a_load_and_the_next_load_goes_on_with_it(
    tmp_path, blocked, released
):
    async def go():
        async with service_of(tmp_path, load_seconds=LONG) as service:
            publish_model(tmp_path / "models")
            loads = [asyncio.create_task(service.repository.load("linear")) for _ in range(2)]
            await eventually_async(blocked.is_set)
            assert state(service, 2) == "being loaded"
            await service.repository.unload("linear")
            assert served(service) == []
            for each in loads:  # also the one that stood in line
                with pytest.raises(ModelFailed, match="unloaded while it was loading"):
                    await each
            assert state(service, 2) == "unloaded"
            again = asyncio.create_task(service.repository.load("linear"))
            await eventually_async(lambda: "linear" in service.repository._stops)
            released.set()
            await again
            assert served(service) == [2, 1]
            await service.repository.unload("linear")
            released.clear()
            assert served(service) == []

    asyncio.run(go())


def test_a_load_that_ends_after_its_model_was_unloaded_changes_nothing(tmp_path, blocked, released):
    async def go():
        async with service_of(tmp_path, load_seconds=LONG) as service:
            publish_model(tmp_path / "models")
            load = asyncio.create_task(service.repository.load("linear"))
            await eventually_async(blocked.is_set)
            await service.repository.unload("linear")
            with pytest.raises(ModelFailed):
                await load
            released.set()
            await eventually_async(lambda: not service.repository.loads._known)
            assert served(service) == []
            await service.repository.load_all()
            assert served(service) == []

    asyncio.run(go())


# ---- in a process


def client_of(server):
    return InferenceServerClient(server.url.removeprefix("http://"), network_timeout=120)


def state_of(client, model):
    """The state of a model's only version in the index of the worker that answers."""
    (state,) = {i["state"] for i in client.get_model_repository_index() if i["name"] == model}
    return state


def answered(server):
    body = {"instances": inputs(1).tolist()}
    return httpx.post(f"{server.url}/models/linear/predict", json=body).status_code


def test_a_warm_up_that_does_not_end_is_told_to_the_client_and_the_process_serves_and_ends_as_ever(
    tmp_path,
):
    models = tmp_path / "models"
    publish_model(models)
    publish_slow(models)
    with running(models, load_seconds=8, inline_us=0) as server, client_of(server) as client:
        publish_endless(models, "slow")
        with pytest.raises(InferenceServerException, match="--load-seconds") as refused:
            client.load_model("slow")
        assert refused.value.status() == "422"
        index = {(i["name"], i["version"]): i for i in client.get_model_repository_index()}
        assert index["slow", "1"]["state"] == "READY"
        assert index["slow", "2"]["state"] == "UNAVAILABLE"
        assert "--load-seconds" in index["slow", "2"]["reason"]
        assert "in influence" in server.log  # the stack shows where
        body = {"instances": [[1.0, 1.0]]}
        old = httpx.post(f"{server.url}/models/slow/predict", json=body).json()
        assert old["version"] == 1
        assert answered(server) == 200
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        ready = httpx.get(f"{server.url}/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert "slow version 2" in ready.json()["reason"]
        publish_model(models, "linear")
        client.load_model("linear")  # is measured although the turn was never given back
        assert client.is_model_ready("linear", "2")
        client.unload_model("slow")
        assert server.terminate() == 0


def test_a_start_with_nothing_but_a_model_whose_load_hangs_is_refused_and_says_why(tmp_path):
    publish_endless(tmp_path / "models")
    with starting(tmp_path / "models", load_seconds=1) as server:
        assert server.exit() == 1
        assert "no model can be served: its load timed out after 1 s" in server.log


def test_neither_another_order_nor_the_end_waits_for_a_load_that_hangs_whatever_the_workers(
    tmp_path,
):
    models = tmp_path / "models"
    publish_model(models)
    with (
        running(models, workers=2, load_seconds=LONG) as server,
        ThreadPoolExecutor(1) as pool,
        client_of(server) as client,
        client_of(server) as other,
    ):
        publish_endless(models)
        hanging = pool.submit(other.load_model, "endless")
        eventually(lambda: state_of(client, "endless") == "LOADING")
        client.unload_model("linear")
        assert not client.is_model_ready("linear")
        assert not hanging.done()
        client.unload_model("endless")
        with pytest.raises(InferenceServerException, match="unloaded while it was loading"):
            hanging.result(30)
        client.load_model("linear")  # though a warm-up goes on that nobody waits for
        assert answered(server) == 200
        hanging = pool.submit(other.load_model, "endless")
        eventually(lambda: state_of(client, "endless") == "LOADING")
        server.process.terminate()
        closed = (OSError, http.client.HTTPException)
        with pytest.raises((InferenceServerException, *closed)):  # the reason, or no answer
            hanging.result(30)
        assert server.exit() == 0
