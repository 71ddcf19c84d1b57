"""Images and texts as bodies, compared with bare decoding and tokenizing in the same run.

    python -m benchmarks.speed.bodies [--rounds 5] [--seconds 2]
        [--out runs/benchmarks/bodies.json]

The service runs with one worker and one graph thread. Its image model takes 3 × 64 × 64 and has one
convolution of a single place, so that decoding a JPEG of 640 × 480 is nearly all of the work. Its
text model adds up embeddings. wrk sends, in turns with the bare loops:

    jpeg       one JPEG a request, by 8 and by 64 connections
    multipart  the same file in a form
    base64     the same file as {"b64": …} in JSON
    texts      256 texts of 60 words a request, by 4 connections

Wall time says little where wrk, the service and other programs share the cores. So the figures are
CPU time: of the event loop's thread, and of all other threads of the service, which decode,
tokenize and run the graph. Ratios are medians of the ratios of each round.

    of bare    CPU time of the bare loop over that of the other threads: the share of Pillow's (or
               tokenizers') own rate that all cores but the loop's would reach
    rate       requests per second, over that of bare loops on all cores, without wrk

Cores that share a processor's units are slower together, so the bare loop runs on all of them.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parents[3]))

from base64 import b64encode

from benchmarks.rig.processes import Process, service, wrk
from service.contract.publication import publish

TEXTS, WORDS_A_TEXT = 256, 60
_TICK = os.sysconf("SC_CLK_TCK")
IMAGE_INPUT = {
    "name": "x",
    "kind": "image",
    "shape": [None, 3, 64, 64],
    "dtype": "float32",
    "size": [64, 64],
    "color": "RGB",
    "resize": "stretch",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "layout": "NCHW",
}
TEXT_INPUT = {
    "name": "text",
    "kind": "text",
    "shape": [None, 1],
    "dtype": "string",
    "tokenizer": {"file": "tokenizer.json", "inputs": {"input_ids": "ids"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as folder:
        lines = measure(Path(folder), given.rounds, given.seconds)
    for line in lines:
        print(
            f"{line['name']:14s}{line['loop_us']:9.0f}{line['other_us']:10.0f}{line['bare_us']:9.0f}"
            f"{line['of_bare']:9.2f}{line['rate']:7.2f}{line['errors']:7.0f}"
        )
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(lines, indent=2) + "\n")


def measure(folder: Path, rounds: int, seconds: int) -> list[dict[str, Any]]:
    """The lines of the table."""
    publish_images(folder / "models")
    publish_texts(folder / "models")
    picture, words = jpeg(), texts()
    tokenizer = Tokenizer.from_file(str(folder / "models/texts/1/tokenizer.json"))
    tokenizer.enable_truncation(max_length=512)
    tokenizer.enable_padding()
    pillow = bare_decoder(picture)
    form = b"--b\r\nContent-Disposition: form-data; name=f; filename=f.jpg\r\n\r\n%b\r\n--b--\r\n"
    json_type = {"content-type": "application/json"}
    one = {"instances": [{"b64": b64encode(picture).decode()}]}
    images, of_texts = "/models/images/predict", "/models/texts/predict?top_k=1"
    kinds: dict[str, tuple[str, bytes, dict[str, str], int, Callable[[], object]]] = {
        "jpeg 8": (images, picture, {"content-type": "image/jpeg"}, 8, pillow),
        "jpeg 64": (images, picture, {"content-type": "image/jpeg"}, 64, pillow),
        "multipart 8": (
            images,
            form % picture,
            {"content-type": "multipart/form-data; boundary=b"},
            8,
            pillow,
        ),
        "base64 8": (images, orjson.dumps(one), json_type, 8, pillow),
        "texts 4": (
            of_texts,
            orjson.dumps({"instances": words}),
            json_type,
            4,
            lambda: tokenizer.encode_batch(words),
        ),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    with service(folder / "models", "--default-model", "images") as server:
        for kind in kinds.values():  # warm
            load(server, kind, 1, folder)
        for _ in range(rounds):
            for name, kind in kinds.items():
                # tokenizers uses all cores itself
                cores = 1 if name.startswith("texts") else os.cpu_count() or 1
                bare_us, bare_rate = bare(kind[4], seconds / 2, cores)
                line = load(server, kind, seconds, folder)
                line |= {"bare_us": bare_us, "rate": line["per_second"] / bare_rate}
                line["of_bare"] = bare_us / line["other_us"]
                found[name].append(line)
    print(f"JPEG of {len(picture)} bytes; µs of CPU a request", file=sys.stderr)
    print(
        f"{'':14s}{'loop':>9s}{'others':>10s}{'bare':>9s}{'of bare':>9s}{'rate':>7s}{'errors':>7s}"
    )
    return [
        {"name": name, **{key: statistics.median(r[key] for r in each) for key in each[0]}}
        for name, each in found.items()
    ]


def load(
    server: Process,
    kind: tuple[str, bytes, dict[str, str], int, Callable[[], object]],
    seconds: float,
    folder: Path,
) -> dict[str, float]:
    """CPU time of a request under load, of the loop's thread and of the others, in µs."""
    path, body, headers, connections, _ = kind
    before = cpu_of(server.popen.pid)
    got = wrk(server, path, body, headers, connections=connections, seconds=seconds, folder=folder)
    loop, others = (b - a for a, b in zip(before, cpu_of(server.popen.pid), strict=True))
    requests = max(1, got["requests"])
    return {
        "loop_us": 1e6 * loop / requests,
        "other_us": 1e6 * others / requests,
        "per_second": got["per_second"],
        "errors": got["refused"] + got["errors"],
    }


def cpu_of(pid: int) -> tuple[float, float]:
    """CPU seconds of a process: of its first thread, which runs the event loop, and of the rest."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    whole = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    loop = (int(fields[11]) + int(fields[12])) / _TICK
    return loop, (int(whole[11]) + int(whole[12])) / _TICK - loop


def bare(call: Callable[[], object], seconds: float, cores: int) -> tuple[float, float]:
    """Run bare loops on several cores at once: (CPU time of a call in µs, calls per second
    together).
    """
    context = multiprocessing.get_context("fork")
    with context.Pool(cores, initializer=_give, initargs=(call,)) as pool:
        each = pool.starmap(_loop, [(seconds,)] * cores, chunksize=1)
    return statistics.mean(cpu for cpu, _ in each), sum(rate for _, rate in each)


_given: list[Callable[[], object]] = []


def _give(call: Callable[[], object]) -> None:
    _given[:] = [call]


def _loop(seconds: float) -> tuple[float, float]:
    call = _given[0]
    calls, begun, cpu = 0, time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - begun) < seconds:
        call()
        calls += 1
    return 1e6 * (time.process_time() - cpu) / calls, calls / passed


def bare_decoder(picture: bytes) -> Callable[[], object]:
    """Decode as a careful script would: draft mode, resize, normalise, channels first."""

    def decode() -> np.ndarray:
        image = Image.open(io.BytesIO(picture))
        image.draft("RGB", (128, 128))
        small = image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        pixels = np.asarray(small).astype(np.float32)
        pixels = (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))

    return decode


def jpeg() -> bytes:
    """A JPEG of 640 × 480 with as much detail as a photograph: about 60 kB."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.float32)
    noisy = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=85)
    return file.getvalue()


def texts() -> list[str]:
    """Texts of words that the tokenizer knows."""
    draw = random.Random(0)
    return [" ".join(draw.choices(_WORDS, k=WORDS_A_TEXT)) for _ in range(TEXTS)]


_WORDS = [
    f"{a}{b}{c}" for a in ("be", "ko", "mi", "tra") for b in "aeiou" for c in ("n", "st", "ll")
]


def publish_images(folder: Path) -> None:
    """Publish a model that averages the pixels and has one 1 × 1 convolution: next to no work."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(10, 3, 1, 1)).astype(np.float32), "w"),
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Flatten", ["c"], ["logits"]),
    ]
    _publish(folder, "images", nodes, weights, ("x", TensorProto.FLOAT, IMAGE_INPUT["shape"]))


def publish_texts(folder: Path) -> None:
    """Publish a model with a tokenizer of subwords, whose logits are the sum of the tokens'
    embeddings.
    """
    pieces = sorted({_WORDS[i][:k] for i in range(len(_WORDS)) for k in (2, 3)})
    tails = sorted({"##" + word[k:] for word in _WORDS for k in (2, 3)})
    known = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", *pieces, *tails])}
    tokenizer = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    table = np.random.default_rng(0).normal(size=(len(known), 10)).astype(np.float32)
    table[0] = 0  # padding adds nothing: else the service would run each row alone
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["e"], axis=0),
        helper.make_node("ReduceSum", ["e", "axis"], ["logits"], keepdims=0),
    ]
    weights = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([1]), "axis"),
    ]
    _publish(
        folder,
        "texts",
        nodes,
        weights,
        ("input_ids", TensorProto.INT64, [None, None]),
        tokenizer=tokenizer,
    )


def _publish(
    folder: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    given: tuple[str, int, Any],
    *,
    tokenizer: Tokenizer | None = None,
) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        name,
        [value(given[0], given[1], given[2])],
        [value("logits", TensorProto.FLOAT, [None, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def write(at: Path) -> None:
        onnx.save(model, at / "model.onnx")
        if tokenizer is not None:
            tokenizer.save(str(at / "tokenizer.json"))

    publish(
        folder,
        name,
        fields={
            "class_names": [f"class-{i}" for i in range(10)],
            "class_counts": [float(100 - 9 * i) for i in range(10)],
            "loss_tau": 0.0,
            "temperature": 1.0,
            "input": IMAGE_INPUT if tokenizer is None else TEXT_INPUT,
            "output": {"name": "logits", "kind": "logits"},
        },
        write_files=write,
    )


if __name__ == "__main__":
    main()
