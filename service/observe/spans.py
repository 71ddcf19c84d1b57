"""OpenTelemetry traces. This module, and with it the SDK, is imported only with `--traces`.

Each request has a span. The request's children are its wait in the queue, and each graph call that
scored rows of it. Each graph call also has a span of its own, linked to its requests. No span holds
an input, a body, an error's text or a key.
"""

import asyncio
import os
import threading
import time
from collections.abc import (
    Awaitable,
    Callable,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextvars import ContextVar
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.batching.facts import TracedPart
from service.contract.bundle import Bundle

Asgi = Callable[[Any, Any, Any], Awaitable[None]]
LogRequests = Callable[[list[dict[str, Any]]], None]

FLUSH_SECONDS = 5.0
"""Seconds that the process may wait for the collector when it ends."""
UNTRACED = ("/health/", "/metrics", "/v2/health/")
"""Probes and scrapes have no spans."""
_FROM_LOG = ("model", "version", "tau", "prior", "revision", "rows")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_span: ContextVar[Span | None] = ContextVar("priordial_request_span", default=None)


class UnknownProtocol(ValueError):
    """OTEL_EXPORTER_OTLP_PROTOCOL or _ENDPOINT names another protocol than http/protobuf."""


class Traces:
    """Makes spans, and sends them to the OTLP endpoint of the OTEL_* environment variables.

    If the collector cannot be reached, spans are lost and the log says so. No request fails.
    """

    def __init__(self, *, version: str) -> None:
        """Make traces that name this version of the service. Raises UnknownProtocol."""
        _check_protocol(os.environ)
        resource = _resource(version)
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        requests = TracerProvider(resource=resource, shutdown_on_exit=False)
        # A graph call is recorded when one of its requests is, regardless of the sampler.
        batches = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
        for provider in (requests, batches):
            provider.add_span_processor(self._processor)
        self._requests = requests.get_tracer("priordial", version)
        self._batches = batches.get_tracer("priordial", version)
        self._propagator = TraceContextTextMapPropagator()

    def cold(self, app: Asgi) -> Asgi:
        """Wrap an ASGI application so that each request has a span. Each request runs in its own
        task.
        """

        async def traced(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            _span.set(
                None
            )  # a task that another request created has inherited the span of that request
            if scope["type"] == "http" and not scope["path"].startswith(UNTRACED):
                self.begin(scope["method"][:20], scope["headers"])
            await app(scope, receive, send)

        return traced

    def log(self, log_requests: LogRequests) -> LogRequests:
        """Wrap `log_requests`: end each request's span with the facts of its line, and add its
        trace id.

        The wrapper takes the line of one request at a time.
        """

        def traced(lines: list[dict[str, Any]]) -> None:
            (line,) = lines
            span = _span.get()
            if span is not None:
                if span.is_recording():
                    _describe(span, line)
                    span.end()
                line["trace_id"] = f"{span.get_span_context().trace_id:032x}"
            log_requests(lines)

        return traced

    def begin(self, name: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Begin a request's span in this context, below the caller's span in `traceparent`."""
        parent = self._propagator.extract(_trace_headers(headers))
        _span.set(self._requests.start_span(name, context=parent, kind=SpanKind.SERVER))

    def of_model(self, bundle: Bundle) -> "ModelTracer":
        """Return the tracer of a model version's queue."""
        attributes = {"priordial.model": bundle.name, "priordial.version": bundle.version}
        return ModelTracer(self._requests, self._batches, attributes)

    async def close(self) -> None:
        """Send the remaining spans, for at most FLUSH_SECONDS."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, FLUSH_SECONDS)


class ModelTracer:
    """Traces the queue and the graph calls of one model version."""

    def __init__(self, requests: Any, batches: Any, attributes: Mapping[str, Any]) -> None:
        self._requests, self._batches, self._attributes = requests, batches, attributes

    def current(self) -> Span | None:
        """Return the span of the current request, None where it is not recorded."""
        span = _span.get()
        return span if span is not None and span.is_recording() else None

    def graph_call(self, parts: Sequence[TracedPart], seconds: float, *, failed: bool) -> None:
        """Record the spans of a graph call that has just ended. seconds: how long it took."""
        traced = [part for part in parts if part.span is not None]
        if not traced:
            return
        ended, now = time.time_ns(), time.monotonic()
        began = ended - int(1e9 * seconds)
        batch = self._batches.start_span(
            "batch",
            links=[Link(part.span.get_span_context()) for part in traced],
            start_time=began,
            attributes={
                **self._attributes,
                "priordial.rows": sum(part.rows for part in parts),
                "priordial.requests": len(parts),
            },
        )
        link = Link(batch.get_span_context())
        for part in traced:
            parent = set_span_in_context(part.span)
            if part.admitted is not None:
                at = ended - int(1e9 * (now - part.admitted))
                queue = self._requests.start_span("queue", context=parent, start_time=at)
                queue.end(max(at, began))
            inference = self._requests.start_span(
                "inference",
                context=parent,
                links=[link],
                start_time=began,
                attributes={"priordial.rows": part.rows},
            )
            _end(inference, ended, failed=failed)
        _end(batch, ended, failed=failed)


def _end(span: Span, at: int, *, failed: bool) -> None:
    if failed:
        span.set_status(Status(StatusCode.ERROR))
    span.end(at)


def _describe(span: Span, line: Mapping[str, Any]) -> None:
    span.update_name(f"{line['method']} {line['route']}")
    attributes = {
        "http.request.method": line["method"],
        "http.route": line["route"],
        "http.response.status_code": line["status"],
        "priordial.request_id": line["request_id"],
    }
    attributes |= {f"priordial.{n}": line[n] for n in _FROM_LOG if line.get(n) is not None}
    if "problem" in line:
        attributes["error.type"] = line["problem"]
    span.set_attributes(attributes)
    if line["status"] >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _trace_headers(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    return {
        name.decode(): value.decode("latin-1")
        for name, value in headers
        if name in (b"traceparent", b"tracestate")
    }


def _resource(version: str) -> Resource:
    """Add the service's defaults to OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES."""
    given = Resource.create()
    own: dict[str, str | int] = {"service.version": version, "process.pid": os.getpid()}
    if str(given.attributes["service.name"]).startswith("unknown_service"):
        own["service.name"] = "priordial"
    return given.merge(Resource(own))


def _check_protocol(environment: Mapping[str, str]) -> None:
    for name in _PROTOCOLS:
        if environment.get(name, "http/protobuf") != "http/protobuf":
            raise UnknownProtocol(f"{name} is '{environment[name]}'; expected http/protobuf")
    for name in _ENDPOINTS:
        endpoint = environment.get(name, "")
        if endpoint and not endpoint.lower().startswith(("http://", "https://")):
            raise UnknownProtocol(
                f"{name} is '{endpoint[:80]}'; expected a URL such as http://collector:4318"
            )
