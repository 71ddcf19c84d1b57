"""Announces every change of a prior to `--webhook`: signed, retried, without delaying requests.

A receiver checks that `X-Priordial-Signature` is `sha256=` and the hexadecimal HMAC-SHA256 of the
timestamp header, a full stop and the body, with `--webhook-secret` as the key.
"""

import contextlib
import hashlib
import hmac
import http.client
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson

from service.priors.revisions import StoredRevision
from service.process.threads import Threads, TooManyWait

log = logging.getLogger(__name__)

MAX_WAITING = 1000
"""The most announcements that may wait; further ones are dropped and logged."""
ANSWER_SECONDS = 5.0
"""Seconds for the answer to an attempt, however slowly its bytes come."""
PAUSES = (1.0, 4.0, 16.0, 64.0)
"""Seconds before each new attempt."""
CLOSE_SECONDS = 2.0
_WORTH_RETRYING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True)
class Changed:
    """A stored change: the action, the entry, and the share of recent answers that it changed."""

    action: str
    entry: StoredRevision
    decisions_changed: float | None = None

    def document(self) -> dict[str, Any]:
        """The JSON body of an announcement."""
        entry = self.entry
        return {
            "event": "prior.changed",
            "action": self.action,
            "model": entry.model,
            "prior": entry.name,
            "revision": entry.revision,
            "in_use": not entry.deleted,
            "updated_at": entry.updated_at,
            "by": entry.by,
            "note": entry.note,
            "decisions_changed": self.decisions_changed,
        }


class Webhook:
    """Sends announcements in the order of the changes, from a separate thread."""

    def __init__(self, url: str, secret: str, *, pauses: Sequence[float] = PAUSES) -> None:
        self._url, self._secret, self._pauses = url, secret.encode(), pauses
        self._threads = Threads("webhook", count=1, max_calls=MAX_WAITING)
        self._threads.prepare()
        self._closing = threading.Event()

    def announce(self, changed: Changed) -> None:
        """Send it as soon as the earlier ones are sent. Returns at once; from the event loop."""
        body = orjson.dumps(changed.document())
        try:
            self._threads.submit(partial(self._deliver, body, uuid.uuid4().hex))
        except TooManyWait:
            log.error(  # noqa: TRY400 - the traceback says nothing more
                "revision %d of prior %r of model %r was not announced to --webhook: %d "
                "announcements are waiting already; check that the receiver answers",
                changed.entry.revision, changed.entry.name, changed.entry.model, MAX_WAITING,
            )  # fmt: skip

    def close(self) -> None:
        """Finish the attempt that is being made, for at most CLOSE_SECONDS; drop the rest."""
        self._closing.set()
        self._threads.close(drop=True, wait_seconds=CLOSE_SECONDS)

    def _deliver(self, body: bytes, delivery: str) -> None:
        for number, pause in enumerate((*self._pauses, None), 1):
            trouble = _attempt(self._url, self._secret, body, delivery)
            if trouble is None:
                return
            final = pause is None or not trouble.may_pass
            log.warning(
                "--webhook did not accept announcement %s (attempt %d): %s; %s",
                delivery, number, trouble, "giving up" if final else f"again in {pause:g} s",
            )  # fmt: skip
            if pause is None or final or self._closing.wait(pause):
                return


def send(url: str, secret: bytes, changed: Changed) -> str | None:
    """Send one announcement now, in one attempt. Blocks; returns what went wrong, if anything."""
    body = orjson.dumps(changed.document())
    trouble = _attempt(url, secret, body, uuid.uuid4().hex)
    return None if trouble is None else str(trouble)


@dataclass(frozen=True)
class _Trouble:
    what: str
    may_pass: bool

    def __str__(self) -> str:
        return self.what


def _attempt(url: str, secret: bytes, body: bytes, delivery: str) -> _Trouble | None:
    """POST an announcement. Returns what went wrong, or None when the receiver accepted it."""
    request = _Request(url, body, headers=headers_of(body, delivery, secret), method="POST")
    try:
        with _OPENER.open(request, timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        with error:
            may_pass = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
            return _Trouble(f"status {error.code}", may_pass or error.code in _WORTH_RETRYING)
    except (OSError, ValueError, http.client.HTTPException) as error:
        # no connection, no answer in time, or an answer that is not HTTP
        words = " ".join(str(error).split())[:200]
        return _Trouble(words or type(error).__name__, may_pass=True)
    finally:
        request.forget_timer()


def headers_of(body: bytes, delivery: str, secret: bytes) -> dict[str, str]:
    """The headers of an announcement, signed now. `delivery` stays the same in every attempt."""
    moment = str(int(time.time()))
    return {
        "Content-Type": "application/json",
        "User-Agent": "priordial",
        "X-Priordial-Event": "prior.changed",
        "X-Priordial-Delivery": delivery,
        "X-Priordial-Timestamp": moment,
        "X-Priordial-Signature": f"sha256={signature(body, moment, secret)}",
    }


def signature(body: bytes, moment: str, secret: bytes) -> str:
    """The hexadecimal HMAC-SHA256 of the timestamp, a full stop and the body."""
    return hmac.new(secret, moment.encode() + b"." + body, hashlib.sha256).hexdigest()


class _Request(urllib.request.Request):
    """A request whose connection ends after ANSWER_SECONDS: a socket's own timeout starts again at
    each read.
    """

    _timer: threading.Timer | None = None

    def end_later(self, connection: socket.socket) -> None:
        """End a connection that is still open after ANSWER_SECONDS."""

        def end() -> None:
            with contextlib.suppress(OSError):  # it was closed in time
                connection.shutdown(socket.SHUT_RDWR)

        self._timer = threading.Timer(ANSWER_SECONDS, end)
        self._timer.daemon = True
        self._timer.start()

    def forget_timer(self) -> None:
        """End the timer's thread: many quick attempts would keep as many of them."""
        if self._timer is not None and self._timer.is_alive():
            self._timer.cancel()
            self._timer.join()


class _Bounded(http.client.HTTPConnection):
    """A connection of a _Request."""

    def __init__(self, *args: Any, request: _Request, **more: Any) -> None:
        super().__init__(*args, **more)
        self._request_made = request

    def connect(self) -> None:
        """Connect, and set the timer."""
        super().connect()
        self._request_made.end_later(self.sock)


class _BoundedTLS(http.client.HTTPSConnection):
    """A TLS connection of a _Request."""

    def __init__(self, *args: Any, request: _Request, **more: Any) -> None:
        super().__init__(*args, **more)
        self._request_made = request

    def connect(self) -> None:
        """Connect, and set the timer."""
        super().connect()
        self._request_made.end_later(self.sock)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open a URL of http."""
        return self.do_open(partial(_Bounded, request=req), req)  # type: ignore[arg-type]


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open a URL of https."""
        return self.do_open(partial(_BoundedTLS, request=req), req)  # type: ignore[arg-type]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Treat a redirect as an error: following it would turn the POST into a GET."""


_OPENER = urllib.request.build_opener(_NoRedirect, _Http, _Https)
