"""`python -m benchmarks.leaking_service serve …`: the service, keeping a copy of each body that a hot route answers; a control for soak.py."""

import sys
from typing import Any

from service import __main__, serving
from service.api.hot import HotLane, HotRequest, Response

KEPT: list[bytes] = []


class LeakingLane(HotLane):
    """Forgets nothing."""

    async def answer(self, match: Any, request: HotRequest, receive: Any = None) -> Response | None:
        """The answer, after the body has been kept."""
        found = await super().answer(match, request, receive)
        KEPT.append(bytes(bytearray(request.body)))
        return found


def main() -> int:
    """What `python -m service` does, with the other lane."""
    import service.app

    service.app.HotLane = LeakingLane  # type: ignore[misc]
    assert serving.Service is service.app.Service
    return __main__.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
