"""GET /metrics on a port of its own, answered by threads and not by the event loop."""

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from service.observe.exposition import PAUSE_SECONDS
from service.process.machine import PortTaken

logger = logging.getLogger(__name__)

Render = Callable[[str], tuple[list[bytes], str]]
Allowed = Callable[[list[tuple[bytes, bytes]]], int]
"""Maps the headers of a request to 200, or to the status of a refusal."""

MAX_CONNECTIONS = 16
"""The most connections at a time, one thread each. Further ones are closed at once."""
_PAUSE_WITHOUT_DESCRIPTORS_SECONDS = 1.0


class MetricsPort:
    """Serves GET /metrics. The workers share the port, and each answers with the numbers of all."""

    def __init__(self, host: str, port: int, *, render: Render, allowed: Allowed) -> None:
        """Serve from now on. `render`: Accept header → body, content type. Raises PortTaken."""

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
                """Log nothing: scrapes come every few seconds."""

        host = host.strip("[]")
        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise PortTaken(host, port, error, flag="--metrics-port") from None
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    allow_reuse_port = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without the reverse lookup of the host's name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection. Without a free descriptor, pause: the next accept fails as well."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE_WITHOUT_DESCRIPTORS_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, unless too many are being served."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system has no thread for it
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until it is closed."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its names there
        """Log why a scrape failed, unless the scraper has left."""
        error = sys.exception()
        if not isinstance(error, OSError):
            logger.error(
                "a scrape of the metrics port failed; report this with the traceback",
                exc_info=error,
            )
