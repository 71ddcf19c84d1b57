"""`python -m benchmarks.rig.leaking_service serve …`: the service, keeping a copy of each body that a hot route answers; a control for soak.py."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from service import __main__
from service.api.edge.lane import HotLane
from service.api.edge.request import HotRequest, Response
from service.server import serving

KEPT: list[bytes] = []


class LeakingLane(HotLane):
    """Forgets nothing."""

    def succeed(self, requests: Sequence[HotRequest], responses: Sequence[Response]) -> None:
        """The answers, after the bodies have been kept."""
        KEPT.extend(bytes(bytearray(request.body)) for request in requests)
        super().succeed(requests, responses)


def main() -> int:
    """What `python -m service` does, with the other lane."""
    import service.server.app

    service.server.app.HotLane = LeakingLane  # type: ignore[misc]
    assert serving.Service is service.server.app.Service
    return __main__.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
