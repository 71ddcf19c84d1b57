"""`python -m service` with a fault in every stage of a request: raise, hang or nan. For tests; it
is no part of the service. With `lose`, the first marked graph call and every later one fail.

    python -m tests.support.faulty_server raise serve --models …

A stage goes wrong for those requests only that carry its mark: a tau, a prior's name, a request id,
a model's name or bytes.
"""

import dataclasses
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from service import __main__
from service.api import predict
from service.batching import run as batch_run
from service.batching.queue import Entry, Queue
from service.graph.session import Graph
from service.observe.log import RequestLog
from service.observe.metrics import Metrics
from service.observe.model_metrics import ModelMetrics
from service.priors.priors import Priors
from service.wire import images

BUILD, RUN, SLICE, ENCODE, LOOP = 6.125, 6.25, 6.5, 6.75, 7.0
"""Marks that are taus."""
BODY, IMAGE = b"guilty body", b"guilty image"
PRIOR, COUNTED, LOGGED, UNRECORDED = "guilty", "guilty-counted", "guilty-logged", "unrecorded"


class Injected(Exception):
    """The fault."""


def main() -> int:
    how = sys.argv[1]
    for owner, name, is_guilty, as_nan in STAGES.values():
        _break(owner, name, is_guilty, how, as_nan)
    return __main__.main(sys.argv[2:])


def _break(owner: Any, name: str, is_guilty: Callable[..., bool], how: str, as_nan: Any) -> None:
    whole = getattr(owner, name)

    lost = threading.Event()

    @functools.wraps(whole)
    def broken(*arguments: Any, **more: Any) -> Any:
        if how == "lose" and owner is Graph and (lost.is_set() or is_guilty(*arguments, **more)):
            lost.set()
            raise Injected("CUDA failure 700: an illegal memory access was encountered")
        if how == "lose" or not is_guilty(*arguments, **more):
            return whole(*arguments, **more)
        if how == "raise":
            raise Injected(name)
        if how == "hang":
            threading.Event().wait()
        result = whole(*arguments, **more)
        return result if as_nan is None else as_nan(result)

    setattr(owner, name, broken)


def _has(taus: Any, mark: float) -> bool:
    return any(bool(np.any(np.asarray(each) == np.float32(mark))) for each in taus)


def _nan_instances(document: dict[str, Any]) -> dict[str, Any]:
    document["instances"][0][0] = float("nan")
    return document


def _nan_offset(revision: Any) -> Any:
    offset = np.full_like(revision.offset, np.nan)
    return dataclasses.replace(revision, offset=offset, key="nan")


STAGES: dict[str, tuple[Any, str, Callable[..., bool], Any]] = {
    "decode body": (predict, "parse_json_object", lambda body, *_: BODY in body, _nan_instances),
    "decode image": (images, "image_array", lambda encoded, *_: IMAGE in encoded[0], None),
    "prior lookup": (
        Priors,
        "select",
        lambda _self, _bundle, name=None, **_: name == PRIOR,
        _nan_offset,
    ),
    "build batch": (
        batch_run,
        "_by_row",
        lambda values, *_: _has(values, BUILD),
        lambda column: np.where(column == np.float32(BUILD), np.float32("nan"), column),
    ),
    "run session": (Graph, "run", lambda *_, tau, **__: _has([tau], RUN), None),
    "slice": (Entry, "scored", lambda entry, *_: _has([entry.work.tau], SLICE), None),
    "encode": (predict, "_answer", lambda entry, *_: entry.work.tau == ENCODE, None),
    "record batch": (
        ModelMetrics,
        "batch",
        lambda self, _: self._by_model["model"] == UNRECORDED,
        None,
    ),
    "record request": (
        Metrics,
        "requests",
        lambda _self, _route, _status, arrived, *_: any(
            each.request_id == COUNTED for each in arrived
        ),
        None,
    ),
    "log": (RequestLog, "__call__", lambda _self, lines: lines[0]["request_id"] == LOGGED, None),
    "batching loop": (
        Queue,
        "fill",
        lambda self, *_: any(_has([p.entry.work.tau], LOOP) for p in self.pieces),
        None,
    ),
}

if __name__ == "__main__":
    sys.exit(main())
