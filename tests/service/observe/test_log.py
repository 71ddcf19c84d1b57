"""Every request is logged in one line, with what an engineer needs and none of the user's data."""

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import threading

import httpx
import pytest

from service.observe.log import (
    ANONYMOUS,
    MAX_WAITING,
    JsonFormatter,
    RequestLog,
    as_json,
    as_text,
)
from tests.support.server import running
from tests.support.small_models import inputs, publish_model

SCORED = {
    "request_id": "abc",
    "method": "POST",
    "route": "/predict",
    "status": 200,
    "seconds": 0.0012345678,
    "model": "linear",
    "version": 2,
    "prior": "default",
    "revision": 7,
    "tau": 1.0,
    "rows": 3,
    "queue_seconds": 0.0001,
    "inference_seconds": 0.0005,
    "key": "shop",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    models = tmp_path_factory.mktemp("logs") / "models"
    publish_model(models)
    return models


def request_lines(log):
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "request"]


def test_each_request_has_one_line_with_what_was_used_and_how_long_it_took(models):
    with running(models, log_format="json") as server:
        given = {"X-Request-Id": "mine-1"}
        httpx.post(
            f"{server.url}/predict?tau=0.5", json={"instances": inputs(3).tolist()}, headers=given
        )
        httpx.get(f"{server.url}/models/linear", headers={"X-Request-Id": "mine-2"})
        plain = {"X-Request-Id": "mine-5", "Accept-Encoding": "identity"}  # as curl asks
        httpx.get(f"{server.url}/models/linear", headers=plain)
        counted = httpx.get(f"{server.url}/metrics", headers={"X-Request-Id": "mine-6"}).text
        httpx.post(f"{server.url}/predict", content=b"[", headers={"X-Request-Id": "mine-3"})
        httpx.get(f"{server.url}/priors", headers={"X-Request-Id": "mine-4"})
        server.terminate()
        lines = {line["request_id"]: line for line in request_lines(server.log)}
    assert sorted(lines) == [f"mine-{n}" for n in range(1, 7)]
    scored = lines["mine-1"]
    assert (scored["model"], scored["version"], scored["tau"]) == ("linear", 1, 0.5)
    assert (scored["prior"], scored["revision"], scored["rows"]) == ("default", 0, 3)
    assert 0 <= scored["queue_seconds"] <= scored["seconds"]
    assert 0 < scored["inference_seconds"] <= scored["seconds"]
    assert lines["mine-2"]["route"] == lines["mine-5"]["route"] == "/models/{model}"
    assert 'priordial_requests_total{route="/models/{model}",status="200"} 2' in counted
    assert (lines["mine-3"]["status"], lines["mine-3"]["problem"]) == (400, "malformed")
    asked = [lines[name]["key"] for name in ("mine-1", "mine-3", "mine-4")]
    assert set(asked) == {ANONYMOUS}, "the same on every route that would ask for a key"


def test_the_log_never_shows_an_input_or_a_key(models):
    secret, key = "zebra-4711", "priordial_hush"
    with running(models, log_format="json") as server:
        headers = {"Authorization": f"Bearer {key}", "X-Api-Key": key}
        for body in (
            {"instances": [secret]},
            {"instances": [{"b64": secret}]},
            {"instances": [[1.0]], secret: 1},
            {"instances": inputs(1).tolist(), "parameters": {"prior": {"target": {secret: 1}}}},
        ):
            answer = httpx.post(f"{server.url}/predict", json=body, headers=headers)
            assert answer.status_code in (400, 422)
        httpx.get(f"{server.url}/{secret}?key={key}", headers=headers)
        server.terminate()
        assert len(request_lines(server.log)) == 5
        assert secret not in server.log
        assert key not in server.log


def test_a_terminal_gets_the_same_facts_as_text():
    text = as_text(SCORED, 0.0).decode()
    reported = [
        "200 POST",
        "/predict",
        "1.23 ms",
        "linear/2",
        "default@7",
        "τ 1",
        "3 rows",
        "shop",
        "abc",
    ]
    for fact in reported:
        assert fact in text
    assert text.count("\n") == 1
    assert ANONYMOUS not in as_text({**SCORED, "key": ANONYMOUS}, 0.0).decode(), "noise there"


def test_a_line_tells_as_text_what_it_has_and_needs_no_more():
    adjusted = {
        k: v
        for k, v in SCORED.items()
        if k not in ("prior", "revision", "tau", "queue_seconds", "inference_seconds")
    }
    assert "linear/2" in as_text(adjusted, 0.0).decode()
    assert "3 rows" in as_text(adjusted, 0.0).decode()
    rows_differ = {k: v for k, v in SCORED.items() if k != "tau"}
    assert "prior default@7  3 rows" in as_text(rows_differ, 0.0).decode()
    bare = {"route": "/priors", "status": 200, "seconds": 0.1, "request_id": "abc", "key": None}
    assert "None" not in as_text(bare, 0.0).decode()


def test_a_line_that_cannot_be_encoded_is_reported_and_costs_no_other_line(caplog):
    stream = io.BytesIO()
    log = RequestLog(stream, encode=as_json)

    async def three():
        odd = {**SCORED, "request_id": "odd", "rows": object()}
        log([{**SCORED, "request_id": "before"}, odd, {**SCORED, "request_id": "after"}])

    asyncio.run(three())
    log.close(seconds=30)
    written = [json.loads(line)["request_id"] for line in stream.getvalue().splitlines()]
    assert written == ["before", "after"]
    assert "request odd is missing in the log" in caplog.text


def test_other_messages_have_the_same_form_and_keep_their_trace():
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        record = logging.LogRecord("service.x", 40, "x.py", 1, "it %s", ("fell",), None)
        record.exc_info = (RuntimeError, error, error.__traceback__)
    found = json.loads(JsonFormatter().format(record))
    assert (found["level"], found["logger"], found["message"]) == ("error", "service.x", "it fell")
    assert "RuntimeError: broken" in found["exception"]


def test_of_libraries_only_warnings_are_logged():
    program = """
import logging
from service.observe.log import configure
configure("json")
for name in ("service.audit", "azure.core.pipeline.policies.http_logging_policy", "uvicorn"):
    logging.getLogger(name).info("told by %s", name)
    logging.getLogger(name).warning("warned by %s", name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["level"], line["logger"].split(".")[0]) for line in lines] == [
        ("info", "service"),
        ("warning", "service"),
        ("warning", "azure"),
        ("warning", "uvicorn"),
    ]


class Stuck(io.BytesIO):
    """A pipe whose reader reads only after `go`."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def write(self, block):
        assert self.go.wait(30)
        return super().write(block)


def test_a_reader_that_is_too_slow_costs_lines_and_not_time():
    stream = Stuck()
    log = RequestLog(stream, encode=as_json)

    async def flood():
        for number in range(MAX_WAITING + 50):
            log([{**SCORED, "request_id": str(number)}])
            log.flush()

    asyncio.run(flood())
    stream.go.set()
    log.close(seconds=30)
    asyncio.run(_one(log))
    log.close(seconds=30)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    dropped = sum(line["lines"] for line in lines if line["event"] == "dropped")
    written = sum(line["event"] == "request" for line in lines)
    assert dropped >= 49
    assert written + dropped == MAX_WAITING + 51


async def _one(log):
    log([dict(SCORED)])


def test_a_message_with_bytes_that_are_no_text_is_one_line_of_json():
    odd = os.fsdecode(b"/models/\xff\nx")
    record = logging.makeLogRecord({"msg": f"there is no '{odd}'", "levelname": "WARNING"})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "there is no '/models/\\udcff\nx'"
