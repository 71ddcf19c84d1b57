"""A bare ASGI application that reads the body and answers, on uvicorn with the service's settings.

It shows how fast HTTP alone can be.
"""

import socket
import sys

import uvicorn
import uvloop


async def app(_scope, receive, send) -> None:
    message = await receive()
    while message.get("more_body", False):
        message = await receive()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"{}"})


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"ready on http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        http="httptools",
    )
    uvloop.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
