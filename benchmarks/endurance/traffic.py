"""Requests of every kind, drawn from a seed: sizes, tau, priors, top_k, models, bodies, deadlines,
clients that hang up, and faults.

    for ask in itertools.islice(asks(seed=1), 2000): …

`publish_models` and `put_priors` (subjects.py) prepare the service. `drive` (client.py) sends many
requests at once, and `fault_of` (answers.py) compares an answer with the formula. A seed always
gives the same requests.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

from benchmarks.endurance.subjects import SUBJECTS, Scores, Setting, Subject, png, stored_priors

OIP_OUTPUTS = (
    "probabilities",
    "adjusted_logits",
    "logits",
    "class_index",
    "class_probability",
    "class_name",
)
_BINARY = {
    "FP32": "<f4",
    "INT64": "<i8",
    "UINT8": "u1",
}


@dataclass
class Ask:
    """A request and its expected answer.

    scores are None where the answer must be an error with one of `statuses`.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    subject: Subject
    settings: list[Setting]
    top_k: int | None
    statuses: tuple[int, ...] = (200,)
    scores: Scores | None = None
    outputs: dict[str, bool] = field(default_factory=dict)
    """For each output of the Open Inference Protocol: whether it is returned as binary data."""
    named_row: int | None = None
    """The index of the row that the error must name; None if it names none."""
    leaves: str | None = None
    """When the client hangs up: "within" the body or "after" it; None: it waits for the answer."""


def asks(seed: int) -> Iterator[Ask]:
    """Yield requests without end; a seed always gives the same ones."""
    rng = np.random.default_rng(seed)
    while True:
        yield draw(rng)


def draw(rng: np.random.Generator) -> Ask:
    """Draw one request."""
    subject = _one_of(rng, SUBJECTS)
    count = int(_one_of(rng, (1, 1, 1, 2, 3, 5, 17, 40, 90)))
    if subject.model == "image":
        count = min(count, 5)
    rows = subject.draw(rng, count)
    ask = (_oip if rng.random() < 0.4 else _native)(rng, subject, rows)
    ask.scores = subject.scores(rows, ask.settings)
    fate = rng.random()
    if fate < 0.06:
        ask.leaves = "within" if fate < 0.02 else "after"
    elif fate < 0.12:
        ask.headers["x-request-timeout-ms"] = str(_one_of(rng, (1, 2, 5, 60_000)))
        ask.statuses = (200, 504)
    elif fate < 0.16:
        _refused(rng, ask)
    return ask


def _one_of(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _tau(rng: np.random.Generator) -> float | None:
    return _one_of(rng, (None, 0.0, 1.0, 1e-6, 10.0, round(float(rng.uniform(0, 3)), 3)))


def _prior(rng: np.random.Generator, subject: Subject) -> dict[str, Any]:
    """Draw the members of a Setting except tau."""
    kind = _one_of(rng, ("none", "uniform", "training", "stored", "stored", "pinned", "inline"))
    if kind == "none":
        return {"given": None, "named": ("default", 0), "frequencies": None, "target": "uniform"}
    if kind in {"uniform", "training"}:
        return {"given": kind, "named": (kind, 0), "frequencies": None, "target": kind}
    if kind == "inline":
        target = (rng.integers(0, 4, subject.classes) * 1.0).tolist()
        target[int(rng.integers(subject.classes))] = 1.0  # not all zeros
        body = {"target": target}
        if rng.random() < 0.5:
            body["label_frequencies"] = rng.uniform(1, 100, subject.classes).round(2).tolist()
        return {"given": body, "named": (None, 0), **_vectors(body)}
    stored = stored_priors(subject)
    name = _one_of(rng, sorted(stored))
    revision = newest = len(stored[name])
    given = _one_of(rng, (name, f"{name}@>={newest}"))
    if kind == "pinned":
        revision = int(rng.integers(1, newest + 1))
        given = f"{name}@{revision}"
    return {"given": given, "named": (name, revision), **_vectors(stored[name][revision - 1])}


def _vectors(body: dict[str, Any]) -> dict[str, Any]:
    return {"frequencies": body.get("label_frequencies"), "target": body["target"]}


def _setting(rng: np.random.Generator, subject: Subject) -> tuple[Setting, dict[str, Any]]:
    """Draw a setting for all rows, and the query parameters that select it."""
    tau = _tau(rng)
    setting = Setting(1.0 if tau is None else tau, **_prior(rng, subject))
    given = {"tau": tau, "prior": setting.given}
    return setting, {name: value for name, value in given.items() if value is not None}


def _query(parameters: dict[str, Any]) -> str:
    texts = (
        f"{name}={quote(orjson.dumps(value) if isinstance(value, dict) else str(value))}"
        for name, value in parameters.items()
    )
    return "?" + "&".join(texts) if parameters else ""


def _native(rng: np.random.Generator, subject: Subject, rows: Any) -> Ask:
    """Make a request to /models/{model}/predict with a body of JSON or .npy."""
    setting, parameters = _setting(rng, subject)
    top_k = _one_of(
        rng, (None, None, 1, subject.classes, int(rng.integers(1, subject.classes + 1)))
    )
    parameters |= {"version": subject.version} | ({} if top_k is None else {"top_k": top_k})
    path = f"/models/{subject.model}/predict"
    if rng.random() < 0.5:
        file = io.BytesIO()
        np.save(file, rows)
        headers = {"content-type": "application/x-npy"}
        return Ask(path + _query(parameters), headers, file.getvalue(), subject, [setting], top_k)
    document: dict[str, Any] = {"instances": rows.tolist()}
    if subject.model == "image" and rng.random() < 0.5:
        document["instances"] = [{"b64": base64.b64encode(png(each)).decode()} for each in rows]
    if rng.random() < 0.5:
        document["parameters"], parameters = parameters, {}
    headers = {"content-type": "application/json"}
    body = orjson.dumps(document)
    return Ask(path + _query(parameters), headers, body, subject, [setting], top_k)


def _oip(rng: np.random.Generator, subject: Subject, rows: Any) -> Ask:
    """Make an Open Inference Protocol request, with a setting for all rows or one per row."""
    binary = bool(rng.random() < 0.5)
    tensors: list[tuple[str, str, Any]] = [(subject.input, subject.datatype, rows)]
    setting, parameters = _setting(rng, subject)
    settings = [setting]
    if rng.random() < 0.4:
        few = [_prior(rng, subject) for _ in range(min(3, len(rows)))]
        of_row = rng.integers(0, len(few), len(rows))
        taus = np.array([_tau(rng) or 0.0 for _ in rows], np.float32)
        settings = [
            Setting(float(tau), **{**few[at], "given": few[at]["given"] or "default"})
            for tau, at in zip(taus, of_row, strict=True)
        ]
        texts = [
            g if isinstance(g := each.given, str) else orjson.dumps(g).decode() for each in settings
        ]
        tensors += [("tau", "FP32", taus), ("prior", "BYTES", texts)]
        parameters = {}
    top_k = int(rng.integers(1, subject.classes + 1))
    picked = [name for name in OIP_OUTPUTS if rng.random() < 0.4] or ["probabilities"]
    outputs = {name: bool(rng.random() < 0.5) for name in picked}
    entries, blobs = [], []
    for name, datatype, values in tensors:
        entry, blob = _tensor(name, datatype, values, binary=binary)
        entries.append(entry)
        blobs.append(blob)
    document = {
        "inputs": entries,
        "outputs": [{"name": n, "parameters": {"binary_data": b}} for n, b in outputs.items()],
        "parameters": {**parameters, "top_k": top_k},
    }
    header = orjson.dumps(document)
    headers = {"inference-header-content-length": str(len(header))} if binary else {}
    path = f"/v2/models/{subject.model}/versions/{subject.version}/infer"
    body = b"".join([header, *blobs])
    return Ask(path, headers, body, subject, settings, top_k, outputs=outputs)


def _tensor(name: str, datatype: str, values: Any, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """An entry of `inputs` and its binary data."""
    shape = list(np.shape(values))
    shape = [shape[0], 1] if len(shape) == 1 else shape
    entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    if not binary:
        return {**entry, "data": np.asarray(values).ravel().tolist()}, b""
    if datatype == "BYTES":
        texts = [str(text).encode() for text in values]
        blob = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    else:
        blob = np.ascontiguousarray(values, _BINARY[datatype]).tobytes()
    return {**entry, "parameters": {"binary_data_size": len(blob)}}, blob


def _refused(rng: np.random.Generator, ask: Ask) -> None:
    """Turn the request into an invalid one, in place."""
    subject, ask.scores = ask.subject, None
    if subject.spoil is not None and rng.random() < 0.7:
        rows = subject.draw(rng, 4)
        ask.named_row = int(rng.integers(4))
        subject.spoil(rows, ask.named_row)
        ask.path, ask.headers = f"/models/{subject.model}/predict", {}
        ask.body, ask.statuses = orjson.dumps({"instances": rows.tolist()}), (422,)
        return
    wrong = _one_of(rng, ("cut", "prior", "version", "tau"))
    if wrong == "cut":
        ask.body, ask.statuses = ask.body[: len(ask.body) // 2], (400,)
        ask.headers.pop("inference-header-content-length", None)
        return
    instances = subject.draw(rng, 1).tolist()
    ask.path, ask.headers = f"/models/{subject.model}/predict", {}
    parameters = {"prior": "nobody", "version": 99, "tau": -1}
    ask.body = orjson.dumps({"instances": instances, "parameters": {wrong: parameters[wrong]}})
    ask.statuses = (422,) if wrong == "tau" else (404,)
