"""The scrape on a port of its own, answered by a thread that the prediction loop never waits for."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from service.observe.exposition import PAUSE_SECONDS

Render = Callable[[str], tuple[list[bytes], str]]
Allowed = Callable[[list[tuple[bytes, bytes]]], int]
"""Headers → 200, or the status that refuses them."""


class PortTaken(RuntimeError):
    """The port of the metrics cannot be had."""


class MetricsPort:
    """GET /metrics on its own port. Several workers share the port; each shows the numbers of all."""

    def __init__(self, host: str, port: int, *, render: Render, allowed: Allowed) -> None:
        """Raises PortTaken."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                headers = [
                    (k.lower().encode(), v.encode("latin-1")) for k, v in self.headers.items()
                ]
                status = allowed(headers) if self.path.split("?")[0] == "/metrics" else 404
                blocks, kind = list[bytes](), "text/plain"
                if status == 200:
                    blocks, kind = render(self.headers.get("Accept", ""))
                self.send_response_only(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(sum(map(len, blocks))))
                self.end_headers()
                for block in blocks:
                    self.wfile.write(block)
                    time.sleep(PAUSE_SECONDS)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                """Scrapes are not logged."""

        class Server(ThreadingHTTPServer):
            allow_reuse_port = True
            daemon_threads = True

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise PortTaken(f"cannot serve metrics on {host}:{port}: {error.strerror}") from None
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Let the port go."""
        self._server.shutdown()
        self._server.server_close()
