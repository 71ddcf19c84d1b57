"""A future whose one waiter may be resumed at once, in place of in a later turn of the loop; and what resumes it.

A task costs an event loop two turns and more time than a small model takes. A coroutine that waits for little else than
its batch is stepped by hand: the batch that answers it resumes it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Waiting(asyncio.Future[T]):
    """See the module. With no `resume` it is an asyncio.Future."""

    __slots__ = ("resume",)

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.resume: Callable[[], None] | None = None

    def set_result(self, result: T, /) -> None:
        """As of asyncio.Future; the waiter goes on before this returns."""
        super().set_result(result)
        if self.resume is not None:
            self._resume()

    def set_exception(self, exception: type[BaseException] | BaseException, /) -> None:
        """As of asyncio.Future; the waiter goes on before this returns."""
        super().set_exception(exception)
        if self.resume is not None:
            self._resume()

    def _resume(self) -> None:
        resume, self.resume = self.resume, None
        if resume is not None:
            resume()


class Stepped:
    """Runs a coroutine without a task. It may await futures of the running loop; it has no asyncio.current_task()."""

    __slots__ = ("_coroutine", "_done")

    def __init__(
        self,
        coroutine: Coroutine[Any, None, T],
        done: Callable[[T | None, BaseException | None], None],
    ) -> None:
        """Done is called once with the result or with what was raised."""
        self._coroutine, self._done = coroutine, done
        self.step()

    def step(self, _future: object = None) -> None:
        """Run until the coroutine waits or ends."""
        try:
            awaited: Any = self._coroutine.send(None)
        except StopIteration as end:
            self._done(end.value, None)
            return
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            self._done(None, error)
            return
        if isinstance(awaited, Waiting):
            awaited.resume = self.step
        elif awaited is None:  # asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(self.step)
        else:
            awaited.add_done_callback(self.step)
