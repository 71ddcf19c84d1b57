"""The table of limits in docs/security.md has every limit of the code, with its value and a status
that exists.
"""

import importlib
import pkgutil
import re

import pytest

import service.api
import service.wire
from service import classifier
from service.api import adjust
from service.api.edge import bodies, framing, json_body, known_headers, lane, turns
from service.api.edge.errors import TITLES
from service.api.oip import forms as oip_forms
from service.api.oip import infer, request
from service.api.priors import insight, shift
from service.api.rpc import messages
from service.contract import pixels
from service.contract.inputs import spec
from service.contract.members import costs, switch
from service.evaluate import answers, contexts, feedback, live
from service.priors import making, priors
from service.priors.shift import history, stream, watch
from service.settings import Settings
from service.wire import arrays, forms, images, json_rows, json_text, npy, parameters, tensors
from service.wire.tables import csv_text
from tests.support.server import ROOT

MIB = 2**20
SETTINGS = Settings()
TABLE = {
    "a request body": [f"({SETTINGS.max_body_mib} MiB)"],
    "a whole gRPC message": [f"({SETTINGS.max_grpc_mib} MiB)"],
    "the URL": [f"({SETTINGS.max_url_kib} KiB)"],
    "the headers together": [f"({SETTINGS.max_header_kib} KiB)"],
    "the time for a request": [f"({SETTINGS.read_seconds:g} s)"],
    "an idle connection": [f"({SETTINGS.keep_alive_seconds:g} s)"],
    "requests that wait on one connection": [framing._MAX_PIPELINED],
    "members of a gzip body": [bodies._MAX_MEMBERS],
    "JSON of a scoring request": [f"{json_text.MAX_DECODED_BYTES // MIB} MiB"],
    "JSON that is decoded at once": [
        f"{json_text.MAX_WHOLE_BYTES // MIB} MiB",
        json_text.MAX_STRINGS,
    ],
    "the JSON of one row": [f"{json_rows.MAX_ROW_BYTES // MIB} MiB"],
    "WebP images": [images.MAX_WEBP_PIXELS],
    "large PNG and WebP images": [images.LARGE_PIXELS],
    "an answer": [classifier.MAX_ANSWER_VALUES, classifier.RANKED_VALUES],
    "nesting of JSON": [json_text._MAX_LEVELS, json_text.MAX_STORABLE_LEVELS],
    "a prior's body": [
        f"{json_body.MAX_BODY_BYTES // MIB} MiB",
        f"decoded {json_text.MAX_STORABLE_BYTES // MIB} MiB",
    ],
    "values of an inline prior": [parameters.MAX_INLINE_PRIOR_VALUES],
    "costs of a prior": [costs.MAX_PAIRS, costs.MAX_MATRIX_CLASSES],
    "contexts of a prior": [
        switch.MAX_KEYS,
        switch.MAX_VALUES,
        switch.MAX_TEXT,
        switch.MAX_RULES,
    ],
    "labels of one `POST /feedback`": [
        feedback.MAX_ITEMS,
        f"{json_body.MAX_BODY_BYTES // MIB} MiB",
        feedback.MAX_ID,
        f"{feedback.LEAST_SAMPLED:g}",
    ],
    "answers kept for feedback": [
        f"({SETTINGS.feedback_mib} MiB",
        f"({SETTINGS.feedback_hours:g})",
        answers.MAX_PENDING,
        live.MAX_ROWS,
        live.MAX_LABELS,
        contexts.MAX_CONTEXTS,
    ],
    "a row of CSV": [csv_text.MAX_ROW_CHARACTERS, csv_text.MAX_EMPTY_LINES],
    "previews and estimates": [insight.MAX_WRITES],
    "feedback": [turns.MAX_WAITING + 1],
    "parameters in a query": [parameters._MAX_FIELDS],
    "values of one row": [json_rows._MAX_ROW_VALUES],
    "rows of one request": [
        SETTINGS.max_queued_rows,
        f"{SETTINGS.max_queued_mib} MiB",
        f"{SETTINGS.max_queue_ms} ms",
    ],
    "a tensor made by conversion": [f"{arrays.MAX_TENSOR_BYTES // MIB} MiB"],
    "a .npy header": [npy._MAX_HEADER_BYTES, npy._MAX_DIMENSIONS],
    "a tensor of the Open Inference Protocol": [
        tensors.MAX_DIMENSIONS,
        tensors.MAX_BYTES_ELEMENTS,
    ],
    "a gRPC message without its raw contents": [f"{messages.MAX_TYPED_BYTES // MIB} MiB"],
    "inputs of one inference request": [request.MAX_INPUTS],
    "different priors in one inference request": [infer.MAX_ROW_PRIORS],
    "one text": [spec.MAX_TEXT_CHARACTERS],
    "parts of a form": [forms.MAX_PARTS],
    "an image": [pixels.MAX_PIXELS],
    "a side of an image": [pixels.MAX_SIDE],
    "images of one request": [images.MAX_REQUEST_PIXELS],
    "settings of `/adjust`": [adjust.MAX_SETTINGS, adjust.MAX_CELLS],
    "a deadline": [f"({SETTINGS.timeout_ms // 1000} s)", f"({SETTINGS.tau_cap:g})"],
    "stored priors of a model": [priors.MAX_NAMES],
    "long priors that wait": [making.MAX_WAITING],
    "header blocks that are kept": [
        known_headers._MAX_BLOCKS,
        f"{known_headers._MAX_BLOCK_BYTES // 1024} KiB",
    ],
    "headers of inference requests, and their JSON without its numbers": [
        oip_forms.MAX_KEPT_HEADERS,
        oip_forms.MAX_KEPT_HEADER_BYTES,
    ],
    "moments of the class mix": [shift.MAX_POINTS, shift.MAX_SHOWN_NUMBERS],
    "rows that wait for the tracker": [stream.MAX_WAITING_ROWS],
    "the remembered class mix": [f"{history.MAX_HISTORY_BYTES // MIB} MiB"],
    "priors of a model with automatic steps": [watch.MAX_WATCHED_PRIORS],
    "queries, paths and .npy headers": [
        parameters._MAX_CACHED_QUERY_BYTES,
        lane._MAX_PATHS,
        f"{lane._MAX_KEPT_PATH} bytes",
    ],
}
ELSEWHERE = {"MAX_TIMEOUT_MS", "MAX_REVISION", "MAX_COUNT"}
"""The range of a number in a request, which costs nothing."""


def rows():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = page[page.index("## What is bounded") :]
    cells = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0].strip(): (row[1], row[2].strip(" |")) for row in cells[2:]}


@pytest.mark.parametrize("start", TABLE)
def test_a_limit_of_the_table_is_that_of_the_code(start):
    ((limit, _),) = [row for what, row in rows().items() if what.startswith(start)]
    for value in TABLE[start]:
        assert (f"{value:,}" if isinstance(value, int) else value) in limit


def test_the_statuses_of_the_table_exist():
    known = {str(status) for status, _ in TITLES.values()}
    for _, status in rows().values():
        assert set(re.findall(r"\d{3}", status)) <= known


def test_every_limit_of_the_code_is_in_the_table():
    values = [value for found in TABLE.values() for value in found]
    for package in (service.wire, service.api):
        for each in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            module = importlib.import_module(each.name)
            for name in vars(module):
                if name.startswith("MAX_") and name not in ELSEWHERE:
                    value = getattr(module, name)
                    assert value in values or any(str(value // MIB) in str(v) for v in values), (
                        f"{each.name}.{name} is not in docs/security.md"
                    )
