"""Saves the outcome of a training run, its logits, features and last layer, in one file."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import Vector, log_source_prior
from training.scores.posthoc import LastLayer

Array = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class SplitOutputs:
    """One split of a run: labels [n], logits [n, C], and features [n, D] if they were kept."""

    labels: Labels
    logits: Array
    features: Array | None = None


@dataclass(frozen=True)
class Outcome:
    """What a comparison keeps of a finished run, to compute all its numbers from."""

    class_counts: Labels
    recorded_loss_tau: float
    source_prior: str
    seconds: float
    test: SplitOutputs
    val: SplitOutputs | None = None
    train_labels: Labels | None = None
    train_features: Array | None = None
    layer: LastLayer | None = None
    """The last linear layer; None if the network has none."""

    @property
    def log_source_prior(self) -> Vector:
        """[C] log of the run's source prior sigma."""
        return log_source_prior(self.class_counts, loss_tau=self.recorded_loss_tau)

    def save(self, path: Path) -> None:
        """Write the file atomically: afterwards it is complete or absent."""
        arrays: dict[str, Any] = {"class_counts": self.class_counts}
        for name, part in (("val", self.val), ("test", self.test)):
            if part is not None:
                arrays |= {f"{name}_labels": part.labels, f"{name}_logits": part.logits}
                arrays |= {} if part.features is None else {f"{name}_features": part.features}
        if self.train_features is not None:
            arrays |= {"train_features": self.train_features, "train_labels": self.train_labels}
        if self.layer is not None:
            arrays |= {"weight": self.layer.weight, "bias": self.layer.bias}
        facts = {
            "recorded_loss_tau": self.recorded_loss_tau,
            "source_prior": self.source_prior,
            "seconds": self.seconds,
        }
        staging = path.with_suffix(".tmp")
        try:
            with staging.open("wb") as file:
                np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "Outcome":
        """Read a file written by `save`."""
        with np.load(path, allow_pickle=False) as file:
            found = dict(file)

        def part(name: str) -> SplitOutputs | None:
            if f"{name}_labels" not in found:
                return None
            return SplitOutputs(
                found[f"{name}_labels"], found[f"{name}_logits"], found.get(f"{name}_features")
            )

        test = part("test")
        assert test is not None
        return cls(
            class_counts=found["class_counts"],
            test=test,
            val=part("val"),
            train_labels=found.get("train_labels"),
            train_features=found.get("train_features"),
            layer=LastLayer(found["weight"], found["bias"]) if "weight" in found else None,
            **json.loads(str(found["facts"])),
        )
