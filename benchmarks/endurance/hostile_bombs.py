"""Worst cases: requests that would become large or slow at one stage, and the models for them.

`bombs` are small on the wire. `heavy` are bodies of up to 64 MiB, large answers, and streams of
many small requests; each is sent alone.
"""

import base64
import gzip
import io
import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.endurance.hostile_inputs import FORM, JSON, NPY, Request, npy_header, png
from tests.support.small_models import FEATURES, linear_model, publish_model, publish_trio

MIB = 2**20
_MANY, _THOUSAND, _WIDE, _SIDE = 20_000, 1000, 4096, 224
_VAST = 180_000


def publish(models: Path, *, heavy: bool = False) -> None:
    """Publish the small models, and models of many classes, of wide rows, of rows of free size and
    of photographs. heavy: also a model of very many classes, which `heavy` asks for.
    """
    publish_trio(models)
    sizes = [("many", _MANY), ("thousand", _THOUSAND), *([("vast", _VAST)] if heavy else [])]
    for name, classes in sizes:
        publish_model(
            models,
            name,
            model=linear_model(classes=classes),
            class_names=[f"class-{at:05d}" for at in range(classes)],
            class_counts=[10] * classes,
        )
    wide = {"name": "x", "kind": "tensor", "shape": [None, _WIDE], "dtype": "float32"}
    publish_model(models, "wide", model=linear_model(features=_WIDE), input=wide)
    three: dict[str, Any] = {"class_names": list("abc"), "class_counts": [1, 2, 3]}
    free = {"name": "x", "kind": "tensor", "shape": [None, None], "dtype": "float32"}
    publish_model(models, "free", model=_mean_model(["n"], tile=3), input=free, **three)
    photo = {
        "name": "x",
        "kind": "image",
        "shape": [None, 3, _SIDE, _SIDE],
        "dtype": "float32",
        "size": [_SIDE, _SIDE],
        "color": "RGB",
        "resize": "crop",
        "layout": "NCHW",
    }
    publish_model(models, "photo", model=_mean_model([3, _SIDE, _SIDE]), input=photo, **three)


def _mean_model(shape: list[Any], *, tile: int = 1) -> onnx.ModelProto:
    """A model from inputs "x" [batch, …] to "logits" [batch, 3], which are means over the last
    axes.
    """
    axes = [1] if tile > 1 else [2, 3]
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=int(tile > 1))]
    nodes.append(helper.make_node("Concat", ["mean"] * tile, ["logits"], axis=1))
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array(axes, np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def bombs() -> dict[str, Request]:
    """Bodies of a few kilobytes that would become gigabytes, or hold the loop for seconds."""
    strings = json.dumps({"instances": ["x" * 200_000] + [""] * 3000}).encode()
    lists = b'{"instances":[' + b"[]," * 20_000_000 + b"[]]}"
    objects = b'{"instances":[' + b'{"":0},' * 9_000_000 + b'{"":0}]}'
    numbers = b'{"instances":[' + b"[1]," * 15_000_000 + b"[1]]}"
    many = b'{"instances":[[' + b"0," * 30_000_000 + b"0]]}"
    wide = json.dumps({"instances": np.zeros((60_000, FEATURES)).tolist()}).encode()
    deep = b'{"instances":' + b"[" * 10**6
    thin = png(2, 60_000)
    tensor: dict[str, Any] = {
        "name": "x",
        "datatype": "FP32",
        "shape": [0, 2**39, 2**39],
        "data": [],
    }
    texts = {
        "name": "words",
        "datatype": "BYTES",
        "shape": [10**6],
        "parameters": {"binary_data_size": 4 * 10**6},
    }
    texts_head = json.dumps({"inputs": [texts]}).encode()
    parts = b"".join(
        b"--b\r\nContent-Disposition: form-data; name=a; filename=a\r\n\r\nx\r\n"
        for _ in range(5000)
    )
    infer = b"/v2/models/%b/infer"
    return {
        "strings": _packed(b"/predict", strings),
        "lists": _packed(b"/predict", lists),
        "objects": _packed(b"/predict", objects),
        "rows": _packed(b"/predict", numbers),
        "row": _packed(b"/predict", many),
        "deep": _packed(b"/predict", deep),
        "many rows": _packed(b"/predict", wide),
        "logits": _packed(
            b"/models/linear/adjust", b'{"settings":[{}],"logits":[' + b"[]," * 10**7 + b"[]]}"
        ),
        "prior": Request(
            b"PUT", b"/priors", [(b"Content-Type", JSON)], b'{"target":[' + b"1," * 10**6 + b"1]}"
        ),
        "zeros": _packed(b"/predict", bytes(64 * 2**20)),
        "thin image": Request(
            b"POST", b"/models/image/predict", [(b"Content-Type", b"image/png")], thin
        ),
        "parts": Request(
            b"POST", b"/models/image/predict", [(b"Content-Type", FORM)], parts + b"--b--\r\n"
        ),
        "shape": Request(
            b"POST",
            infer % b"linear",
            [(b"Content-Type", JSON)],
            json.dumps({"inputs": [tensor]}).encode(),
        ),
        "texts": Request(
            b"POST",
            infer % b"text",
            [(b"Inference-Header-Content-Length", b"%d" % len(texts_head))],
            texts_head + bytes(4 * 10**6),
        ),
        "data": _packed(
            infer % b"linear",
            b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,6],"data":['
            + b"0," * 10**7
            + b"0]}]}",
        ),
        "npy": Request(
            b"POST",
            b"/predict",
            [(b"Content-Type", NPY)],
            npy_header("(0, 549755813888, 549755813888)"),
        ),
        "inputs": Request(
            b"POST",
            infer % b"linear",
            [(b"Content-Type", JSON)],
            b'{"inputs":[' + b"{}," * 80_000 + b"{}]}",
        ),
    }


def heavy() -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes to send on one connection) for each worst case."""
    bodies = (
        _texts,
        _arrays,
        _tables,
        _images,
        _forms,
        _answers,
        _adjustments,
        _priors,
        _long_priors,
        _short_bodies,
        _other_protocols,
    )
    for make in (*bodies, _reads):
        for name, request in make():
            yield name, request.whole()
    yield from _streams()


def _post(path: bytes, body: bytes, content_type: bytes = JSON) -> Request:
    return Request(b"POST", path, [(b"Content-Type", content_type)], body)


def _other_protocols() -> Iterator[tuple[str, Request]]:
    """Bodies of many small parts, in the forms of other servers."""
    records = b'{"dataframe_records":[' + b",".join([b'{"a":1}'] * 100_000) + b"]}"
    split = b'{"dataframe_split":{"columns":["a"],"data":[' + b",".join([b"[1]"] * 300_000) + b"]}}"
    for path in (b"/v1/models/linear:predict", b"/invocations"):
        yield f"records at {path.decode()}", _post(path, records)
        yield f"rows at {path.decode()}", _post(path, split)
    for count in (30_000, 100_000):
        entry = {"name": "x", "datatype": "BYTES", "shape": [count, 1]}
        entry["parameters"] = {"binary_data_size": 4 * count}
        head = json.dumps({"inputs": [entry]}).encode()
        sent = _post(
            b"/v2/models/linear/infer", head + bytes(4 * count), b"application/octet-stream"
        )
        sent.headers.append((b"Inference-Header-Content-Length", str(len(head)).encode()))
        yield f"{count} empty texts", sent
    numbers = {"name": "x", "datatype": "FP32", "shape": [30_000, FEATURES]}
    head = json.dumps({"inputs": [{**numbers, "data": [0] * (30_000 * FEATURES)}]}).encode()
    yield "JSON as bytes", _post(b"/v2/models/linear/infer", head, b"application/octet-stream")


def _instances(item: bytes, count: int) -> bytes:
    return b'{"instances":[' + b",".join([item] * count) + b"]}"


def _texts() -> Iterator[tuple[str, Request]]:
    """JSON bodies that hold one very long value, or very many short ones."""
    yield "zeros", _post(b"/predict", bytes(64 * MIB))
    yield "a text", _post(b"/predict", b'{"instances":["' + b"a" * (63 * MIB) + b'"]}')
    yield "escapes", _post(b"/predict", b'{"instances":["' + b"\\u00e4" * (10 * MIB) + b'"]}')
    yield "a broken text", _post(b"/predict", b'{"instances":["' + b"a" * (63 * MIB) + b'",]}')
    yield "brackets", _post(b"/predict", b"[" * (63 * MIB) + b'"instances":[1]')
    yield "brackets in a list", _post(b"/predict", b'{"instances":[' + b"[" * (63 * MIB))
    yield "quotes", _post(b"/predict", _instances(b'""', 10 * MIB))
    yield "blanks", _post(b"/predict", b'{"instances":[[0,0,0,0,0,0' + b" " * (63 * MIB) + b"]]}")
    yield "blanks outside", _post(b"/predict", b'{"instances":[[0]]' + b" " * (63 * MIB) + b"}")
    yield "digits", _post(b"/predict", b'{"instances":[[0,0,0,0,0,0.' + b"1" * (63 * MIB) + b"]]}")
    names = b",".join(b'"k%d":1' % at for at in range(400_000))
    yield "names", _post(b"/predict", b'{"instances":[[1]],' + names + b"}")
    encoded = base64.b64encode(random.Random(0).randbytes(40 * MIB))
    yield "base64", _post(b"/models/image/predict", _instances(b'{"b64":"%b"}' % encoded, 1))
    picture = base64.b64encode(png(3, 2) + bytes(20_000))
    yield "pictures", _post(b"/models/image/predict", _instances(b'{"b64":"%b"}' % picture, 2000))
    text = b'["' + b"a" * 19_990 + b'"]'
    yield "texts", _post(b"/models/text/predict", _instances(text, 2000))
    text = b'"' + "ä".encode() * 15_000 + b'"'
    yield "good texts", _post(b"/models/text/predict", _instances(text, 2000))
    for nearly in (b"tre", b"alse", b"ersionx", b"nstances'"):  # slow for the search of a word
        body = b'{"instances":["' + nearly * (63 * MIB // len(nearly)) + b'"]}'
        yield f"nearly {nearly.decode()}", _post(b"/predict", body)
    yield "a long infer", _post(b"/v2/models/linear/infer", b'{"inputs":["' + b"a" * (60 * MIB))
    row = b"[" + b",".join([b"0.123456789"] * _WIDE) + b"]"
    yield "numbers", _post(b"/models/wide/predict", _instances(row, 1200))


def _arrays() -> Iterator[tuple[str, Request]]:
    yield "no array", _post(b"/predict", bytes(64 * MIB), NPY)
    for name, array in (
        ("float64", np.zeros((2040, _WIDE))),
        ("uint8", np.zeros((2040, _WIDE), np.uint8)),
        ("by columns", np.zeros((_WIDE, 2040), np.float32).T),
        ("in the loop", np.zeros((30, _WIDE))),
    ):
        yield f"array: {name}", _post(b"/models/wide/predict", _npy(array), NPY)
    free = np.zeros((2, 8_000_000), np.float32)
    yield "array: two long rows", _post(b"/models/free/predict", _npy(free), NPY)
    yield "array: short bodies", _post(b"/models/free/predict", _npy(free[:, :130_000]), NPY)
    count = 90_000
    tensor = {
        "name": "words",
        "datatype": "BYTES",
        "shape": [count, 1],
        "parameters": {"binary_data_size": 4 * count},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    length = (b"Inference-Header-Content-Length", b"%d" % len(head))
    path = b"/v2/models/text/infer"
    yield "empty texts", Request(b"POST", path, [length], head + bytes(4 * count))
    raw = (b"Inference-Header-Content-Length", b"0")
    yield "a raw text", Request(b"POST", path, [raw], "ä".encode() * (30 * MIB))
    words = np.full((600, 1), "ä" * 20_000)
    yield "array: texts", _post(b"/models/text/predict", _npy(words), NPY)


def _tables() -> Iterator[tuple[str, Request]]:
    """Tables and files of arrays, good and bad."""
    csv, path = b"text/csv;header=absent", b"/models/text/predict"
    yield "CSV: texts", _post(path, (b"a" * 19_990 + b"\n") * 2000, csv)
    lines = b"application/jsonlines"
    for name, line in (("lists", b"[]\n"), ("empty lines", b"\n"), ("one line", b"[0,")):
        yield f"JSON Lines: {name}", _post(b"/predict", line * (15 * MIB // len(line)), lines)
    for name, byte in (("quotes", b'"'), ("commas", b","), ("lines", b"\n"), ("no text", b"\xff")):
        yield f"CSV: {name}", _post(b"/predict", byte * (60 * MIB), csv)
    for name, array in (
        ("wide", np.zeros((2000, _WIDE))),
        ("text", np.full((600, 1), "ä" * 19_000)),
    ):
        file = io.BytesIO()
        np.savez_compressed(file, x=array)
        model = b"text" if name == "text" else b"wide"
        body = file.getvalue()
        yield f"npz: {name}", _post(b"/models/%b/predict" % model, body, b"application/x-npz")


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _images() -> Iterator[tuple[str, Request]]:
    """Images of nearly 50 million pixels, of one colour."""
    from PIL import Image

    for mode, kind, side in (
        ("RGBA", "PNG", 7070),
        ("RGB", "PNG", 7070),
        ("L", "PNG", 7070),
        ("I;16", "PNG", 7070),
        ("RGB", "JPEG", 7070),
        ("RGBA", "WEBP", 4470),
        ("RGBA", "WEBP", 7070),
    ):
        colour = 1000 if mode == "I;16" else (10, 200, 30, 100)[: len(mode)] if len(mode) > 1 else 9
        file = io.BytesIO()
        Image.new(mode, (side, side), colour).save(file, kind)
        body = file.getvalue()
        yield f"{kind} {mode} {side}", _post(b"/models/photo/predict", body, b"image/png")
    junk = bytes(63 * MIB)
    yield "no image", _post(b"/models/image/predict", junk, b"image/png")
    yield "an image and more", _post(b"/models/image/predict", png(3, 2) + junk, b"image/png")


def _forms() -> Iterator[tuple[str, Request]]:
    path, part = b"/models/image/predict", b"--b\r\nContent-Disposition: form-data; name=a"
    file = part + b"; filename=a\r\n\r\n"
    many = b"".join(part + b"\r\n\r\n1\r\n" for _ in range(999))
    yield "parts", _post(path, many + b"--b--\r\n", FORM)
    yield (
        "part headers",
        _post(path, b"--b\r\n" + b"a:b\r\n" * 20_000 + b"\r\nx\r\n--b--\r\n", FORM),
    )
    yield "false ends", _post(path, file + b"\r\n--" * (15 * MIB) + b"\r\n--b--\r\n", FORM)
    yield "a long part", _post(path, file + bytes(63 * MIB) + b"\r\n--b--\r\n", FORM)
    field = part + b"\r\n\r\n" + "ä".encode() * (30 * MIB)
    yield "a long field", _post(path, field + b"\r\n--b--\r\n", FORM)


def _answers() -> Iterator[tuple[str, Request]]:
    """Requests whose answers are large, within the limit and beyond it."""
    rows = json.dumps({"instances": np.zeros((2048, FEATURES)).tolist()}).encode()
    for name, k in (("thousand", 250), ("thousand", 1000), ("many", 64), ("many", _MANY)):
        path = f"/models/{name}/predict?top_k={k}".encode()
        yield f"{k} classes a row of {name}", _post(path, rows)
    for name, count in (("thousand", 600), ("many", 30)):
        for outputs in (
            [{"name": each} for each in ("probabilities", "logits", "adjusted_logits")],
            [{"name": "probabilities", "parameters": {"binary_data": True}}],
            [{"name": "class_name"}],
            [{"name": "probabilities", "parameters": {"classification": 500}}],
        ):
            tensor = {
                "name": "x",
                "datatype": "FP32",
                "shape": [count, FEATURES],
                "data": [0.5] * (count * FEATURES),
            }
            document = {"inputs": [tensor], "outputs": outputs, "parameters": {"top_k": 500}}
            path = f"/v2/models/{name}/infer".encode()
            shown = outputs[0]["name"], len(outputs), "parameters" in outputs[0]
            yield f"outputs {shown} of {name}", _post(path, json.dumps(document).encode())


def _adjustments() -> Iterator[tuple[str, Request]]:
    row, path = [0.5] * FEATURES, b"/models/many/adjust"
    for name, rows, settings, top_k in (
        ("a row", 1, 1, 1),
        ("all classes", 1, 1, _MANY),
        ("many settings", 20, 50, 500),
        ("too many classes", 20, 50, _MANY),
    ):
        document = {
            "instances": [row] * rows,
            "settings": [{"tau": at / 50} for at in range(settings)],
            "parameters": {"top_k": top_k},
        }
        yield f"adjust: {name}", _post(path, json.dumps(document).encode())
    logits = b"[" + b",".join([b"0.123"] * _MANY) + b"]"
    document = b'{"settings":[{"tau":1}],"logits":[' + b",".join([logits] * 200) + b"]}"
    yield "adjust: logits", _post(path, document)


def _priors() -> Iterator[tuple[str, Request]]:
    head: list[tuple[bytes, bytes]] = [(b"Content-Type", JSON)]
    for name, body in (
        ("names", b'{"target":{' + b",".join(b'"c%d":1' % at for at in range(180_000)) + b"}}"),
        ("numbers", b'{"target":[' + b"1," * 390_000 + b"1]}"),
        ("escapes", b'{"comment":"' + b"\\u00e4" * (15 * MIB // 6) + b'","target":[1,2]}'),
        ("text", b'{"comment":"' + b"a" * (15 * MIB) + b'","target":[1,2]}'),
        ("a name", b'{"target":{"' + b"a" * (15 * MIB) + b'":1}}'),
        ("nulls", b'{"target":[' + b"null," * 380_000 + b"null]}"),
    ):
        yield f"prior: {name}", Request(b"PUT", b"/priors/a", head, body)
    inline = b",".join(b'"c%d":1' % at for at in range(10_000))
    for name, target in (
        ("unknown", b"{" + inline + b"}"),
        ("nearly known", b'{"class-0000x":1}'),
        ("long", b'{"' + b"class-000" * 10_000 + b'":1}'),
        ("all", b"[" + b"1," * (_MANY - 1) + b"1]"),
    ):
        document = b'{"instances":[[0,0,0,0,0,0]],"parameters":{"prior":{"target":%b}}}' % target
        yield f"inline prior: {name}", _post(b"/models/many/predict", document)


def _reads() -> Iterator[tuple[str, Request]]:
    """Requests for stored priors and pages of a model of many classes."""
    put = b'{"target":[' + b"1," * (_MANY - 1) + b"2]}"
    path = b"/models/many/priors/default"
    head = [(b"Content-Type", JSON)]
    yield "write a long prior", Request(b"PUT", path, head, put)
    for page in (
        b"/models/many",
        b"/models",
        b"/openapi.json",
        b"/metrics",
        b"/v2/models/many",
        b"/v2/models/many/config",
        b"/v2/models/many/stats",
        path,
        path + b"/revisions",
        path + b"/replicas",
        path + b"/estimate",
    ):
        yield f"read {page.decode()}", Request(b"GET", page, [], b"")
    yield "preview of many classes", Request(b"POST", path + b"/preview", head, put)


def _long_priors() -> Iterator[tuple[str, Request]]:
    """Requests that use priors of very many classes in every way that makes their vectors."""
    root, head = b"/models/vast/priors/", [(b"Content-Type", JSON)]
    numbers = b",".join(b"%d" % (1 + at % 7) for at in range(_VAST))
    row = [0.5] * FEATURES
    for name in (b"p0", b"p1", b"p2", b"p3"):
        body = b'{"target":[%b],"label_frequencies":[%b]}' % (numbers, numbers)
        yield f"vast: write {name.decode()}", Request(b"PUT", root + name, head, body)
    sites = {f"s{at}": f"p{at}" for at in range(4)}
    leads: dict[str, Any] = {"context": {"site": sites}, "target": "training"}
    rules = [{"hours": [0, 24], "prior": "p2"}]
    dated = {"schedule": {"time_zone": "UTC", "rules": rules}}
    for name, document in ((b"leads", leads), (b"dated", dated)):
        yield (
            f"vast: write {name.decode()}",
            Request(b"PUT", root + name, head, json.dumps(document).encode()),
        )
    for site in sites:
        led = {"prior": "leads", "context": {"site": site}}
        document = {"instances": [row], "parameters": led}
        yield (
            f"vast: predict for {site}",
            _post(b"/models/vast/predict", json.dumps(document).encode()),
        )
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, FEATURES], "data": row}
        outputs = [{"name": "class_index"}]
        parameters = {"prior": "leads", "context": f"site:{site}", "top_k": 2}
        document = {"inputs": [tensor], "outputs": outputs, "parameters": parameters}
        yield (
            f"vast: infer for {site}",
            _post(b"/v2/models/vast/infer", json.dumps(document).encode()),
        )
    document = {
        "instances": [row],
        "settings": [{"prior": "leads", "context": {"site": site}} for site in sites],
    }
    yield "vast: adjust", _post(b"/models/vast/adjust", json.dumps(document).encode())
    for prior in ("dated", "p0@1", "p1@>=1", "uniform", "training"):
        document = {"instances": [row], "parameters": {"prior": prior}}
        yield f"vast: {prior}", _post(b"/models/vast/predict", json.dumps(document).encode())
    many = json.dumps({"instances": [row] * 30}).encode()
    yield "vast: traffic", _post(b"/models/vast/predict?top_k=1", many)
    yield "vast: preview", Request(b"POST", root + b"p0/preview", head, b'{"prior":"p3"}')
    yield "vast: estimate", Request(b"GET", root + b"default/estimate", [], b"")
    adopt = root + b"default/estimate/adopt?force=1"
    yield "vast: adopt", Request(b"POST", adopt, head, b"")
    yield "vast: read", Request(b"GET", root + b"p1", [], b"")


def _short_bodies() -> Iterator[tuple[str, Request]]:
    """Bodies just short enough to be parsed on the event loop."""
    for item in (b"[]", b"{}", b"[[]]", b'""', b"null", b"1", b"1e5", b"[1]", b'{"b64":""}'):
        body = _instances(item, 127_000 // (len(item) + 1))
        yield f"short: {item.decode()}", _post(b"/predict", body)
    deep = b"[" * 30 + b"1" + b"]" * 30
    yield "short: deep", _post(b"/predict", _instances(deep, 2000))
    columns = b",".join(b'"k%d":[1]' % at for at in range(9000))
    yield "short: columns", _post(b"/predict", b'{"inputs":{' + columns + b"}}")
    yield "query", _post(b"/predict?" + b"&".join([b"tau=1"] * 5000), b"{}")
    yield "headers", Request(b"POST", b"/predict", [(b"a", b"b")] * 9000, b"{}")
    yield "path", Request(b"GET", b"/" + b"%41/" * 8000, [], b"")
    yield (
        "members",
        Request(b"POST", b"/predict", [(b"Content-Encoding", b"gzip")], gzip.compress(b"") * 9000),
    )
    deflated = [(b"Content-Type", JSON), (b"Content-Encoding", b"deflate")]
    yield "deflate", Request(b"POST", b"/predict", deflated, zlib.compress(bytes(64 * MIB)))


def _streams() -> Iterator[tuple[str, bytes]]:
    """Connections that carry very many small requests or chunks."""
    good = Request(b"POST", b"/predict", [], _instances(b"[0,0,0,0,0,0]", 1)).whole()
    chunked = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    upgrade = b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    yield "pipelined: cold", b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 5000
    yield "pipelined: empty", Request(b"POST", b"/predict", [], b"").whole() * 5000
    yield "pipelined: good", good * 5000
    yield "pipelined: upgrades", upgrade * 2000
    yield "chunks of a byte", chunked + b"1\r\n \r\n" * MIB + b"0\r\n\r\n"
    yield "chunk extensions", chunked + b"1;a=b\r\n \r\n" * (MIB // 2) + b"0\r\n\r\n"
    yield "trailers", chunked + b"0\r\n" + b"a:b\r\n" * 12_000 + b"\r\n"
    yield "empty lines", b"\r\n" * MIB + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def _packed(path: bytes, body: bytes) -> Request:
    headers = [(b"Content-Type", JSON), (b"Content-Encoding", b"gzip")]
    return Request(b"POST", path, headers, gzip.compress(body, 5))
