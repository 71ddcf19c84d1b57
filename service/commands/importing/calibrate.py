"""Fits decision scores to probabilities on labelled rows: one scale and a bias for each class.

For two classes this is Platt scaling (Platt, 1999), for more it is vector scaling with one shared
scale (Guo et al., 2017). The softmax of the result is a posterior under the class mix of the
labelled rows. Their class counts therefore become those of the model.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.commands.importing.refusal import ImportRefused
from service.contract.adjustment import softmax
from service.contract.inputs.columns import records
from service.contract.inputs.spec import InputSpec
from service.contract.nearest import did_you_mean

Array = NDArray[Any]
_STEPS = 100
PROBABILITIES = "probabilities"
"""The array of example rows that holds the library's own answers."""
_SUM_TOLERANCE = 1e-3
_RIDGE = 1e-6
"""Weight of a penalty on the mean of the biases, which does not affect any probability."""


@dataclass(frozen=True)
class Fitted:
    """The result of a fit: logits are scale · score + bias[c].

    class_counts: labelled rows of each class [C]. nll: the mean negative log-likelihood after the
    fit.
    """

    scale: float
    bias: list[float]
    class_counts: list[float]
    nll: float
    error: float

    def calibration(self) -> dict[str, list[float]]:
        """`output.calibration` of model.json."""
        return {"scale": [self.scale] * len(self.bias), "bias": self.bias}


def check_flags(flags: argparse.Namespace) -> None:
    """Raise ImportRefused unless `--output-kind scores` and `--calibrate` come together."""
    if (flags.output_kind == "scores") != (flags.calibrate is not None):
        raise ImportRefused(
            "--output-kind scores and --calibrate DATA.npz must be given together: decision scores "
            "become probabilities by a fit to labelled rows"
        )


def labelled_rows(path: Path, spec: InputSpec, class_names: list[str]) -> tuple[Array, Array]:
    """Rows [n, …] and their class indices [n], from an .npz file. Raises ImportRefused.

    The file holds `y` (class indices or names) and `x`, or for a model of several inputs one array
    per input instead of `x`.
    """
    where = f"--calibrate {path}"
    rows, labels = rows_of_file(path, spec, class_names, where=where, labelled=True)
    assert labels is not None
    counts = np.bincount(labels, minlength=len(class_names))
    if not counts.all():
        name = class_names[int(counts.argmin())]
        raise ImportRefused(
            f"{where}: class '{name}' has no labelled row; every class needs at least one"
        )
    return rows, labels


def rows_of_file(
    path: Path, spec: InputSpec, class_names: list[str], *, where: str, labelled: bool
) -> tuple[Array, Array | None]:
    """Rows [n, …] of an .npz file, and the class indices [n] where it has `y`.

    where: the flag and the file, for messages. labelled: whether `y` must be there.
    Raises ImportRefused.
    """
    arrays = _arrays(path, where)
    wanted = [*(["y"] if labelled else []), *([c.name for c in spec.columns] or ["x"])]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ImportRefused(
            f"{where}: lacks the array '{missing[0]}'; it has {', '.join(arrays) or 'none'}: "
            "expected x and y, or an array for each input"
        )
    labels = _indices(arrays["y"], class_names, where) if "y" in arrays else None
    if spec.columns:
        rows = records({c.name: _column(arrays[c.name], c) for c in spec.columns})
    else:
        rows = _column(arrays["x"], spec)
    if labels is not None and len(rows) != len(labels):
        raise ImportRefused(
            f"{where}: has {len(rows)} rows but {len(labels)} labels; expected one label a row"
        )
    return rows, labels


def probabilities_of_file(
    path: Path, spec: InputSpec, num_classes: int, *, where: str
) -> Array | None:
    """The array `probabilities` [n, C] of an .npz file; None without one, or where an input has
    that name.

    where: the flag and the file, for messages. Raises ImportRefused.
    """
    arrays = _arrays(path, where)
    if PROBABILITIES not in arrays or PROBABILITIES in {c.name for c in spec.columns}:
        return None
    found = arrays[PROBABILITIES]
    is_table = found.ndim == 2 and found.shape[1] == num_classes and found.dtype.kind in "fiu"
    if not is_table or not (np.abs(found.sum(axis=1) - 1) < _SUM_TOLERANCE).all():
        raise ImportRefused(
            f"{where}: the array '{PROBABILITIES}' is {found.dtype}, {list(found.shape)}; expected "
            f"numbers [rows, {num_classes}], in rows that sum to 1, as predict_proba gives them"
        )
    return found.astype(np.float64)


def _arrays(path: Path, where: str) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise ImportRefused(
            f"{where}: cannot be read as an .npz file: {error}; expected what np.savez writes"
        ) from None


def fit(scores: NDArray[np.float64], labels: Array) -> Fitted:
    """Newton's method on the negative log-likelihood of scores [n, C] with labels [n].

    Targets are smoothed as Platt does, so that separable scores keep a finite scale.
    """
    n, classes = scores.shape
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    targets = np.empty((n, classes))
    off = 1 / (counts[labels] + 2)
    targets[:] = (off / (classes - 1))[:, np.newaxis]
    targets[np.arange(n), labels] = 1 - off
    spread = float(scores.std()) or 1.0
    unit = scores / spread
    theta = np.zeros(classes + 1)
    theta[0] = 1.0
    value = _nll(theta, unit, targets)
    for _ in range(_STEPS):
        step = _newton_step(theta, unit, targets)
        size = 1.0
        while (new := _nll(theta - size * step, unit, targets)) > value and size > 1e-8:
            size /= 2
        if value - new < 1e-12 * n:
            break
        theta, value = theta - size * step, new
    logits = theta[0] * unit + theta[1:]
    probabilities = softmax(logits)
    return Fitted(
        scale=float(theta[0] / spread),
        bias=(theta[1:] - theta[1:].mean()).tolist(),
        class_counts=counts.tolist(),
        nll=float(-np.log(np.maximum(probabilities[np.arange(n), labels], 1e-300)).mean()),
        error=float((logits.argmax(axis=1) != labels).mean()),
    )


def _nll(theta: Array, unit: Array, targets: Array) -> float:
    logits = theta[0] * unit + theta[1:]
    top = logits.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    loss = float((log_sum - (targets * logits).sum(axis=1)).sum())
    return loss + 0.5 * _RIDGE * float(theta[1:] @ theta[1:])


def _newton_step(theta: Array, unit: Array, targets: Array) -> Array:
    p = softmax(theta[0] * unit + theta[1:])
    gap = p - targets
    mean = (p * unit).sum(axis=1, keepdims=True)
    gradient = np.concatenate([[(gap * unit).sum()], gap.sum(axis=0) + _RIDGE * theta[1:]])
    hessian = np.zeros((len(theta), len(theta)))
    hessian[0, 0] = (p * unit**2).sum() - (mean**2).sum() + _RIDGE
    hessian[0, 1:] = hessian[1:, 0] = (p * (unit - mean)).sum(axis=0)
    hessian[1:, 1:] = np.diag(p.sum(axis=0) + _RIDGE) - p.T @ p
    found: Array = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
    return found


def _indices(labels: Array, class_names: list[str], where: str) -> Array:
    if labels.dtype.kind in "US":
        known = {name: index for index, name in enumerate(class_names)}
        texts = [str(label) for label in labels.ravel().tolist()]
        unknown = next((text for text in texts if text not in known), None)
        if unknown is not None:
            near = did_you_mean(str(unknown), class_names, most=100_000)
            raise ImportRefused(
                f"{where}: label '{unknown}' is not a class of the model"
                f"{near or '; give the labels as class names or indices'}"
            )
        return np.array([known[text] for text in texts])
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise ImportRefused(f"{where}: y is {labels.dtype}; expected class indices or names")
    if labels.max(initial=0) >= len(class_names):
        raise ImportRefused(
            f"{where}: has label {labels.max()}; expected class indices 0 to "
            f"{len(class_names) - 1}, or names"
        )
    return labels.ravel().astype(np.int64)


def _column(values: Array, spec: InputSpec) -> Array:
    shape = (-1, *(n if n is not None else m for n, m in zip(
        spec.shape[1:], values.shape[1:] or (1,) * (len(spec.shape) - 1), strict=False
    )))  # fmt: skip
    if spec.dtype == "string":
        return values.astype(str).astype(object).reshape(shape)
    return values.astype(spec.dtype).reshape(shape)
