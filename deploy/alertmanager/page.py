"""Shows the alerts that Alertmanager sends: the latest on a page, and each as a line on stdout.

It shows alerts without an account anywhere. It keeps them in memory and requires no key, so it
listens inside the compose network and on loopback only.
"""

import json
import sys
from collections import deque
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 9095
KEPT = 200
MAX_BODY_BYTES = 2**20
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.4rem .8rem .4rem 0;"
    "border-bottom:1px solid #8884;vertical-align:top}.firing{color:#c2410c;font-weight:600}"
    ":root{color-scheme:light dark}"
)
alerts: deque[dict[str, str]] = deque(maxlen=KEPT)


def received(body: bytes) -> list[dict[str, str]]:
    """Return the alerts in the body of a webhook call. Raises ValueError for any other body."""
    try:
        return [
            {
                "status": str(each["status"]),
                "name": str(each["labels"]["alertname"]),
                "severity": str(each["labels"].get("severity", "")),
                "summary": str(each["annotations"].get("summary", "")),
                "runbook_url": str(each["annotations"].get("runbook_url", "")),
                "since": str(each["startsAt"]),
            }
            for each in json.loads(body)["alerts"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is not a webhook call of Alertmanager: {error!r}") from error


def _name(alert: dict[str, str]) -> str:
    """Return the alert's name, linked to the runbook if its address is http or https."""
    name, url = escape(alert["name"]), alert["runbook_url"]
    return (
        f"<a href='{escape(url)}'>{name}</a>" if url.startswith(("https://", "http://")) else name
    )


def page() -> str:
    """Return the page, newest alert first; it reloads every five seconds."""
    rows = "".join(
        f"<tr><td>{escape(each['since'][:19].replace('T', ' '))}</td>"
        f"<td class='{escape(each['status'])}'>{escape(each['status'])}</td>"
        f"<td>{escape(each['severity'])}</td>"
        f"<td>{_name(each)}<br>"
        f"{escape(each['summary'])}</td></tr>"
        for each in reversed(alerts)
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<meta http-equiv='refresh' content='5'><title>Alerts</title><style>{STYLE}</style>"
        "<h1>Alerts</h1><p>Newest first. Each name leads to its section of the runbook.</p>"
        f"<table><tr><th>Since (UTC)<th>State<th>Severity<th>Alert</tr>{rows}</table>"
        f"{'' if alerts else '<p>None yet.</p>'}"
    )


class Handler(BaseHTTPRequestHandler):
    """GET / shows the page; POST /alerts takes what Alertmanager sends."""

    def do_GET(self) -> None:
        """Answer with the page."""
        self._answer(200, page())

    def do_POST(self) -> None:
        """Keep the alerts and print them."""
        length = int(self.headers.get("content-length") or 0)
        if length > MAX_BODY_BYTES:
            self._answer(413, f"expected at most {MAX_BODY_BYTES} bytes")
            return
        try:
            new = received(self.rfile.read(length))
        except ValueError as error:
            self._answer(400, escape(str(error)))
            return
        for each in new:
            alerts.append(each)
            sys.stdout.write(json.dumps(each) + "\n")
        sys.stdout.flush()
        self._answer(200, "kept")

    def log_message(self, *_: object) -> None:
        """Log no requests: the alerts themselves are printed."""

    def _answer(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "0.0.0.0"  # noqa: S104 - a container's own
    server = ThreadingHTTPServer(
        (address, int(sys.argv[2]) if len(sys.argv) > 2 else PORT), Handler
    )
    sys.stdout.write(f"alerts are shown on port {server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
