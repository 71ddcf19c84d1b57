"""A stream whose client leaves: nothing of it goes on."""

import asyncio
import contextlib
from types import SimpleNamespace

from service.api.rpc.front import _MAX_STREAM_IN_FLIGHT, Front
from tests.support.eventually import eventually_async


def test_no_request_of_a_stream_goes_on_after_its_client_has_left():
    context = SimpleNamespace(invocation_metadata=tuple, time_remaining=lambda: None)
    begun, ended = [], []

    class Unanswered(Front):
        """Its requests are never answered."""

        def __init__(self):
            pass

        def _held(self, _message):
            return contextlib.nullcontext()

        async def _read(self, message):
            begun.append(message)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(message)

    async def messages():
        for number in range(2 * _MAX_STREAM_IN_FLIGHT):
            yield b"%d" % number

    async def main():
        answers = Unanswered()._stream(messages(), context)
        first = asyncio.ensure_future(anext(answers))
        full = _MAX_STREAM_IN_FLIGHT + 2  # one is awaited, and one finds no room
        await eventually_async(lambda: len(begun) == full)
        first.cancel()
        await asyncio.wait([first])
        await eventually_async(lambda: sorted(ended) == sorted(begun))

    asyncio.run(main())
