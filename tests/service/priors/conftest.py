"""Real stores, small models, and Priors that follow a store."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.contract.bundle import Bundle
from service.prior_store import open_store
from service.priors import Priors
from tests.service.priors.postgres import Postgres, servers


@pytest.fixture(scope="session")
def make_postgres() -> Iterator[Callable[[], Postgres]]:
    """Makes servers that end with the tests."""
    with servers() as make:
        yield make


@pytest.fixture(scope="session")
def postgres(make_postgres: Callable[[], Postgres]) -> Postgres:
    """The server that tests share; each takes a database of its own."""
    return make_postgres()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store, on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/priors.db"
    return request.getfixturevalue("postgres").new_schema()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/priors.db"


def make_bundle(
    *,
    name: str = "pets",
    version: int = 1,
    class_names: tuple[str, ...] = ("cat", "dog", "lynx"),
    class_counts: tuple[float, ...] | None = (100.0, 50.0, 5.0),
    loss_tau: float = 0.0,
    temperature: float = 1.0,
) -> Bundle:
    return Bundle.model_validate(
        {
            "format_version": 1,
            "name": name,
            "version": version,
            "class_names": list(class_names),
            "class_counts": None if class_counts is None else list(class_counts),
            "loss_tau": loss_tau,
            "temperature": temperature,
            "input": {"name": "x", "kind": "tensor", "shape": [None, 4], "dtype": "float32"},
            "output": {"name": "y", "kind": "logits"},
            "files": {"model.onnx": "0" * 64},
        }
    )


@pytest.fixture
def pets() -> Bundle:
    return make_bundle()


@contextlib.asynccontextmanager
async def following(url: str, **options):
    """Priors that follow the store at a URL while the block runs."""
    store = open_store(url)
    priors = Priors(store, poll_seconds=0.02, **options)
    await priors.start()
    try:
        yield priors
    finally:
        await priors.stop()


async def eventually(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until the condition holds; fail the test when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.005)
