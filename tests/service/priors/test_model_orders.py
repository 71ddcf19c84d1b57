"""Waiting for the workers that carry out an order."""

import asyncio
from types import SimpleNamespace

from service.priors.orders.model_orders import ModelOrders
from service.priors.revisions import StoreUnavailable

ORDER = SimpleNamespace(model="linear", change=7)


def worker(order):
    return SimpleNamespace(serving=True, order=order, seen=order, error=None)


def test_a_store_that_pauses_does_not_end_the_wait_for_other_workers():
    """Else an order would be answered before they have carried it out."""
    answers = [StoreUnavailable("slow", "a pause"), [worker(6)], [worker(7)]]

    async def read(_call):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    orders = ModelOrders(SimpleNamespace(read=read), feed=None)
    assert asyncio.run(orders.carried_out(ORDER, seconds=30)) == []
    assert answers == []
