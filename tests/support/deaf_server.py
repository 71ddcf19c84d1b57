"""`python -m service` whose start continues although it is cancelled, as happens when the awaited
call ends at that moment. For tests.
"""

import asyncio
import sys

from service import __main__
from service.server.assembly.service import Service

start = Service.start


async def deaf(self: Service) -> None:
    sys.stderr.write("the start has begun\n")
    sys.stderr.flush()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await start(self)


if __name__ == "__main__":
    Service.start = deaf  # type: ignore[method-assign]
    sys.exit(__main__.main(sys.argv[1:]))
