"""Compares the answers to mixed traffic with the formula."""

from typing import Any

import numpy as np
import orjson

from benchmarks.endurance.traffic import Ask

TOLERANCE = 1e-5
"""Absolute tolerance of probabilities. That of logits is relative, and ten times as large."""
_DTYPES = {"FP32": "<f4", "INT64": "<i8"}


def fault_of(ask: Ask, status: int, headers: dict[str, str], body: bytes) -> str | None:
    """What is wrong with an answer, in words; None when nothing is."""
    if status not in ask.statuses:
        return f"{ask.path} answered {status} instead of {ask.statuses}: {body[:300]!r}"
    try:
        if status != 200:
            _check_problem(ask, status, orjson.loads(body))
        elif ask.path.startswith("/v2/"):
            _check_oip(ask, headers, body)
        else:
            _check_native(ask, orjson.loads(body))
    except AssertionError as error:
        return f"{ask.path} ({ask.settings[0]}): {error}"
    return None


def _same(found: Any, wanted: Any, what: str) -> None:
    assert found == wanted, f"{what} is {found!r}; expected {wanted!r}"


def _close(found: Any, wanted: Any, what: str, *, relative: bool = False) -> None:
    tolerances = {"rtol": 1e-4, "atol": 1e-4} if relative else {"rtol": 0, "atol": TOLERANCE}
    assert np.allclose(found, wanted, **tolerances), f"{what} is {found}; expected {wanted}"


def _check_problem(ask: Ask, status: int, problem: dict[str, Any]) -> None:
    _same(problem["status"], status, "status")
    if ask.named_row is not None:
        _same(problem["detail"].startswith(f"instance {ask.named_row}:"), True, problem["detail"])


def _check_native(ask: Ask, answer: dict[str, Any]) -> None:
    subject, setting, scores = ask.subject, ask.settings[0], ask.scores
    assert scores is not None
    _same((answer["model"], answer["version"]), (subject.model, subject.version), "model")
    _same(answer["tau"], setting.tau, "tau")
    _same((answer["prior"]["name"], answer["prior"]["revision"]), setting.named, "prior")
    predictions = answer["predictions"]
    _same(len(predictions), len(scores.probabilities), "predictions")
    k = min(5, subject.classes) if ask.top_k is None else ask.top_k
    for row, each in enumerate(predictions):
        top = each["top"]
        _same((each["label"], each["index"]), (top[0]["label"], top[0]["index"]), "the best")
        index = [entry["index"] for entry in top]
        _check_names(ask, index, [entry["label"] for entry in top])
        _check_ranked(ask, row, index, k)
        chances = [entry["probability"] for entry in top]
        _close(chances, scores.probabilities[row, index], f"row {row}")
        plain, wanted = each["unadjusted"], scores.unadjusted[row]
        _check_names(ask, [plain["index"]], [plain["label"]])
        _close(plain["probability"], wanted[plain["index"]], f"unadjusted row {row}")
        _close(plain["probability"], wanted.max(), f"unadjusted row {row}")


def _check_names(ask: Ask, index: list[int], names: list[str]) -> None:
    _same(names, [ask.subject.class_names[i] for i in index], "labels")


def _check_ranked(ask: Ask, row: int, index: list[int], k: int) -> None:
    """Check the k best classes, best first. Nearly equal classes may be in either order."""
    assert ask.scores is not None
    wanted = ask.scores.probabilities[row]
    _same(len(set(index)), k, "the number of classes")
    _close(wanted[index], np.sort(wanted)[::-1][:k], f"ranking of row {row}")


def _check_oip(ask: Ask, headers: dict[str, str], body: bytes) -> None:
    subject, scores = ask.subject, ask.scores
    assert scores is not None
    length = int(headers.get("inference-header-content-length", len(body)))
    answer = orjson.loads(body[:length])
    version = (answer["model_name"], answer["model_version"])
    _same(version, (subject.model, str(subject.version)), "model")
    if len(ask.settings) == 1 and "prior" in answer["parameters"]:
        name, revision = ask.settings[0].named
        parameters = answer["parameters"]
        _same(
            (parameters["prior"], parameters["prior_revision"]),
            (name or "inline", revision),
            "prior",
        )
    outputs = _outputs(answer, body[length:])
    _same(list(outputs), list(ask.outputs), "outputs")
    for name in ("probabilities", "adjusted_logits", "logits"):
        if name in outputs:
            _close(outputs[name], getattr(scores, name), name, relative=name != "probabilities")
    index = outputs.get("class_index")
    for row in range(len(scores.logits) if index is not None else 0):
        assert ask.top_k is not None
        _check_ranked(ask, row, index[row].tolist(), ask.top_k)
    if index is not None and "class_name" in outputs:
        for each, names in zip(index.tolist(), outputs["class_name"], strict=True):
            _check_names(ask, each, names)
    if "class_probability" in outputs:
        ordered = np.sort(scores.probabilities)[:, ::-1][:, : ask.top_k]
        _close(outputs["class_probability"], ordered, "class_probability")


def _outputs(answer: dict[str, Any], blob: bytes) -> dict[str, Any]:
    """The outputs by name, as arrays of the shape that the answer states.

    Class names become nested lists.
    """
    found: dict[str, Any] = {}
    at = 0
    for each in answer["outputs"]:
        values: Any = each.get("data")
        if values is None:
            size = each["parameters"]["binary_data_size"]
            part, at = blob[at : at + size], at + size
            names = each["datatype"] == "BYTES"
            values = _texts(part) if names else np.frombuffer(part, _DTYPES[each["datatype"]])
        found[each["name"]] = np.array(values).reshape(each["shape"])
        if each["datatype"] == "BYTES":
            found[each["name"]] = found[each["name"]].tolist()
    _same(at, len(blob), "the bytes of the outputs")
    return found


def _texts(part: bytes) -> list[str]:
    texts, at = [], 0
    while at < len(part):
        size = int.from_bytes(part[at : at + 4], "little")
        texts.append(part[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return texts
