"""`service.repository.order_book`: orders are carried out once, in order, and reported."""

import asyncio
from datetime import UTC, datetime
from functools import partial

import pytest

from service.priors.orders import wishes
from service.priors.orders.wishes import AS_SET, SERVICE, ModelOrder
from service.repository.order_book import OrderBook

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UNLOADED = wishes.unload(AS_SET)


class Seen(list):
    """Notes what is carried out; refuses the models named in `broken`."""

    broken = ()

    async def carry_out(self, name, wish):
        self.append((name, wish.loaded))
        if name in self.broken:
            raise ValueError(f"{name} cannot be loaded")


@pytest.fixture
def seen():
    return Seen()


@pytest.fixture
def book(seen):
    return OrderBook(None, carry_out=seen.carry_out, serving=dict, wait_seconds=1.0)


def order(change, wish=UNLOADED, model="linear"):
    return ModelOrder(model, wish, change, "ops", NOW)


async def settle():
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


def test_orders_before_the_start_are_kept_and_not_carried_out(book, seen):
    async def run():
        book.take([order(3)])
        assert [each.change for each in book.begin()] == [3]
        await settle()

    asyncio.run(run())
    assert seen == []
    assert book.wish("linear") == UNLOADED
    assert book.wish("another") == AS_SET


def test_an_overtaken_order_is_not_carried_out(book, seen):
    async def run():
        book.begin()
        book.take([order(3), order(2, AS_SET), order(3, AS_SET)])
        await settle()

    asyncio.run(run())
    assert seen == [("linear", False)]
    assert book.newest("linear").change == 3


def test_giving_an_order_waits_for_it_and_raises_its_error(book, seen):
    seen.broken = ("linear",)

    async def run():
        book.begin()
        with pytest.raises(ValueError, match="linear cannot be loaded"):
            await book.give("linear", wishes.load, by="ops")

    asyncio.run(run())
    assert book.newest("linear").by == "ops"


def test_an_order_for_the_service_itself_loads_no_model(book, seen):
    async def run():
        book.begin()
        await book.give(SERVICE, partial(wishes.make_default, name="linear"), by="ops")

    asyncio.run(run())
    assert seen == []
    assert book.wish(SERVICE).default_model == "linear"


def test_without_a_channel_there_are_no_other_workers_and_nothing_is_sent(book):
    async def run():
        book.begin()
        await book.send("linear", wishes.unload, by="rollout")
        return await book.workers("linear")

    assert asyncio.run(run()) == []
    assert book.newest("linear") is None
