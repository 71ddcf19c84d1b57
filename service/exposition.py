"""Prometheus text and OpenMetrics of the workers' tallies, made so that a scrape does not hold up predictions.

The line of a cell is kept from scrape to scrape and made again only when its number has changed; between slices of work the
thread lets others run. A scrape of 20,000 series costs milliseconds instead of the 260 of prometheus-client.
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

from service.run_folder import Gauge
from service.tally import Cells, Series, TallyReader

NAMES = "__names__"
"""Label of a block whose cells are the values of another label: ["class", "cat", "dog", …] as JSON."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_BLOCK_BYTES = 2**19
_SLICE = 256
"""Lines that are made before others may run: about 100 µs."""

VectorGauge = tuple[str, dict[str, str], Cells]
"""A family, its labels with NAMES among them, and a value for each of those names."""

Exemplar = tuple[str, float, float]
"""A request id, the value that was observed, and when (time.time())."""


@dataclass(frozen=True)
class Families:
    """What there is to show: help by family, without `_total`; the bounds of each histogram."""

    counters: Mapping[str, str]
    histograms: Mapping[str, tuple[str, Sequence[float]]]
    gauges: Mapping[str, tuple[str, Callable[[list[float]], float]]]
    vector_gauges: Mapping[str, str]


class Exposition:
    """Renders what the folders hold. One scrape at a time; call it in a thread."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self._reader = TallyReader()
        self._vectors: dict[Series, _Vector] = {}
        self._gauge_vectors: dict[Series, _Vector] = {}
        self._lock = threading.Lock()
        self._process = CollectorRegistry()
        """process_* of the worker that answers the scrape."""
        self._process.register(ProcessCollector(registry=None))

    def render(
        self,
        folders: Iterable[Path],
        gauges: Iterable[Gauge],
        exemplars: Mapping[tuple[str, Series], Mapping[int, Exemplar]],
        *,
        vector_gauges: Iterable[VectorGauge] = (),
        accept: str,
    ) -> tuple[list[bytes], str]:
        """The body, in blocks, and the content type of a scrape: OpenMetrics where it is accepted, else Prometheus text.

        exemplars: (family, labels) → bucket → the last request seen there; OpenMetrics only.
        """
        wide = "application/openmetrics-text" in accept
        with self._lock:
            totals = self._reader.merged(folders)
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
                yield f"{name}_count{shown} {_number(running[-1])}\n{name}_sum{shown} {_number(values[-1])}\n".encode()

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
    """The lines of one block of numbers, kept between scrapes."""

    def __init__(self, name: str, labels: dict[str, str]) -> None:
        packed = labels.pop(NAMES, None)
        if packed is None:
            self._heads = [f"{name}{_labels(labels)} "]
        else:
            label, *values = json.loads(packed)
            first, last = f"{name}{{{label}=", _labels(labels)[1:]
            comma = "," if labels else ""
            self._heads = [f"{first}{_quoted(value)}{comma}{last} " for value in values]
        self._values: Cells = np.full(len(self._heads), -1.0)
        self._lines = [b""] * len(self._heads)
        self._blocks: list[bytes] = [b""] * -(-len(self._heads) // _SLICE)

    def lines(self, values: Cells) -> list[bytes]:
        """The block as bytes, in slices."""
        changed = np.flatnonzero(values != self._values)
        made = 0
        for at in np.unique(changed // _SLICE).tolist():
            begin, end = at * _SLICE, min((at + 1) * _SLICE, len(values))
            fresh = changed[(changed >= begin) & (changed < end)]
            for i, value in zip(fresh.tolist(), values[fresh].tolist(), strict=True):
                self._lines[i] = f"{self._heads[i]}{_number(value)}\n".encode()
            self._blocks[at] = b"".join(self._lines[begin:end])
            made += len(fresh)
            if made >= _SLICE:
                made = 0
                time.sleep(0)  # let go of the interpreter: predictions wait for it
        self._values = values
        return self._blocks


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of some size: one of megabytes would keep others waiting wherever it is copied."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
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
