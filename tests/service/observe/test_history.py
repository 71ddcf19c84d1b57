"""The counters of the last minutes are kept, as far as a page shows them."""

import httpx

from service.observe.history import KEPT, History
from tests.support.eventually import eventually
from tests.support.server import running
from tests.support.small_models import publish_model


def _scrape(n):
    return [
        b"# HELP priordial_predictions answers\n",
        f'priordial_predictions_total{{model="a",class="x"}} {n}\n'.encode(),
        f'priordial_predictions_total{{model="b",class="x"}} {n}\n'.encode(),
        b'priordial_requests_total{route="/predict"} 7\npriordial_queued_rows{model="a"} 3\n',
    ]


def test_it_keeps_the_last_minutes_and_of_them_what_grows():
    scrapes = iter(range(KEPT + 5))
    history = History(lambda: _scrape(next(scrapes)))
    for _ in range(KEPT + 5):
        history.take()
    found = history.readings("a")
    times = [at for at, _ in found]
    assert times == sorted(times)
    assert [text for _, text in found] == [
        f'priordial_predictions_total{{model="a",class="x"}} {n}\n'
        'priordial_requests_total{route="/predict"} 7'
        for n in range(5, KEPT + 5)
    ]


def test_the_service_takes_its_first_reading_when_it_starts(tmp_path):
    publish_model(tmp_path)
    with running(tmp_path) as server:
        url = f"{server.url}/metrics/recent"
        eventually(lambda: len(httpx.get(f"{url}?model=linear").json()["readings"]) == 1)
        assert httpx.get(url).status_code == 422
