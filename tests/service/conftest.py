"""Real stores of both engines, shared by the tests of the service."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.contract.bundle import Bundle
from service.priors import feed
from service.priors.orders import model_orders
from service.priors.priors import Priors
from tests.support.postgres import Postgres, servers
from tests.support.priors import make_bundle


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


@pytest.fixture
def pets() -> Bundle:
    return make_bundle()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store or worker that is slow on a busy machine counts as away only after a minute."""
    monkeypatch.setattr(model_orders, "SEEN_SECONDS", 60.0)
    monkeypatch.setattr(feed, "STALLED_SECONDS", 60.0)
    monkeypatch.setitem(Priors.__init__.__kwdefaults__, "answer_seconds", 60.0)
