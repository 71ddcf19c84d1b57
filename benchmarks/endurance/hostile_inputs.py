"""Hostile input drawn from a seed: requests that are nearly valid, and bodies that would become
large.
"""

import base64
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tests.support.small_models import FEATURES

SMUGGLED = b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Request-Id: smuggled\r\n\r\n"
JSON = b"application/json"
NPY = b"application/x-npy"
_KEEPS = (b"Connection", b"Keep-Alive")
FORM = b"multipart/form-data; boundary=b"
OCTETS = b"application/octet-stream"
Headers = list[tuple[bytes, bytes]]
_DIGITS = (
    b"0",
    b"-1",
    b"+1",
    b"1e3",
    b"9" * 20,
    b"9" * 5000,
    b"0" * 5000 + b"60000",  # no short deadline, which would end a request by the clock
    b"x",
    b"",
    b"1_0",
)
_SCRAPS = (
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\r\n\r\n",
    b"\r\n ",
    b"Content-Length: 3\r\n",
    b"\x80",
    b";a=b",
    b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b"HTTP/1.0",
    b"HTTP/1.0\r\nConnection: keep-alive\r\n",
    b"#",
    b"%00",
    b"Host: y\r\n",
)


@dataclass(frozen=True)
class Request:
    """A request with valid framing; its headers and body may say anything."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes

    def whole(self, version: bytes = b"HTTP/1.1") -> bytes:
        """The bytes of the request with a Content-Length."""
        return self._head(version, (b"Content-Length", b"%d" % len(self.body))) + self.body

    def kept(self) -> bytes:
        """The bytes as HTTP/1.0, asking to keep the connection."""
        kept = Request(self.method, self.target, [*self.headers, _KEEPS], self.body)
        return kept.whole(b"HTTP/1.0")

    def chunked(self, rng: random.Random) -> bytes:
        """The bytes of the request in chunks of random size, with a trailer that must be
        ignored.
        """
        parts, at = [self._head(b"HTTP/1.1", (b"Transfer-Encoding", b"chunked"))], 0
        while at < len(self.body):
            size = rng.randint(1, max(1, len(self.body) // 2))
            part = self.body[at : at + size]
            parts.append(b"%x\r\n%b\r\n" % (len(part), part))
            at += size
        return b"".join([*parts, b"0\r\nX-Request-Id: smuggled\r\n\r\n"])

    def _head(self, version: bytes, framing: tuple[bytes, bytes]) -> bytes:
        lines = [b"%b %b %b" % (self.method, self.target, version), b"Host: x"]
        lines += [b"%b: %b" % each for each in [*self.headers, framing]]
        return b"\r\n".join([*lines, b"", b""])


def request(rng: random.Random) -> Request:
    """A random request: any kind of body for any model, sometimes with hostile headers."""
    model = rng.choice(["linear", "linear", "image", "text", "none"])
    fitting = {
        "linear": [_json, _json_lines, _npy, _oip],
        "image": [_image, _form],
        "text": [_json, _oip, _table],
    }
    every = [_json, _json_lines, _npy, _oip, _image, _form, _plain, _table]
    make = rng.choice(fitting.get(model, every) if rng.random() < 0.6 else every)
    target, content_type, body, headers = make(rng, model)
    if rng.random() < 0.2:
        body = mutated(rng, body)
    if rng.random() < 0.15 and len(body) < 2**20:
        body, headers = _compressed(rng, body), [*headers, (b"Content-Encoding", b"gzip")]
    if content_type:
        headers = [*headers, (b"Content-Type", content_type)]
    if rng.random() < 0.15:
        headers = [*headers, rng.choice(_ODD_HEADERS)(rng)]
    method = (
        b"POST"
        if body or rng.random() < 0.9
        else rng.choice([b"GET", b"PUT", b"DELETE", b"OPTIONS"])
    )
    return Request(method, target + _query(rng), headers, body)


def framing(rng: random.Random) -> bytes:
    """A stream of requests with altered bytes, whose framing may be broken in any way."""
    good = Request(b"POST", b"/predict", [(b"Content-Type", JSON)], _rows(rng))
    stream = b"".join(
        rng.choice([good.whole(), good.chunked(rng), SMUGGLED.replace(b"smuggled", b"good")])
        for _ in range(rng.randint(1, 3))
    )
    return mutated(rng, stream)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one to four fragments inserted, removed or repeated."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(found))
        kind = rng.random()
        if kind < 0.5:
            found[at:at] = rng.choice(_SCRAPS)
        elif kind < 0.8:
            del found[at : at + rng.randint(1, 8)]
        else:
            found[at:at] = found[at : at + rng.randint(1, 60)]
    return bytes(found)


# ---- bodies

_Made = tuple[bytes, bytes, bytes, Headers]


def _path(model: str, verb: str) -> bytes:
    return f"/models/{model}/{verb}".encode()


def _value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth < 4 and kind < 0.3:
        return [_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if depth < 4 and kind < 0.4:
        return {rng.choice(["b64", "", "a", "tau"]): _value(rng, depth + 1)}
    return rng.choice(
        [0, 1, -1, 0.5, 1e-7, 1e38, 1e300, 2**31, 2**63 - 1, -(2**63), True, None, "", "x", "ö"]
    )


def _instances(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.5:
        return [[rng.uniform(-2, 2) for _ in range(FEATURES)] for _ in range(rng.randint(1, 4))]
    if kind < 0.65:
        return [
            rng.choice(["", "a", "b", SMUGGLED.decode(), "\0"]) for _ in range(rng.randint(1, 3))
        ]
    if kind < 0.75:
        return [{"b64": base64.b64encode(png(rng.randint(1, 9), 3)).decode()}]
    return _value(rng)


def _parameters(rng: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rng.random() < 0.5:
        found["tau"] = rng.choice([0, 1, 0.5, 10, 11, -1, 1e-7, "1", None, True, 10**30])
    if rng.random() < 0.4:
        found["prior"] = rng.choice(
            [
                "uniform",
                "default",
                "training",
                "none",
                "a@1",
                "",
                "\0",
                {"target": [1, 2, 3, 4, 5]},
                {"target": [0] * 5},
                {},
                7,
                [1],
            ]
        )
    if rng.random() < 0.3:
        found["top_k"] = rng.choice([1, 3, 0, -1, 99, 2**63, "1", None])
    if rng.random() < 0.2:
        found["version"] = rng.choice([1, 2, 0, 10**30, "1", None])
    return found


def _json(rng: random.Random, model: str) -> _Made:
    document: dict[str, Any] = {"instances": _instances(rng)}
    if rng.random() < 0.5:
        document["parameters"] = _parameters(rng)
    if rng.random() < 0.3:
        document["settings"] = [_parameters(rng) for _ in range(rng.randint(0, 3))]
        return _path(model, "adjust"), JSON, json.dumps(document).encode(), []
    return _path(model, "predict"), JSON, json.dumps(document).encode(), []


def _json_lines(rng: random.Random, model: str) -> _Made:
    found = _instances(rng)
    lines = [json.dumps(each).encode() for each in (found if isinstance(found, list) else [found])]
    end = rng.choice([b"\n", b"\r\n", b"\n\n \n", b"", b",", b"\n" + SMUGGLED])
    kind = rng.choice([b"application/jsonlines", b"application/x-ndjson"])
    return _path(model, "predict"), kind, end.join(lines) + rng.choice([b"", b"\n"]), []


def _rows(rng: random.Random) -> bytes:
    return json.dumps({"instances": [[rng.random() for _ in range(FEATURES)]]}).encode()


def npy_header(shape: str, descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _npy(rng: random.Random, model: str) -> _Made:
    shape = rng.choice([(1, FEATURES), (3, FEATURES), (1, 2), (0, FEATURES), (2, 3, 3, 3)])
    dtype = rng.choice(["<f4", "<f8", ">f4", "<f2", "|u1", "<i8", "|b1", "<U3", "|S4"])
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype))
    body = file.getvalue()
    if rng.random() < 0.3:
        body = npy_header(
            rng.choice(
                ["(9" + "9" * 4000 + ",)", "(1,)", "()", "(-1, 6)", "(" * 500, "(0, 549755813888)"]
            )
        )
    return _path(model, "predict"), NPY, body, []


def _oip(rng: random.Random, model: str) -> _Made:
    name = {"image": "pixels", "text": "words"}.get(model, "x")
    rows = rng.randint(0, 3)
    tensor: dict[str, Any] = {
        "name": rng.choice([name, name, name, "y", ""]),
        "datatype": rng.choice(["FP32", "FP32", "BYTES", "INT64", "UINT8", "FP99", None]),
        "shape": rng.choice(
            [[rows, FEATURES]] * 3 + [[rows], [0, 2**39, 2**39], [2**40], [-1], [], "x", [rows, 1]]
        ),
    }
    document: dict[str, Any] = {"inputs": [tensor], "parameters": _parameters(rng)}
    if rng.random() < 0.3:
        document["outputs"] = [
            {"name": rng.choice(["probabilities", "logits", "class_name", "none"])}
        ]
    path = f"/v2/models/{model}/infer".encode()
    if rng.random() < 0.5:
        tensor["data"] = rng.choice([[0.5] * rows * FEATURES, ["a"] * rows, [], [[1]], 7])
        return path, JSON, json.dumps(document).encode(), []
    data = rng.randbytes(4 * rows * FEATURES)
    tensor["parameters"] = {"binary_data_size": rng.choice([len(data), 0, 2**40, -1])}
    head = json.dumps(document).encode()
    length = b"%d" % len(head) if rng.random() < 0.8 else rng.choice(_DIGITS)
    return path, OCTETS, head + data, [(b"Inference-Header-Content-Length", length)]


def _image(rng: random.Random, model: str) -> _Made:
    data = png(rng.randint(1, 40), rng.randint(1, 40))
    return _path(model, "predict"), rng.choice([b"image/png", b"image/jpeg", b"image/x"]), data, []


def _form(rng: random.Random, model: str) -> _Made:
    parts = []
    for _ in range(rng.randint(0, 4)):
        head = rng.choice(
            [
                b'name="tau"',
                b'name="a"; filename="a.png"',
                b'name="prior"',
                b"name=b; filename*=utf-8''%ff",
            ]
        )
        data = rng.choice([png(3, 3), b"0.5", b"\xff", SMUGGLED, b""])
        parts.append(b"--b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head, data))
    return (
        _path(model, "predict"),
        FORM,
        b"".join(parts) + rng.choice([b"--b--\r\n", b"--b", b""]),
        [],
    )


def _table(rng: random.Random, model: str) -> _Made:
    """A table whose bytes are altered: pyarrow, which reads it, is C++ code."""
    content_type, body = rng.choice(tables())
    altered = bytearray(body)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        altered[rng.randrange(len(altered))] = rng.choice((0, 255, 127, rng.randrange(256)))
    return _path(model, "predict"), content_type, bytes(altered), []


@lru_cache(maxsize=1)
def tables() -> list[tuple[bytes, bytes]]:
    """Tables of a column of texts, as Arrow, Parquet and .npz, with their media types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"words": ["a b c", "dog", "cat dog"]})
    stream, plain, packed, arrays = (io.BytesIO() for _ in range(4))
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, plain)
    pq.write_table(table, packed, compression="zstd", data_page_version="2.0")
    np.savez_compressed(arrays, words=np.array([["a b"], ["dog"]]))
    return [
        (b"application/vnd.apache.arrow.stream", stream.getvalue()),
        (b"application/vnd.apache.parquet", plain.getvalue()),
        (b"application/vnd.apache.parquet", packed.getvalue()),
        (b"application/x-npz", arrays.getvalue()),
    ]


def _plain(rng: random.Random, model: str) -> _Made:
    path = rng.choice(
        [
            b"/predict",
            b"/",
            b"/models",
            b"/v2",
            b"/v2/models/none/ready",
            b"/priors",
            b"/nothing",
            b"/models/%00",
            b"//predict",
            b"/predict/",
            b"/models/../predict",
        ]
    )
    del model
    return path, rng.choice([JSON, b"", b"text/plain"]), rng.choice([b"", SMUGGLED, b"{}"]), []


def _compressed(rng: random.Random, body: bytes) -> bytes:
    half = len(body) // 2
    return rng.choice(
        [
            gzip.compress(body),
            gzip.compress(body[:half]) + gzip.compress(body[half:]),
            gzip.compress(body)[:-3],
            body,
        ]
    )


def _query(rng: random.Random) -> bytes:
    if rng.random() < 0.75:
        return b""
    return b"?" + b"&".join(
        rng.choice(
            [
                b"tau=1",
                b"tau=0.5",
                b"tau=" + rng.choice(_DIGITS),
                b"top_k=" + rng.choice(_DIGITS),
                b"version=1",
                b"prior=uniform",
                b"prior=%7B%22target%22:%5B1,2,3,4,5%5D%7D",
                b"prior={",
                b"a",
                b"=",
                b"tau=%00",
                b"prior=%ff",
            ]
        )
        for _ in range(rng.randint(1, 3))
    )


_ODD_HEADERS: tuple[Callable[[random.Random], tuple[bytes, bytes]], ...] = (
    lambda rng: (b"X-Request-Timeout-Ms", rng.choice([b"60000", *_DIGITS[1:]])),
    lambda rng: (b"Accept", rng.choice([b"*/*", b"text/html", b"application/json;q=0", b"\xff"])),
    lambda rng: (b"X-Request-Id", rng.choice([b"a", b"a\tb", b"\xff", b"i" * 500])),
    lambda rng: (
        b"Content-Encoding",
        rng.choice([b"gzip", b"br", b"gzip, gzip", b"identity", b"x" * 300]),
    ),
    lambda _: (b"Expect", b"the best"),
    lambda rng: (
        b"X-Forwarded-Prefix",
        rng.choice([b"/a", b"//evil", b"/" + b"a" * 300, b'"><script>']),
    ),
    lambda rng: (b"Accept-Encoding", rng.choice([b"gzip", b"br", b"gzip;q=0", b"x"])),
    lambda rng: (b"X-Padding", b"a" * rng.choice([1, 2048, 60_000])),
)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    raw = zlib.compress((b"\0" + b"\x55" * width) * height, 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", raw) + chunk(b"IEND", b"")
