"""Every change of a prior is announced to the webhook: signed, in order, again after a failure."""

import asyncio
import contextlib
import http.server
import itertools
import socket
import threading
from datetime import UTC, datetime

import orjson
import pytest

from service.priors import webhook as of_webhook
from service.priors.revisions import StoredRevision
from service.priors.webhook import Changed, Webhook, signature
from service.settings import InvalidSetting, Settings
from tests.support.eventually import eventually_async

SECRET = "a secret"


class Receiver:
    """A real HTTP server that answers with the given statuses, then 200, and keeps what it got."""

    def __init__(self, *statuses):
        self.got, left = [], list(statuses)
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                self.send_response(left.pop(0) if left else 200)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                """Nothing to standard error."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver():
    made = []

    def make(*statuses):
        made.append(Receiver(*statuses))
        return made[-1]

    yield make
    for each in made:
        each.close()


def changed(revision=7):
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    entry = StoredRevision("pets", "default", revision, None, "", moment, "ana", "snow")
    return Changed("put", entry, 0.25)


def test_an_attempt_that_was_answered_leaves_no_thread(receiver):
    for status in (200, 500):
        of_webhook.send(receiver(status).url, b"secret", changed())
        assert not [each for each in threading.enumerate() if isinstance(each, threading.Timer)]


def announce(url, changes, *, until, pauses=(0.0, 0.0)):
    async def go():
        webhook = Webhook(url, SECRET, pauses=pauses)
        for each in changes:
            webhook.announce(each)
        await eventually_async(until)
        webhook.close()

    asyncio.run(go())


def test_an_announcement_says_what_changed_and_is_signed(receiver):
    there = receiver()
    announce(there.url, [changed()], until=lambda: there.got)
    ((headers, body),) = there.got
    document = orjson.loads(body)
    assert document == {
        "event": "prior.changed",
        "action": "put",
        "model": "pets",
        "prior": "default",
        "revision": 7,
        "in_use": True,
        "updated_at": "2026-01-02T00:00:00+00:00",
        "by": "ana",
        "note": "snow",
        "decisions_changed": 0.25,
    }
    expected = signature(body, headers["X-Priordial-Timestamp"], SECRET.encode())
    assert headers["X-Priordial-Signature"] == f"sha256={expected}"
    assert signature(body, "0", b"another") != expected


def test_a_failed_attempt_is_repeated_as_the_same_delivery_and_the_order_is_kept(receiver, caplog):
    there = receiver(503, 429)
    announce(there.url, [changed(1), changed(2)], until=lambda: len(there.got) == 4)
    assert [orjson.loads(body)["revision"] for _, body in there.got] == [1, 1, 1, 2]
    assert len({headers["X-Priordial-Delivery"] for headers, _ in there.got}) == 2
    assert "status 503" in caplog.text


@pytest.mark.parametrize("status", [302, 400, 404])
def test_an_answer_that_will_not_change_is_final(receiver, status, caplog):
    there = receiver(status)
    announce(there.url, [changed(1), changed(2)], until=lambda: len(there.got) == 2)
    assert [orjson.loads(body)["revision"] for _, body in there.got] == [1, 2]
    assert "giving up" in caplog.text


def test_a_receiver_that_is_not_there_is_given_up_and_the_end_does_not_wait_for_it(
    receiver, caplog
):
    there = receiver()
    there.close()
    announce(there.url, [changed()], until=lambda: "giving up" in caplog.text)
    announce(there.url, [changed()], until=lambda: "again in 3600 s" in caplog.text, pauses=(3600,))


def test_announcements_beyond_the_limit_are_dropped_with_a_line_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr("service.priors.webhook.MAX_WAITING", 2)
    released = threading.Event()

    async def go():
        webhook = Webhook("http://127.0.0.1:9/", SECRET)
        monkeypatch.setattr(webhook, "_deliver", lambda *_: released.wait())
        for revision in range(5):
            webhook.announce(changed(revision))
        released.set()
        webhook.close()

    asyncio.run(go())
    assert "was not announced" in caplog.text


def test_a_webhook_needs_a_url_and_a_secret():
    with pytest.raises(InvalidSetting, match="http or https"):
        Settings(webhook="ftp://example.org", webhook_secret=SECRET)
    with pytest.raises(InvalidSetting, match="PRIORDIAL_WEBHOOK_SECRET"):
        Settings(webhook="https://example.org")


ODD_ANSWERS = {
    "no HTTP": itertools.repeat(b"SSH-2.0-OpenSSH_9.6\r\n", 1),
    "headers without end": itertools.repeat(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000, 1),
    "informational answers without end": itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "nothing": iter(()),
}


@pytest.mark.parametrize("kind", ODD_ANSWERS)
def test_an_attempt_ends_whatever_the_receiver_sends_and_the_next_is_made(
    kind, monkeypatch, caplog
):
    """Before, some answers lost the announcement, and one kept a processor busy for ever."""
    monkeypatch.setattr(of_webhook, "ANSWER_SECONDS", 0.2)
    listener = socket.create_server(("127.0.0.1", 0))
    accepted = []

    def answer(connection, answers):
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            for part in answers:
                connection.sendall(part)
            connection.recv(65536)

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            first, ODD_ANSWERS[kind] = itertools.tee(ODD_ANSWERS[kind])
            accepted.append(connection)
            threading.Thread(target=answer, args=(connection, first), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
    announce(url, [changed()], until=lambda: "giving up" in caplog.text)
    assert len(accepted) == 3
    assert "(attempt 1)" in caplog.text
    listener.close()
