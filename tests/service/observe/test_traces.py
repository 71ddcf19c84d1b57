"""Traces: a real OTLP receiver on loopback gets the spans of requests, of their queueing and
inference, and of their batches.
"""

import functools
import os
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service.api.edge.keys import make_key
from service.observe.traces import TracesUnavailable, open_traces
from tests.support.server import ROOT, running, starting
from tests.support.small_models import inputs, publish_model

CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = 0.123456789
"""A number in an input that must not leave the process."""


class Collector:
    """Stands in for an OpenTelemetry collector: it accepts POST /v1/traces and keeps the spans."""

    def __init__(self):
        self.spans, self.resources, self.raw = [], [], b""
        self.changed = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                with collector.changed:
                    collector.raw += body
                    for resource in request.resource_spans:
                        collector.resources.append(attributes(resource.resource))
                        for scope in resource.scope_spans:
                            collector.spans += scope.spans
                    collector.changed.notify_all()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def holds(self, name, count):
        return len(self.named(name)) == count

    def wait_for(self, what, seconds=20):
        with self.changed:
            assert self.changed.wait_for(what, seconds), [span.name for span in self.spans]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def collector():
    found = Collector()
    yield found
    found.close()


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


def attributes(of):
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in of.attributes}


def body(rows, **parameters):
    return {"instances": inputs(rows).tolist(), "parameters": parameters}


def test_a_batch_is_linked_to_every_request_whose_rows_it_held(models, collector):
    taus = [0.0, 0.5, 1.0, 2.0]

    def send(i):
        given = body(1 + i % 3, tau=taus[i % 4], prior=("uniform", "training")[i % 2])
        answer = httpx.post(
            f"{url}/predict", json=given, headers={"x-request-id": f"r{i}"}, timeout=30
        )
        assert answer.status_code == 200

    with running(models, traces=True, inline_us=0, environment=collector.environment) as server:
        url, count = server.url, 0
        with ThreadPoolExecutor(16) as pool:  # until requests have met in a batch, which is soon
            while not any(len(batch.links) > 2 for batch in collector.named("batch")):
                assert count < 4000
                list(pool.map(send, range(count, count + 64)))
                count += 64
                collector.wait_for(functools.partial(collector.holds, "POST /predict", count))
        assert server.terminate() == 0
    requests = {span.span_id: span for span in collector.named("POST /predict")}
    queued, inferences = collector.named("queue"), collector.named("inference")
    assert len(requests) == len(queued) == len(inferences) == count
    batches = {span.span_id: span for span in collector.named("batch")}
    linked = [link.span_id for batch in batches.values() for link in batch.links]
    assert sorted(linked) == sorted(requests)
    for batch in batches.values():
        of_batch = [requests[link.span_id] for link in batch.links]
        assert attributes(batch)["priordial.requests"] == len(of_batch)
        assert attributes(batch)["priordial.rows"] == sum(
            attributes(request)["priordial.rows"] for request in of_batch
        )
        for link, request in zip(batch.links, of_batch, strict=True):
            assert link.trace_id == request.trace_id != batch.trace_id
    met = max(batches.values(), key=lambda batch: len(batch.links))
    assert len({attributes(requests[link.span_id])["priordial.tau"] for link in met.links}) > 1
    for span in [*queued, *inferences]:
        parent = requests[span.parent_span_id]
        assert span.trace_id == parent.trace_id
        assert parent.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= parent.end_time_unix_nano
    for span in inferences:
        (link,) = span.links
        assert span.parent_span_id in {back.span_id for back in batches[link.span_id].links}


def test_a_request_goes_on_the_callers_trace_and_says_what_it_was_answered_with(models, collector):
    key, kept = make_key("shop", ["predict", "operate"])
    headers = {
        "authorization": f"Bearer {key}",
        "traceparent": f"00-{CALLER[0]}-{CALLER[1]}-01",
        "x-request-id": "order-7",
    }
    environment = {
        **collector.environment,
        "PRIORDIAL_API_KEYS": kept.line(),
        "OTEL_SERVICE_NAME": "desk",
    }
    given = body(2, tau=0.5)
    given["instances"][0][0] = SECRET
    with running(models, traces=True, log_format="json", environment=environment) as server:
        with httpx.Client(base_url=server.url, headers=headers) as http:
            target = {"target": {f"class-{i}": i + 1 for i in range(5)}}
            assert http.put("/priors", json=target).status_code == 201
            assert http.post("/predict", json=given).status_code == 200
            assert http.post("/predict", json={"instances": [[SECRET]]}).status_code == 422
            assert http.get("/health/ready").status_code == 200
            unsampled = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00"}
            assert http.post("/predict", json=given, headers=unsampled).status_code == 200
        assert server.terminate() == 0
        logged = re.findall(r'"trace_id":"(\w+)"', server.log)
    assert logged.count(CALLER[0]) == 3
    requests = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert {span.trace_id.hex() for span in requests} == {CALLER[0]}
    assert {span.parent_span_id.hex() for span in requests} == {CALLER[1]}
    put, answered, refused = requests
    assert put.name == "PUT /priors"
    assert answered.name == "POST /predict"
    assert attributes(answered) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "priordial.request_id": "order-7",
        "priordial.model": "linear",
        "priordial.version": 1,
        "priordial.tau": 0.5,
        "priordial.prior": "default",
        "priordial.revision": 1,
        "priordial.rows": 2,
    }
    assert attributes(refused)["error.type"] == "invalid"
    assert refused.status.code != Status.STATUS_CODE_ERROR  # it is the caller's error
    assert len(collector.named("batch")) == 1
    assert {found["service.name"] for found in collector.resources} == {"desk"}
    assert key.encode() not in collector.raw
    assert str(SECRET).encode() not in collector.raw


def test_a_collector_that_is_away_costs_no_request_and_no_clean_end(models):
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    with running(models, traces=True, environment=environment) as server:
        assert httpx.post(f"{server.url}/predict", json=body(1)).status_code == 200
        assert server.terminate() == 0


def test_without_traces_the_sdk_is_never_imported(models, tmp_path):
    code = f"""
import asyncio, sys
from pathlib import Path
from service.server.serving import Service
from service.observe.run_folder import RunFolder
from service.settings import Settings

async def go():
    settings = Settings(models=Path({str(models)!r}), store="sqlite:///{tmp_path}/p.db")
    service = Service(settings, RunFolder(Path({str(tmp_path)!r})))
    await service.start()
    await service.stop()

asyncio.run(go())
heavy = ("service.observe.spans", "opentelemetry.sdk", "opentelemetry.exporter")
found = [m for m in sys.modules if m.startswith(heavy)]
assert not found, found
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_traces_that_cannot_be_made_end_the_start_with_what_is_missing(models, tmp_path):
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; from service.__main__ import main; "
        f"sys.exit(main(['serve', '--traces', '--port', '0', '--models', {str(models)!r}, "
        f"'--store', 'sqlite:///{tmp_path}/p.db']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "priordial[traces]" in done.stderr.strip().splitlines()[-1]
    protocol = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with starting(models, traces=True, environment=protocol) as server:
        assert server.exit() == 1
        assert "expected http/protobuf" in server.log.strip().splitlines()[-1]
    for environment, status, mark in (({}, 0, "ok"), (protocol, 1, "BAD")):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "service",
                "doctor",
                "--traces",
                "--models",
                models,
                "--store",
                f"sqlite:///{tmp_path}/p.db",
            ],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status
        assert re.search(rf"{mark} +traces ", done.stdout)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://collector:4317"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-5"),
    ],
)
def test_a_variable_with_which_no_span_would_arrive_is_refused_by_its_name(
    variable, value, monkeypatch
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(TracesUnavailable, match=variable):
        open_traces("1")


def test_a_traced_request_that_is_refused_as_soon_as_it_is_read_is_answered(models, collector):
    """It comes whole in one segment, so that it is refused within the call that reads it."""
    wrong = b'{"instances": [[1.0]]}'
    request = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
        len(wrong),
        wrong,
    )
    with running(models, traces=True, environment=collector.environment) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(2):  # the second time its header block is known
            with socket.create_connection((host, int(port)), timeout=20) as client:
                client.sendall(request)
                assert client.recv(12) == b"HTTP/1.1 422"
