"""The class prior of a stream, followed batch by batch: a mixture of online estimates.

Each expert is expectation maximisation that forgets with a half-life of its own; others are fixed
priors. The density of a row, sum over y of p(y|x) q_y / sigma_y, is linear in the prior q, and
the logarithm of a mixture's density is 1-exp-concave. So averaging the experts by their likelihood
is exact Bayesian averaging. Fixed share (Herbster and Warmuth 1998) lets the weights follow a
stream that changes.
"""

import io
import zipfile
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.contract.adjustment import Vector
from service.contract.scores import Z_95
from service.contract.shift.label_shift import (
    MAX_CLASSES_WITH_COVARIANCE,
    PriorEstimate,
    inverse_of,
    likelihood_ratios,
    with_intervals,
)

HALF_LIVES = (125.0, 250.0, 500.0, 1000.0, 4000.0, 16000.0)
"""Half-lives of the moving experts, in rows, for up to 1,000 classes.

With more classes they grow in proportion: an expert with about one row per class knows nothing.
"""
SHARE_ROWS = 2000.0
"""Rows after which fixed share has moved 63 % of an expert's weight to others; grows likewise."""
STEP_ROWS = 64
"""The most rows of one update; more rows are split into several updates."""
RANKED_STEP_ROWS = 256
"""The most rows of one update where only the best classes are known. Each update costs time for
every class; with that many classes the half-lives are long, so that larger updates do no harm.
"""
MAX_CLASSES_WITH_INFORMATION = 100
"""With more classes, only their variances are tracked, as if the classes were independent."""
_FLOOR = 1e-6
_READ_AT_ONCE = 2**20
_WRITTEN_AT_ONCE = 100_000
"""Numbers of a state that are written in one call, which lets no other thread run."""

Floats = NDArray[np.float32]


class Ranked(NamedTuple):
    """Likelihood ratios p(x | y) of n rows, up to a factor for each row, of their best classes.

    classes: [n, k] class indices, distinct within a row. ratios: [n, k] their ratios, at most 1.
    rest: [n] one ratio for all other classes of the row.
    """

    classes: NDArray[np.int64]
    ratios: Floats
    rest: Floats

    def dense(self, classes: int) -> Floats:
        """The ratios of all classes, [n, C]."""
        found = np.repeat(self.rest[:, None], classes, axis=1)
        np.put_along_axis(found, self.classes, self.ratios, axis=1)
        return found


class OtherState(ValueError):
    """A stored state belongs to another class list or another kind of tracker."""


@dataclass(frozen=True)
class Tracked:
    """A tracker's current knowledge of the prior."""

    prior: Vector
    """[C], sums to 1."""
    variance: Vector
    """[C] of the estimate: the sampling of the rows plus the disagreement of the experts."""
    rows: int
    """Rows seen since the start, restarts included."""
    effective_rows: float
    """How many recent rows the estimate rests on: those that the best experts remember."""

    def interval(self, calibration_variance: ArrayLike = 0.0) -> tuple[Vector, Vector]:
        """The ends [C] of 95 % intervals, class by class.

        calibration_variance: [C] variance of the estimate that the model's calibration adds.
        """
        half = Z_95 * np.sqrt(self.variance + np.asarray(calibration_variance))
        return np.maximum(self.prior - half, 0.0), np.minimum(self.prior + half, 1.0)

    @classmethod
    def combined(cls, parts: "list[Self]") -> "Tracked":
        """One estimate of several trackers that each saw a share of the same traffic.

        Each counts by its effective rows. Raises ValueError for no parts.
        """
        if not parts:
            raise ValueError("there is nothing to combine")
        if len(parts) == 1:
            return parts[0]
        weights = np.array([max(part.effective_rows, 1e-9) for part in parts])
        weights /= weights.sum()
        prior = weights @ np.stack([part.prior for part in parts])
        variance = weights**2 @ np.stack([part.variance for part in parts])
        rows = sum(part.rows for part in parts)
        return cls(prior, variance, rows, sum(part.effective_rows for part in parts))


def estimate_of(tracked: Tracked, calibration_variance: ArrayLike = 0.0) -> PriorEstimate:
    """A tracker's state as an estimate, with its effective rows as the number of rows."""
    variance = tracked.variance + np.asarray(calibration_variance)
    full = len(variance) <= MAX_CLASSES_WITH_COVARIANCE
    return with_intervals(
        tracked.prior, np.diag(variance) if full else variance, n=int(tracked.effective_rows)
    )


class PriorTracker:
    """Follows the prior of one stream. Memory and time of a batch grow as experts times classes."""

    def __init__(
        self, *, temperature: float, log_source: ArrayLike, fixed: ArrayLike | None = None
    ) -> None:
        """temperature, log_source [C]: the calibration of the rows' logits.

        fixed: [F, C] priors that the stream may return to, by default uniform.
        """
        self._temperature = temperature
        self._log_source = np.asarray(log_source, np.float64)
        classes = len(self._log_source)
        given = np.full((1, classes), 1 / classes) if fixed is None else np.asarray(fixed)
        self._fixed = (given / given.sum(axis=1, keepdims=True)).astype(np.float32)
        start = np.exp(self._log_source - self._log_source.max())
        moving = len(HALF_LIVES)
        self._priors = np.empty((moving + len(self._fixed), classes), np.float32)
        self._priors[:moving] = start / start.sum()
        self._priors[moving:] = self._fixed
        self._half_lives = np.array(HALF_LIVES) * max(1.0, classes / 1000)
        self._share_rows = SHARE_ROWS * max(1.0, classes / 1000)
        self._weights = np.full(len(self._priors), 1 / len(self._priors))
        self._seen = np.zeros(len(HALF_LIVES))
        shape = (classes, classes) if classes <= MAX_CLASSES_WITH_INFORMATION else (classes,)
        self._information = np.zeros((len(HALF_LIVES), *shape), np.float32)
        self._floor = np.float32(min(_FLOOR, 1e-3 / classes))
        self.rows = 0
        """Rows seen since the start."""

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self._log_source)

    @property
    def prior(self) -> Vector:
        """[C] the estimate now."""
        mixed: Vector = self._weights @ self._priors.astype(np.float64)
        mixed /= mixed.sum()
        return mixed

    def update(self, logits: ArrayLike) -> None:
        """Learn from raw logits [n, C], STEP_ROWS at a time."""
        f = np.asarray(logits)
        for start in range(0, len(f), STEP_ROWS):
            rows = f[start : start + STEP_ROWS]
            self._step(
                likelihood_ratios(
                    rows, temperature=self._temperature, log_source=self._log_source,
                    dtype=np.float32,
                )
            )  # fmt: skip

    def update_ranked(self, rows: Ranked) -> None:
        """Learn from rows of which the best classes are known, RANKED_STEP_ROWS at a time."""
        for start in range(0, len(rows.rest), RANKED_STEP_ROWS):
            own = slice(start, start + RANKED_STEP_ROWS)
            some = Ranked(rows.classes[own], rows.ratios[own], rows.rest[own])
            if self.num_classes <= MAX_CLASSES_WITH_INFORMATION:
                self._step(some.dense(self.num_classes))
            else:
                self._step(some)

    def estimate(self) -> Tracked:
        """The current estimate. Before the first row its intervals are 0 … 1."""
        prior, moving = self.prior, len(HALF_LIVES)
        if not self.rows:
            return Tracked(prior, np.full(len(prior), 0.25), 0, 0.0)
        shares = self._weights[:moving] / self._weights[:moving].sum()
        information = np.tensordot(shares, self._information.astype(np.float64), axes=1)
        if information.ndim == 2:
            variance = inverse_of(information, prior).diagonal()
        else:
            variance = 1 / np.maximum(information + 0.01 / np.maximum(prior, 1e-4), 1e-300)
        apart = self._weights @ np.square(self._priors - prior)
        effective = min(float(shares @ self._seen), float(self.rows))
        return Tracked(prior, np.minimum(variance + apart, 0.25), self.rows, effective)

    def state(self) -> bytes:
        """Everything that the tracker has learnt, to be stored and passed to `restore`."""
        arrays: dict[str, NDArray[Any]] = {
            "half_lives": self._half_lives,
            "priors": self._priors,
            "weights": self._weights,
            "seen": self._seen,
            "information": self._information,
            "rows": np.array(self.rows),
        }
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:  # as np.savez, which copies 16 MiB in one call
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = np.lib.format.header_data_from_array_1_0(array)
                    np.lib.format.write_array_header_1_0(member, header)
                    flat = array.ravel()
                    for at in range(0, len(flat), _WRITTEN_AT_ONCE):
                        member.write(flat[at : at + _WRITTEN_AT_ONCE].tobytes())
        return file.getvalue()

    def restore(self, state: bytes) -> None:
        """Continue from a stored state. Raises OtherState when it does not fit this tracker."""
        own = {
            "priors": self._priors,
            "weights": self._weights,
            "seen": self._seen,
            "information": self._information,
            "half_lives": self._half_lives,
            "rows": np.array(self.rows),
        }
        try:
            with zipfile.ZipFile(io.BytesIO(state)) as archive:
                kept = {name: _member(archive, name, mine) for name, mine in own.items()}
        except OtherState:
            raise
        except Exception as error:  # bytes of any kind: zipfile and NumPy raise many kinds of error
            raise OtherState(f"the stored tracker state cannot be read: {error}") from error
        if not np.array_equal(kept["half_lives"], own["half_lives"]):
            raise OtherState("the stored tracker state has other half-lives than this release")
        priors = kept["priors"]
        priors[len(HALF_LIVES) :] = self._fixed
        if not ((priors.sum(axis=1) > 0).all() and kept["weights"].sum() > 0):
            raise OtherState("the stored tracker state holds a prior or weights that are all 0")
        self._priors, self._weights, self._seen = priors, kept["weights"], kept["seen"]
        self._information, self.rows = kept["information"], int(kept["rows"])

    def _step(self, given: Floats | Ranked) -> None:
        """Learn from likelihood ratios [n, C], n > 0, or from those of the best classes."""
        rows = _BestClasses(given, self.num_classes) if isinstance(given, Ranked) else _All(given)
        densities, moving = rows.densities(self._priors), len(HALF_LIVES)
        n = len(densities)
        tiny = np.finfo(np.float32).tiny  # a row that no prior explains carries no information
        np.maximum(densities, tiny, out=densities)
        said = rows.information(
            np.reciprocal(densities @ self._weights.astype(np.float32)),
            full=self._information.ndim == 3,
        )

        log_weights = np.log(self._weights) + np.log(densities.astype(np.float64)).sum(axis=0)
        weights = np.exp(log_weights - log_weights.max())
        share = 1 - (1 - 1 / self._share_rows) ** n
        self._weights = (1 - share) * weights / weights.sum() + share / len(weights)

        kept = 0.5 ** (n / self._half_lives)
        self._seen = self._seen * kept + n
        gain = np.maximum(n / self._seen, 1 - kept).astype(np.float32)[:, None]
        priors = self._priors[:moving]
        means = priors * rows.summed(np.reciprocal(densities[:, :moving])) / n
        priors += gain * (means - priors)
        np.maximum(priors, self._floor, out=priors)
        priors /= priors.sum(axis=1, keepdims=True)

        self._information *= kept.astype(np.float32).reshape(-1, *[1] * said.ndim)
        self._information += said
        self.rows += n


def _member(archive: zipfile.ZipFile, name: str, mine: NDArray[Any]) -> NDArray[Any]:
    """An array of a stored state, which must be like `mine`. Raises OtherState.

    It is compared before memory is allocated for it, and read in parts.
    """
    other = f"the stored tracker state has another '{name}' than this model"
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_columns, dtype = read(file)
        if (shape, dtype) != (mine.shape, mine.dtype) or (by_columns and mine.ndim > 1):
            raise OtherState(other)
        parts, left = [], mine.nbytes
        while left and (part := file.read(min(left, _READ_AT_ONCE))):
            parts.append(part)
            left -= len(part)
        if left or file.read(1):
            raise OtherState(other)
    found = np.frombuffer(bytearray().join(parts), dtype).reshape(shape)
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise OtherState(f"the stored tracker state holds an impossible '{name}'")
    return found


class _All:
    """Rows of likelihood ratios [n, C], in the sums that a step needs."""

    def __init__(self, ratios: Floats) -> None:
        self._ratios = ratios

    def densities(self, priors: Floats) -> Floats:
        """[n, K] the density of each row under priors [K, C]."""
        return self._ratios @ priors.T

    def summed(self, weights: Floats) -> Floats:
        """[K, C] sums over rows of the ratios, weighted by [n, K]."""
        return weights.T @ self._ratios

    def information(self, weights: Floats, *, full: bool) -> Floats:
        """[C, C] sum over rows of the outer products of weighted ratios; else its diagonal [C]."""
        relative = self._ratios * weights[:, None]
        found: Floats = relative.T @ relative if full else np.einsum("nc,nc->c", relative, relative)
        return found


class _BestClasses:
    """A step of rows of which the best classes are known. Time grows as n·k + K·C, not n·C."""

    def __init__(self, rows: Ranked, classes: int) -> None:
        self._rows, self._num_classes = rows, classes
        self._flat = rows.classes.ravel()

    def densities(self, priors: Floats) -> Floats:
        """[n, K] the density of each row under priors [K, C]."""
        classes, ratios, rest = self._rows
        taken = priors[:, classes]
        others = np.maximum(1 - taken.sum(axis=2), 0)
        found: Floats = ((taken * ratios).sum(axis=2) + rest * others).T
        return found

    def summed(self, weights: Floats) -> Floats:
        """[K, C] sums over rows of the ratios, weighted by [n, K]."""
        _, ratios, rest = self._rows
        more = ratios - rest[:, None]
        return np.stack([self._scattered(more, rest, each) for each in weights.T])

    def information(self, weights: Floats, *, full: bool) -> Floats:
        """[C] sums over rows of the squares of weighted ratios. `full` is for few classes only."""
        del full
        _, ratios, rest = self._rows
        rest = np.square(rest)
        return self._scattered(np.square(ratios) - rest[:, None], rest, np.square(weights))

    def _scattered(self, more: Floats, rest: Floats, weights: Floats) -> Floats:
        """[C] `rest` of every row for all classes, and `more` [n, k] for the best of each row."""
        own = np.bincount(self._flat, (more * weights[:, None]).ravel(), self._num_classes)
        found: Floats = np.maximum(own + float(rest @ weights), 0).astype(np.float32)
        return found
