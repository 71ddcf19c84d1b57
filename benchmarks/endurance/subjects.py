"""The seven small models of the mixed traffic, one for each kind of input: their priors, and their
answers by the formula in float64.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from service.contract.adjustment import adjust_logits, log_source_prior, log_target_prior, softmax
from tests.support.faulty_models import LOOKUP_LOGITS, publish_lookup, publish_root
from tests.support.small_models import (
    COUNTS,
    FEATURES,
    TEXT_LOGITS,
    linear_model,
    publish_model,
    publish_trio,
    weights,
)

Rows = Any
"""Rows: numbers [n, …] or strings [n]."""
MANY = 100
MANY_COUNTS = [max(1, round(1000 * 0.93**i)) for i in range(MANY)]
WORDS = ("", "a", "b", "ö", "elsewhere")
TEXT_ROW = {"a": 1, "b": 2, "ö": 3}


@dataclass(frozen=True)
class Subject:
    """One version of a model: rows that it accepts, a fault that it cannot score, and its
    logits.
    """

    model: str
    version: int
    input: str
    datatype: str
    class_names: list[str]
    counts: list[int]
    draw: Callable[[np.random.Generator, int], Rows]
    logits: Callable[[Rows], np.ndarray]
    temperature: float = 1.0
    spoil: Callable[[Rows, int], None] | None = None
    """Makes one row unscorable, in place."""

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    def scores(self, rows: Rows, settings: "list[Setting]") -> "Scores":
        """Return the expected scores of rows. settings: one per row, or one for all."""
        logits = np.asarray(self.logits(rows), np.float64)
        offsets = np.stack([each.offset(self) for each in settings])
        taus = np.array([[each.tau] for each in settings])
        common = {"log_source_prior": 0.0, "temperature": self.temperature}
        adjusted = adjust_logits(logits, log_target_prior=offsets, tau=taus, **common)
        unadjusted = adjust_logits(logits, log_target_prior=offsets, tau=0.0, **common)
        return Scores(logits, adjusted, softmax(adjusted), softmax(unadjusted))


@dataclass(frozen=True)
class Scores:
    """The expected scores of all classes, [n, C], for each row."""

    logits: np.ndarray
    adjusted_logits: np.ndarray
    probabilities: np.ndarray
    unadjusted: np.ndarray


@dataclass(frozen=True)
class Setting:
    """A tau and a prior.

    given: the prior in the request. named: the prior in the answer. None: the default.
    """

    tau: float
    given: str | dict[str, Any] | None
    named: tuple[str | None, int]
    frequencies: list[float] | None
    target: list[float] | str

    def offset(self, subject: Subject) -> np.ndarray:
        """Return [C] log ρ − log σ, which the formula adds at tau 1."""
        frequencies = subject.counts if self.frequencies is None else self.frequencies
        target = {"uniform": np.ones(subject.classes), "training": frequencies}
        wanted = target[self.target] if isinstance(self.target, str) else self.target
        return log_target_prior(wanted) - log_source_prior(frequencies, loss_tau=0)


def _normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, FEATURES)).astype(np.float32)


def _linear(classes: int, seed: int) -> Callable[[Rows], np.ndarray]:
    w, b = weights(FEATURES, classes, seed)
    return lambda rows: rows.astype(np.float64) @ w + b


def _sqrt(rows: Rows) -> np.ndarray:
    w, b = weights(FEATURES)
    return np.sqrt(rows.astype(np.float64)) @ w + b


def _negative(rows: Rows, at: int) -> None:
    rows[at, at % FEATURES] = -1.0


def _outside(rows: Rows, at: int) -> None:
    rows[at, 0] = 99


def _words(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.array(WORDS)[rng.integers(0, len(WORDS), n)]


def _pixels(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 256, (n, 2, 3, 3)).astype(np.uint8)


_FIVE = [f"class-{i}" for i in range(len(COUNTS))]
_HUNDRED = [f"class-{i}" for i in range(MANY)]
SUBJECTS = (
    Subject("linear", 1, "x", "FP32", _FIVE, COUNTS, _normal, _linear(5, 0)),
    Subject("linear", 2, "x", "FP32", _FIVE, COUNTS, _normal, _linear(5, 5), temperature=2.0),
    Subject("many", 1, "x", "FP32", _HUNDRED, MANY_COUNTS, _normal, _linear(MANY, 3)),
    Subject(
        "sqrt",
        1,
        "x",
        "FP32",
        _FIVE,
        COUNTS,
        lambda rng, n: np.abs(_normal(rng, n)),
        _sqrt,
        spoil=_negative,
    ),
    Subject(
        "lookup",
        1,
        "x",
        "INT64",
        _FIVE,
        COUNTS,
        lambda rng, n: rng.integers(0, 10, (n, 1)),
        lambda rows: LOOKUP_LOGITS[rows[:, 0]],
        spoil=_outside,
    ),
    Subject(
        "text",
        1,
        "words",
        "BYTES",
        ["x", "y", "z"],
        [100, 10, 1],
        _words,
        lambda rows: TEXT_LOGITS[[TEXT_ROW.get(word, 0) for word in rows]],
    ),
    Subject(
        "image",
        1,
        "pixels",
        "UINT8",
        ["red", "green", "blue"],
        [100, 10, 1],
        _pixels,
        lambda rows: rows.mean(axis=(1, 2)) / 255,
    ),
)


def publish_models(models: Path) -> None:
    """Publish every subject in the repository `models`."""
    publish_trio(models)
    publish_model(models, "linear", model=linear_model(seed=5), temperature=2.0)
    wide = linear_model(classes=MANY, seed=3)
    publish_model(models, "many", model=wide, classes=MANY, class_counts=MANY_COUNTS)
    publish_root(models, FEATURES)
    publish_lookup(models)


def stored_priors(subject: Subject) -> dict[str, list[dict[str, Any]]]:
    """Return the revisions of each stored prior of a model, in the order of their PUTs."""
    count = subject.classes
    return {
        "shop": [
            {"target": [1.0 + i for i in range(count)]},
            {"target": [1.0 + count - i for i in range(count)]},
        ],
        "zeros": [{"target": [float(i % 2) for i in range(count)]}],
        "field": [{"label_frequencies": [2.0 + i % 3 for i in range(count)], "target": "training"}],
    }


def put_priors(url: str) -> None:
    """Store every prior of every model, once."""
    with httpx.Client(base_url=url, timeout=30) as client:
        for subject in {each.model: each for each in SUBJECTS}.values():
            for name, revisions in stored_priors(subject).items():
                for body in revisions:
                    path = f"/models/{subject.model}/priors/{name}"
                    client.put(path, json=body).raise_for_status()


def png(pixels: np.ndarray) -> bytes:
    """Pixels encoded as a PNG image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
