"""Keeps the newest order for each model, has it carried out here, and waits for other workers."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from service.priors.orders.model_orders import ModelOrders
from service.priors.orders.wishes import AS_SET, SERVICE, ModelOrder, Wish, WorkerModel

_MAX_REASON = 4000
"""The most characters of a reason shown to other workers: it may quote a whole file."""
_MAX_OUTCOMES = 256


class OtherWorkerFailed(RuntimeError):
    """This worker has carried out an order for a model, but another worker could not."""


class OrderBook:
    """The orders that this worker knows, and what came of each.

    An order that arrives before `begin` is kept: the start of the service carries it out.
    """

    def __init__(
        self,
        channel: ModelOrders | None,
        *,
        carry_out: Callable[[str, Wish], Awaitable[None]],
        serving: Callable[[], Mapping[str, Iterable[int]]],
        wait_seconds: float,
    ) -> None:
        """Follow the channel, if there is one.

        channel: sends orders to every worker; None: orders stay in this process. carry_out: brings
        a model to its desired state, or raises with the reason. serving: the versions of each
        model that serve here. wait_seconds: how long other workers may take.
        """
        self._channel, self._wait_seconds = channel, wait_seconds
        self._carry_out, self._serving = carry_out, serving
        self._newest: dict[str, ModelOrder] = {}
        """By model, the newest order, whether carried out or not."""
        self._outcomes: OrderedDict[int, asyncio.Task[None]] = OrderedDict()
        """By change number: the outcome of the last orders in this worker."""
        self._carried_out: dict[str, tuple[int, str | None]] = {}
        """By model: the newest order that this worker dealt with, and its error if it failed."""
        self.begun = False
        if channel is not None:
            channel.follow(self.take)

    def newest(self, name: str) -> ModelOrder | None:
        """The newest order for a model; None when none was given."""
        return self._newest.get(name)

    def wish(self, name: str) -> Wish:
        """The desired state of a model."""
        order = self._newest.get(name)
        return AS_SET if order is None else order.wish

    def begin(self) -> list[ModelOrder]:
        """From now on, carry out each order that arrives. Return those that arrived before."""
        self.begun = True
        return list(self._newest.values())

    def close_orders(self, orders: Iterable[ModelOrder]) -> None:
        """Note that these orders were carried out, and report what serves here."""
        for order in orders:
            self._note(order, None)
        self.report()

    def take(self, orders: Sequence[ModelOrder]) -> None:
        """Carry out orders that have arrived, unless they are known or overtaken."""
        for order in orders:
            known = self._newest.get(order.model)
            if known is not None and known.change >= order.change:
                continue
            self._newest[order.model] = order
            if self.begun:
                task = asyncio.get_running_loop().create_task(self._dealt_with(order))
                task.add_done_callback(heard)
                self._outcomes[order.change] = task
                if len(self._outcomes) > _MAX_OUTCOMES:
                    self._outcomes.popitem(last=False)

    async def give(self, name: str, change: Callable[[Wish], Wish], *, by: str) -> None:
        """Store an order, carry it out here, and wait for the other workers.

        Raises what carrying it out raises, OtherWorkerFailed and StoreUnavailable.
        """
        order = await self._stored(name, change, by)
        if order is None or not self.begun:
            return
        outcome = self._outcomes.get(order.change)
        if outcome is not None:
            await asyncio.shield(outcome)
        if self._channel is None:
            return
        failed = await self._channel.carried_out(order, seconds=self._wait_seconds)
        if failed:
            failures = "; ".join(
                f"{each.replica} (process {each.pid}): {each.error}" for each in failed
            )
            raise OtherWorkerFailed(
                f"this worker has carried out the order for '{name[:80]}', but another could not; "
                f"try again, or restart that worker: {failures[:_MAX_REASON]}"
            )

    async def send(self, name: str, change: Callable[[Wish], Wish], *, by: str) -> None:
        """Store an order for every worker if it changes anything, and wait for none.

        Raises StoreUnavailable.
        """
        wish = self.wish(name)
        if self._channel is not None and change(wish) != wish:
            await self._channel.give(name, change, by=by)

    async def workers(self, name: str) -> list[WorkerModel]:
        """Return the versions of a model that each live worker serves. Raises StoreUnavailable."""
        return [] if self._channel is None else await self._channel.workers(name)

    def report(self) -> None:
        """Report what this worker serves to the others, once it has started."""
        if self._channel is None or not self.begun:
            return
        serving = self._serving()
        names = {*serving, *self._carried_out} or {SERVICE}
        self._channel.report({name: self._line(name, serving) for name in sorted(names)})

    async def _stored(
        self, name: str, change: Callable[[Wish], Wish], by: str
    ) -> ModelOrder | None:
        if self._channel is not None:
            return await self._channel.give(name, change, by=by)
        now = self._newest.get(name)
        number = 1 if now is None else now.change + 1
        order = ModelOrder(name, change(self.wish(name)), number, by, datetime.now(UTC))
        self.take([order])
        return order

    async def _dealt_with(self, order: ModelOrder) -> None:
        reason = None
        try:
            if order.model != SERVICE:
                await self._carry_out(order.model, order.wish)
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise
        finally:
            self._note(order, reason)
            self.report()

    def _note(self, order: ModelOrder, reason: str | None) -> None:
        """Note that an order was carried out, or why not, unless a later one was already."""
        if self._carried_out.get(order.model, (0,))[0] < order.change:
            self._carried_out[order.model] = (order.change, reason)

    def _line(self, name: str, serving: Mapping[str, Iterable[int]]) -> dict[str, object]:
        order, reason = self._carried_out.get(name, (0, None))
        line: dict[str, object] = {"versions": list(serving.get(name, ())), "order": order}
        if reason is not None:
            line["error"] = reason[:_MAX_REASON]
        return line


def heard(outcome: "asyncio.Task[None]") -> None:
    """Keep asyncio from logging the error of a task whose error is reported in another way."""
    if not outcome.cancelled():
        outcome.exception()
