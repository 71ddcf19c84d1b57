"""Renders the workers' tallies as Prometheus text or OpenMetrics without delaying predictions.

The text of a slice of cells is kept between scrapes and formatted again only when one of its
numbers has changed. The thread pauses after each slice: a scrape takes a tenth of a second, but
never holds the interpreter lock for ten milliseconds at once.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from service.observe.run_folder import Gauge
from service.observe.tally import Cells, Series, TallyReader

NAMES = "__names__"
"""Label of a block that has a cell for each value of another label: ["class", "cat", …] as JSON."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_BLOCK_BYTES = 2**16
"""Size in bytes of the blocks sent: each block costs either side tens of microseconds."""
_SLICE = 512
"""Number of lines formatted together, in about 30 µs."""
_EXACT = 2.0**53
PAUSE_SECONDS = 0.002
"""Pause between slices, and between sent blocks.

A pause shorter than the scheduler's time slice would not let other threads of a busy machine run.
"""

VectorGauge = tuple[str, dict[str, str], Cells]
"""A family, its labels with NAMES among them, and a value for each name."""

Exemplar = tuple[str, float, float]
"""A request id, the observed value, and when (time.time())."""


@dataclass(frozen=True)
class Families:
    """The families to show, without `_total`, with their help and histogram bounds."""

    counters: Mapping[str, str]
    histograms: Mapping[str, tuple[str, Sequence[float]]]
    gauges: Mapping[str, tuple[str, Callable[[list[float]], float]]]
    vector_gauges: Mapping[str, str]


class Exposition:
    """Renders the numbers in the workers' folders, one scrape at a time."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self._reader = TallyReader()
        self._vectors: dict[Series, _Vector] = {}
        self._gauge_vectors: dict[Series, _Vector] = {}
        self._lock = threading.Lock()
        self._process = CollectorRegistry()
        """The process_* metrics of the worker that answers the scrape."""
        self._process.register(ProcessCollector(registry=None))

    def render(
        self,
        folders: Iterable[Path],
        gauges: Iterable[Gauge],
        exemplars: Mapping[tuple[str, Series], Mapping[int, Exemplar]],
        *,
        vector_gauges: Iterable[VectorGauge] = (),
        in_memory: Iterable[tuple[Series, Cells]] = (),
        accept: str,
    ) -> tuple[list[bytes], str]:
        """Return the body of a scrape, in blocks, and its content type. Call it in a thread.

        exemplars: (family, labels) → bucket → the last request in it; for OpenMetrics only.
        in_memory: blocks of this process that no file holds.
        accept: the scraper's Accept header; OpenMetrics where it is accepted, else Prometheus text.
        """
        wide = "application/openmetrics-text" in accept
        with self._lock:
            totals = self._reader.merged(folders, in_memory=in_memory)
            parts = [
                *self._counters(totals, wide=wide),
                *self._histograms(totals, exemplars if wide else {}),
                *self._gauges(gauges),
                *self._shown_vectors(vector_gauges),
            ]
        encoder = openmetrics.generate_latest if wide else generate_latest
        parts.append(encoder(self._process))  # with OpenMetrics' "# EOF" at its end
        return list(_blocks(parts)), OPEN_METRICS if wide else TEXT

    def _counters(self, totals: Mapping[Series, Cells], *, wide: bool) -> Iterator[bytes]:
        self._vectors = {series: v for series, v in self._vectors.items() if series in totals}
        for name, text in self._families.counters.items():
            yield _head(name if wide else f"{name}_total", text, "counter")
            for series, values in _of(totals, name):
                vector = self._vectors.get(series)
                if vector is None:
                    vector = self._vectors[series] = _Vector(f"{name}_total", dict(series[1]))
                yield from vector.lines(values)

    def _histograms(
        self,
        totals: Mapping[Series, Cells],
        exemplars: Mapping[tuple[str, Series], Mapping[int, Exemplar]],
    ) -> Iterator[bytes]:
        for name, (text, bounds) in self._families.histograms.items():
            yield _head(name, text, "histogram")
            edges = [*(str(float(bound)) for bound in bounds), "+Inf"]
            for series, values in _of(totals, name):
                labels = dict(series[1])
                seen = exemplars.get((name, series), {})
                running = np.cumsum(values[:-1]).tolist()
                for i, (edge, count) in enumerate(zip(edges, running, strict=True)):
                    line = f"{name}_bucket{_labels({**labels, 'le': edge})} {_number(count)}"
                    yield f"{line}{_exemplar(seen.get(i))}\n".encode()
                shown = _labels(labels)
                yield f"{name}_count{shown} {_number(running[-1])}\n".encode()
                yield f"{name}_sum{shown} {_number(values[-1])}\n".encode()

    def _gauges(self, gauges: Iterable[Gauge]) -> Iterator[bytes]:
        found: dict[Series, list[float]] = {}
        for name, labels, value in gauges:
            found.setdefault((name, tuple(sorted(labels.items()))), []).append(value)
        for name, (text, combined) in self._families.gauges.items():
            yield _head(name, text, "gauge")
            for (family, series), values in sorted(found.items()):
                if family == name:
                    yield f"{name}{_labels(dict(series))} {_number(combined(values))}\n".encode()

    def _shown_vectors(self, found: Iterable[VectorGauge]) -> Iterator[bytes]:
        now = {(name, tuple(sorted(labels.items()))): values for name, labels, values in found}
        known = self._gauge_vectors
        self._gauge_vectors = {
            series: known.get(series) or _Vector(series[0], dict(series[1])) for series in now
        }
        for name, text in self._families.vector_gauges.items():
            yield _head(name, text, "gauge")
            for series, values in _of(now, name):
                yield from self._gauge_vectors[series].lines(values)


class _Vector:
    """The lines of one block of numbers. Unchanged slices keep their text between scrapes."""

    def __init__(self, name: str, labels: dict[str, str]) -> None:
        packed = labels.pop(NAMES, None)
        self._label: str
        self._names: list[str]
        self._label, *self._names = [""] if packed is None else json.loads(packed)
        self._name, self._labels = name, labels
        length = len(self._names) or 1
        self._values: Cells = np.full(length, -1.0)
        self._templates: dict[tuple[int, bool], bytes] = {}
        self._slices: list[bytes] = [b""] * -(-length // _SLICE)

    def lines(self, values: Cells) -> list[bytes]:
        """Return the block's lines, one text per slice."""
        changed = np.flatnonzero(values != self._values)
        for at in np.unique(changed // _SLICE).tolist():
            fresh = values[at * _SLICE : (at + 1) * _SLICE]
            whole = bool(((np.abs(fresh) < _EXACT) & (np.floor(fresh) == fresh)).all())
            template = self._templates.get((at, whole))
            if template is None:
                template = self._templates[at, whole] = self._template(at, whole=whole)
            if whole:
                self._slices[at] = template % tuple(fresh.astype(np.int64).tolist())
            else:
                self._slices[at] = template % tuple(_number(v).encode() for v in fresh.tolist())
            time.sleep(PAUSE_SECONDS)
        self._values = values
        return self._slices

    def _template(self, at: int, *, whole: bool) -> bytes:
        """Make the format of a slice, with %d or %b for each number, to be filled in one
        operation.
        """
        shown = _labels(self._labels)
        if not self._label:
            heads = [f"{self._name}{shown}"]
        else:
            first, last = f"{self._name}{{{self._label}=", shown[1:] or "}"
            comma = "," if self._labels else ""
            names = self._names[at * _SLICE : (at + 1) * _SLICE]
            heads = [f"{first}{_quoted(name)}{comma}{last}" for name in names]
        line = " %d\n" if whole else " %b\n"
        return "".join(head.replace("%", "%%") + line for head in heads).encode()


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join small parts into blocks; large parts are not copied."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        if size and size + len(part) > _BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
        held.append(part)
        size += len(part)
    yield b"".join(held)


def _of(totals: Mapping[Series, Cells], family: str) -> Iterator[tuple[Series, Cells]]:
    for series in sorted(key for key in totals if key[0] == family):
        yield series, totals[series]


def _head(name: str, text: str, kind: str) -> bytes:
    return f"# HELP {name} {_escaped(text)}\n# TYPE {name} {kind}\n".encode()


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f"{k}={_quoted(v)}" for k, v in sorted(labels.items())) + "}"


def _quoted(value: str) -> str:
    return '"' + _escaped(value).replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _exemplar(found: Exemplar | None) -> str:
    if found is None:
        return ""
    request_id, value, at = found
    return f" # {{request_id={_quoted(request_id)}}} {value:.6f} {at:.3f}"
