"""Makes the vectors of long priors in threads: once for all who wait, and few at a time."""

import asyncio
import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

from service.priors.revisions import PriorsBusy
from service.process.threads import Threads, TooManyWait

T = TypeVar("T")

LONG_VALUES = 2000
"""The most values of an inline prior that is checked on the event loop, not in a thread.

The most classes, too, of a model whose priors are resolved there.
"""
MAX_WAITING = 64
"""The most priors that wait to be made. Each keeps the body of its request in memory."""
_THREADS = 2
_NESTED = ("costs", "context", "schedule")


class Making:
    """Bounded threads for making vectors. Used from one event loop."""

    def __init__(self) -> None:
        self._threads = Threads("priors", count=_THREADS, max_calls=MAX_WAITING)
        self._shared: dict[Hashable, asyncio.Future[Any]] = {}

    def start(self) -> None:
        """Start the first thread. Raises RuntimeError where the system allows none."""
        self._threads.prepare()

    async def made(self, make: Callable[[], T]) -> T:
        """The result of `make()`, or what it raises. Raises PriorsBusy."""
        try:
            return await self._threads.run(make, seconds=math.inf)
        except TooManyWait as error:
            raise PriorsBusy(f"the prior cannot be made ready now: {error}") from None

    async def once(self, key: Hashable, make: Callable[[], T], then: Callable[[T], object]) -> None:
        """Make something once for all callers that ask for this key while it is being made.

        then: called with the result on the event loop, even if the first caller has left.
        """
        making = self._shared.get(key)
        if making is None:
            making = asyncio.ensure_future(self._and_then(make, then))
            self._shared[key] = making
            making.add_done_callback(partial(self._end, key))
        await asyncio.shield(making)

    async def _and_then(self, make: Callable[[], T], then: Callable[[T], object]) -> None:
        then(await self.made(make))

    def _end(self, key: Hashable, made: "asyncio.Future[Any]") -> None:
        del self._shared[key]
        if not made.cancelled():
            made.exception()  # seen, although every caller may have left

    def close(self) -> None:
        """Make nothing more; what waits is dropped."""
        self._threads.close(drop=True)


def is_long(body: dict[str, Any]) -> bool:
    """Whether checking an inline prior takes more than about two milliseconds."""
    parts = [body, *body.values()]
    for name in _NESTED:
        inner = body.get(name)
        if isinstance(inner, dict):
            parts += inner.values()
    return sum(map(_values, parts)) > LONG_VALUES


def _values(part: Any) -> int:
    if not isinstance(part, (dict, list)):
        return 0
    rows = part if isinstance(part, list) and part and isinstance(part[0], list) else ()
    return len(part) + sum(len(row) for row in rows if isinstance(row, list))
