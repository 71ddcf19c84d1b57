"""Splits to batches on a device: what a step of training takes, and the rows of a split in order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.augment import Augmentation
from training.data.dataset import Dataset, ImageSpec, Split

Rows: TypeAlias = NDArray[np.int64]
Batch: TypeAlias = tuple[Tensor, Tensor]
EVALUATION_ROWS = 256


@dataclass(frozen=True)
class Part:
    """The share of each batch that this process handles: rows rank · B/world … (rank + 1) · B/world."""

    rank: int = 0
    world: int = 1

    def of(self, rows: int) -> slice:
        """The slice of a batch of so many rows (a multiple of world)."""
        each = rows // self.world
        return slice(self.rank * each, (self.rank + 1) * each)


class Feed(Protocol):
    """Gives the batches that an order asks for."""

    def batches(self, order: Iterable[tuple[int, Rows]]) -> Iterator[Batch]:
        """For each (step, rows of the whole batch): this process's part of it, augmented, on the device."""
        ...


class ArrayFeed:
    """Batches of rows that lie in memory: gathered, augmented and normalised a whole batch at a time."""

    def __init__(
        self,
        split: Split,
        *,
        image: ImageSpec | None,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
        part: Part,
    ) -> None:
        self._inputs = _resident(np.asarray(split.inputs), image, device)
        self._labels = torch.from_numpy(split.labels).to(device)
        self._prepare = Prepare(image, device)
        self._augmentation = augmentation
        self._seed = seed
        self._part = part

    def batches(self, order: Iterable[tuple[int, Rows]]) -> Iterator[Batch]:
        """As Feed says."""
        augments = self._augmentation.name != "none"
        for step, rows in order:
            mine = torch.from_numpy(rows[self._part.of(len(rows))]).to(self._labels.device)
            inputs = self._inputs[mine]
            if augments:
                drawn = self._augmentation.draw(len(rows), seed=step_seed(self._seed, step))
                drawn = drawn[self._part.of(len(rows))].to(inputs.device)
                inputs = self._augmentation.apply(inputs, drawn)
            yield self._prepare(inputs), self._labels[mine]


class Prepare:
    """Pixels [B, channels, H, W] to what the network takes; other inputs as they are."""

    def __init__(self, image: ImageSpec | None, device: torch.device) -> None:
        self._scale = None
        if image is not None:
            # torch's own division by 255 would cost a second pass over the batch
            mean = torch.tensor(image.mean, device=device)[:, None, None]
            std = torch.tensor(image.std, device=device)[:, None, None]
            self._scale = (1 / (255 * std), -mean / std)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Float32 [B, …]."""
        if self._scale is None:
            return inputs
        factor, offset = self._scale
        return torch.addcmul(offset, inputs.float(), factor)


def in_order(data: Dataset, split: Split, *, device: torch.device) -> Iterator[Tensor]:
    """The inputs of a split as the exported graph takes them, in order, EVALUATION_ROWS at a time, never augmented."""
    prepare = Prepare(data.image, device)
    for start in range(0, len(split), EVALUATION_ROWS):
        rows = np.asarray(split.inputs[start : start + EVALUATION_ROWS])
        yield prepare(_resident(rows, data.image, device))


def step_seed(seed: int, step: int) -> int:
    """A seed of its own for each step of a run."""
    return int(
        np.random.SeedSequence([seed, 2, step]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def _resident(inputs: NDArray[np.generic], image: ImageSpec | None, device: torch.device) -> Tensor:
    ordered = inputs.transpose(0, 3, 1, 2) if image is not None else inputs
    return torch.from_numpy(np.array(ordered, order="C")).to(device)
