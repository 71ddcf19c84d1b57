"""`python -m benchmarks.rig.leaking_service serve …`: the service, keeping a copy of each body that
a scoring route answers; a control for soak.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from service import __main__
from service.api.edge.lane import ScoringLane
from service.api.edge.request import Answer, Request, Route
from service.server import serving

KEPT: list[bytes] = []


class LeakingLane(ScoringLane):
    """Forgets nothing."""

    def _finish(self, route: Route, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Answer requests after their bodies have been kept."""
        KEPT.extend(bytes(bytearray(request.body)) for request in requests)
        super()._finish(route, requests, answers)


def main() -> int:
    """What `python -m service` does, with the other lane."""
    import service.server.app

    service.server.app.ScoringLane = LeakingLane  # type: ignore[misc]
    assert serving.Service is service.server.app.Service
    return __main__.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
