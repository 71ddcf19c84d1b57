"""The private parts of Starlette that the service uses still work as it expects."""

import asyncio
import gzip

import anyio.to_thread

from service.api import web

LONG = b"0123456789" * 20_000


def test_a_long_answer_is_compressed_without_threads_of_starlette(monkeypatch):
    """Where the system allows no more threads, those of Starlette could not be started."""

    async def fails(*_, **__):
        raise RuntimeError("can't start new thread")

    async def answer(_scope, _receive, send):
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(LONG))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": LONG})

    monkeypatch.setattr(anyio.to_thread, "run_sync", fails)
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/long",
        "headers": [(b"accept-encoding", b"gzip")],
    }
    asyncio.run(web._Compressing(answer, minimum_size=1000)(scope, None, send))
    assert (b"content-encoding", b"gzip") in sent[0]["headers"]
    assert gzip.decompress(b"".join(each["body"] for each in sent[1:])) == LONG
