"""The service with a deliberate memory leak: it keeps every body that a scoring route answers.

soak.py runs it as a control, which its memory check must fail: `python -m
benchmarks.rig.leaking_service serve …`.
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
    """A scoring lane that keeps a copy of every request body."""

    def _finish(self, route: Route, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Keep the bodies, then answer as the service does."""
        KEPT.extend(bytes(bytearray(request.body)) for request in requests)
        super()._finish(route, requests, answers)


def main() -> int:
    """Run `python -m service` with the leaking lane."""
    import service.server.assembly.routes

    service.server.assembly.routes.ScoringLane = LeakingLane  # type: ignore[misc]
    assert serving.Service.__module__ == "service.server.assembly.service"
    return __main__.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
