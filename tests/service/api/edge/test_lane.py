"""The lane of scoring requests alone, with a route that answers at once."""

import asyncio
from types import SimpleNamespace

from service.api.edge.errors import Problem
from service.api.edge.known_headers import Head
from service.api.edge.lane import ScoringLane
from service.api.edge.request import Answer


class AtOnce:
    """A route that refuses the body `wrong`."""

    template, with_error = "/predict", False

    def match(self, path):
        return path

    def begin(self, request, _path, _reply):
        if request.body == b"wrong":
            raise Problem("invalid", "the body is wrong")
        return Answer(b"{}", {})


def test_requests_are_counted_in_the_order_of_their_answers():
    """The next request of a quick client may be read before the last answer is counted."""
    counted = []

    def count(_route, status, requests, _now):
        counted.append(status)
        return [0.0] * len(requests)

    metrics = SimpleNamespace(requests=count)
    access = SimpleNamespace(check=lambda _headers, _role: "anonymous")

    async def scenario():
        lane = ScoringLane(
            [AtOnce()],
            metrics=metrics,
            access=access,
            max_body_bytes=100,
            room=None,
            read_seconds=1.0,
            log_requests=lambda lines: None,
        )
        match, head = lane.match("/predict"), Head([], 5)

        def ask(body, send):
            lane.begin(match, head, query=b"", body=body, connection=None, send=send)

        ask(b"right", lambda _response: ask(b"wrong", lambda _response: None))
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert counted == [200, 422]
