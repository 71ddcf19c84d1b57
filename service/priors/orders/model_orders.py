"""Orders for models: load, unload, versions to keep, a rollout, the default model.

They travel through the store as priors do, so every worker of every replica carries them out, also
one that starts later.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.priors.feed import Feed
from service.priors.orders.wishes import ModelOrder, Wish, WorkerModel
from service.priors.revisions import StoreUnavailable
from service.priors.store_calls import StoreCalls

SEEN_SECONDS = 3.0
"""A worker that has not seen an order after this long has ended or hangs; it is not waited for."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.2


class ModelOrders:
    """Writes orders to the store and hands stored ones to this worker. Used from one event loop."""

    def __init__(self, calls: StoreCalls, feed: Feed) -> None:
        self._calls, self._feed = calls, feed
        self._obey: Callable[[Sequence[ModelOrder]], None] | None = None
        self._early: list[ModelOrder] = []

    def follow(self, obey: Callable[[Sequence[ModelOrder]], None]) -> None:
        """Call `obey` on the loop with each new order, and at once with all earlier ones."""
        self._obey = obey
        if self._early:
            early, self._early = self._early, []
            obey(early)

    def arrived(self, orders: Sequence[ModelOrder]) -> None:
        """Hand orders on; the same order may arrive twice."""
        if self._obey is None:
            self._early += orders
        elif orders:
            self._obey(orders)

    def report(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """Tell the other workers what this one serves: versions, order and error by model."""
        self._feed.report_models(json.dumps(models))

    async def give(
        self, model: str, change: Callable[[Wish], Wish], *, by: str
    ) -> ModelOrder | None:
        """Store a changed wish, which then reaches every worker, this one included.

        None when nothing was ever ordered and `change` leaves the wish as it is. Raises
        StoreUnavailable, and what `change` raises.
        """
        after = self._feed.change
        order = await self._calls.write(
            lambda store: store.order(model, change, by=by, after=after)
        )
        if order is not None:
            self.arrived([order])
        return order

    async def workers(self, model: str) -> list[WorkerModel]:
        """Return the versions of a model that each live worker serves. Raises StoreUnavailable."""
        return await self._calls.read(lambda store: store.worker_models(model))

    def show_metrics(self, scraped_at: str) -> None:
        """Tell the other workers the HOST:PORT of this one's metrics port."""
        self._feed.show_metrics(scraped_at)

    async def scrape_targets(self) -> list[str]:
        """HOST:PORT of the metrics port of each live replica that has one."""
        return await self._calls.read(lambda store: store.scrape_targets())

    async def carried_out(self, order: ModelOrder, *, seconds: float) -> list[WorkerModel]:
        """Wait until every worker that serves has carried an order out, or a later one.

        Returns the workers that failed. It does not wait for a worker that has not seen the order
        after SEEN_SECONDS, or that works on it for more than `seconds`. If the store becomes
        unavailable, the wait ends after SEEN_SECONDS: the store holds the order, and workers carry
        it out once they can read it again.
        """
        begun, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                serving = [each for each in await self.workers(order.model) if each.serving]
            except StoreUnavailable:
                if time.monotonic() - begun >= SEEN_SECONDS:
                    return []
                await asyncio.sleep(_LONGEST_PAUSE)
                continue
            waited = time.monotonic() - begun
            late = [
                each
                for each in serving
                if each.order < order.change
                and waited < (SEEN_SECONDS if each.seen < order.change else seconds)
            ]
            if not late:
                return [
                    each
                    for each in serving
                    if each.order == order.change and each.error is not None
                ]
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
