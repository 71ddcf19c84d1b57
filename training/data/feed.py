"""Puts batches on the device: augmented ones for training steps, or a split's rows in order."""

import itertools
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from training.data import pixels
from training.data.augment import Augmentation
from training.data.dataset import Dataset, ImageSpec, Split
from training.data.image_files import ImageFiles
from training.data.order import Part
from training.data.pixels import normalise
from training.data.text import Encoded, Vocabulary

Rows: TypeAlias = NDArray[np.int64]
Batch: TypeAlias = tuple[Tensor, Tensor]
Order: TypeAlias = Iterable[tuple[int, Rows]]
EVALUATION_ROWS = 256
# for several steps at once, as between the steps of a small network everything would be cold, and
# cost thrice as much
GATHERED_BYTES = 2**21  # rows are copied in groups of this size
GATHERED_TEXTS = 1024


class Feed(Protocol):
    """Turns the row numbers of each step into a batch on the device."""

    def batches(self, order: Order) -> Iterator[Batch]:
        """Yield, for each (step, row numbers of the whole batch), this process's augmented part."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a feed's batches go: the device, this process's part, and the seed for augmentation."""

    device: torch.device
    part: Part
    seed: int
    workers: int = 2


def make_feed(data: Dataset, augmentation: Augmentation, place: Place) -> Feed:
    """Return the feed that suits the data set's kind of training rows."""
    if data.vocabulary is not None:
        return TextFeed(data.train, data.vocabulary, place)
    if data.columns is not None:
        numbers = data.columns.encode(np.asarray(data.train.inputs))
        return ArrayFeed(Split(numbers, data.train.labels), None, augmentation, place)
    if isinstance(data.train.inputs, ImageFiles):
        return FileFeed(data.train.inputs, data.train.labels, augmentation, place)
    return ArrayFeed(data.train, data.image, augmentation, place)


class ArrayFeed:
    """A feed for rows in an array; it augments and normalises a whole batch at a time.

    Rows in memory are first copied to the device, images with their channels first. Those of a file
    (`image_cache`) stay there, and each batch is copied.
    """

    def __init__(
        self, split: Split, image: ImageSpec | None, augmentation: Augmentation, place: Place
    ) -> None:
        inputs = np.asarray(split.inputs)
        self._mapped = isinstance(split.inputs, np.memmap)
        if self._mapped:
            self._inputs = torch.from_numpy(inputs)
        else:
            if image is not None:
                inputs = inputs.transpose(0, 3, 1, 2)
            self._inputs = torch.from_numpy(np.array(inputs, order="C")).to(place.device)
        self._labels = torch.from_numpy(split.labels).to(place.device)
        self._finish = Finish(image, augmentation, place)
        self._place = place

    def batches(self, order: Order) -> Iterator[Batch]:
        """Yield this process's part of each batch, as in `Feed.batches`."""
        for group in _groups(order, rows=GATHERED_BYTES // max(1, self._inputs[:1].nbytes)):
            parts = [rows[self._place.part.of(len(rows))] for _, rows in group]
            mine = torch.from_numpy(np.concatenate(parts)).to(self._place.device)
            # index_select copies whole rows; indexing would copy single numbers, 40 times slower
            inputs = self._rows(mine).split_with_sizes([len(part) for part in parts])
            labels = self._labels.index_select(0, mine).split_with_sizes(
                [len(part) for part in parts]
            )
            drawn = [self._finish.drawn(step, rows=len(rows)) for step, rows in group]
            for some, numbers, targets in zip(inputs, drawn, labels, strict=True):
                yield self._finish(some, numbers), targets

    def _rows(self, rows: Tensor) -> Tensor:
        """Copy these rows; images with their channels first."""
        if not self._mapped:
            return self._inputs.index_select(0, rows)
        found = self._inputs.index_select(0, rows.cpu()).to(rows.device)
        return found.permute(0, 3, 1, 2).contiguous()


class TextFeed:
    """A feed for texts: token numbers, padded to the longest text of the batch."""

    def __init__(self, split: Split, vocabulary: Vocabulary, place: Place) -> None:
        self._encoded = Encoded.of(list(np.asarray(split.inputs)), vocabulary)
        self._labels = split.labels
        self._place = place

    def batches(self, order: Order) -> Iterator[Batch]:
        """Yield this process's part of each batch, as in `Feed.batches`."""
        device = self._place.device
        for group in _groups(order, rows=GATHERED_TEXTS):
            mine = [rows[self._place.part.of(len(rows))] for _, rows in group]
            made = [(self._encoded.padded(rows), self._labels[rows]) for rows in mine]
            for numbers, labels in made:
                yield torch.from_numpy(numbers).to(device), torch.from_numpy(labels).to(device)


class FileFeed:
    """A feed for image files; worker processes decode and crop them ahead of time."""

    def __init__(
        self, files: ImageFiles, labels: Rows, augmentation: Augmentation, place: Place
    ) -> None:
        self._decoder = _Decoder(
            files, labels, crops=augmentation.name == "resized-crop-flip", seed=place.seed
        )
        self._finish = Finish(files.spec, augmentation, place)
        self._place = place

    def batches(self, order: Order) -> Iterator[Batch]:
        """Yield this process's part of each batch, as in `Feed.batches`."""
        device = self._place.device
        for_loader, for_here = itertools.tee(order)  # the loader runs ahead of the steps
        loader: DataLoader[Any] = DataLoader(
            self._decoder,
            batch_sampler=_Asking(for_loader, self._place.part),
            num_workers=self._place.workers,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=device.type == "cuda",
        )
        for (images, labels), (step, rows) in zip(loader, for_here, strict=True):
            placed = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
            yield (
                self._finish(placed, self._finish.drawn(step, rows=len(rows))),
                labels.to(device, non_blocking=True),
            )


class Finish:
    """Turns a batch of pixels [B, channels, H, W] on the device into augmented network inputs."""

    def __init__(self, image: ImageSpec | None, augmentation: Augmentation, place: Place) -> None:
        self._augmentation = augmentation if image is not None and augmentation.on_batches else None
        self._place = place
        self._scale: tuple[Tensor, Tensor] | None = None
        if image is not None:
            # (pixel / 255 - mean) / std as one multiplication and addition
            mean = torch.tensor(image.mean, device=place.device)[:, None, None]
            std = torch.tensor(image.std, device=place.device)[:, None, None]
            self._scale = (1 / (255 * std), -mean / std)

    def drawn(self, step: int, *, rows: int) -> Tensor | None:
        """Draw the augmentation of this process's part of a batch; None without augmentation.

        rows: the rows of the whole batch.
        """
        if self._augmentation is None:
            return None
        # drawn for the whole batch, so that several processes together use the same numbers as one
        numbers = self._augmentation.draw(rows, seed=step_seed(self._place.seed, step))
        return numbers[self._place.part.of(rows)].to(self._place.device)

    def __call__(self, inputs: Tensor, drawn: Tensor | None) -> Tensor:
        """Return float32 network inputs [B, …], augmented as drawn.

        The inputs may be changed in place; the caller must not use them afterwards.
        """
        if self._augmentation is not None and drawn is not None:
            inputs = self._augmentation.apply(inputs, drawn)
        if self._scale is None:
            return inputs
        factor, offset = self._scale
        scaled = inputs.float()
        return torch.addcmul(offset, scaled, factor, out=scaled)


def in_order(data: Dataset, split: Split, *, device: torch.device) -> Iterator[Tensor]:
    """Yield the network's inputs for a split, unaugmented, in order, EVALUATION_ROWS at a time."""
    for batch in graph_inputs(split, data.image):
        numbers = batch
        if data.vocabulary is not None:
            numbers = data.vocabulary.encode(list(batch))
        elif data.columns is not None:
            numbers = data.columns.encode(batch)
        yield torch.from_numpy(numbers).to(device)


def graph_feeds(data: Dataset, split: Split) -> Iterator[Any]:
    """Yield inputs of a run's graph, EVALUATION_ROWS rows at a time: rows, or inputs by name."""
    for rows in graph_inputs(split, data.image):
        yield rows if data.vocabulary is None else data.vocabulary.fed(rows)


def graph_inputs(split: Split, image: ImageSpec | None) -> Iterator[NDArray[Any]]:
    """Yield the exported graph's inputs for a split, in order, EVALUATION_ROWS at a time.

    Texts stay strings, and the rows of a table stay records. image: how pixels become the tensor.
    """
    for start in range(0, len(split), EVALUATION_ROWS):
        rows = np.asarray(split.inputs[start : start + EVALUATION_ROWS])
        yield normalise(rows, image) if image is not None else np.ascontiguousarray(rows)


def _groups(order: Order, *, rows: int) -> Iterator[list[tuple[int, Rows]]]:
    """Group the steps so that each group (but the last) has at least `rows` rows."""
    group: list[tuple[int, Rows]] = []
    taken = 0
    for step, one in order:
        group.append((step, one))
        taken += len(one)
        if taken >= rows:
            yield group
            group, taken = [], 0
    if group:
        yield group


def step_seed(seed: int, step: int) -> int:
    """Derive the seed of a step from the seed of the run."""
    return int(
        np.random.SeedSequence([seed, 2, step]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


class _Decoder(TorchDataset[Any]):
    """Runs in a worker process: decodes a row for (row, step, position in the batch).

    Returns its pixels, uint8 [H, W, channels], and its label.
    """

    def __init__(self, files: ImageFiles, labels: Rows, *, crops: bool, seed: int) -> None:
        self._files = files
        self._labels = labels
        self._crops = crops
        self._seed = seed

    def __getitem__(self, asked: tuple[int, int, int]) -> tuple[Tensor, int]:
        row, step, position = asked
        path = self._files.paths[row]
        if self._crops:
            found = pixels.random_crop(path, self._files.spec, seed=(self._seed, 3, step, position))
        else:
            found = pixels.decode(path, self._files.spec)
        return torch.from_numpy(np.array(found)), int(self._labels[row])


class _Asking:
    """The batch sampler of a DataLoader, made from the order of a run."""

    def __init__(self, order: Order, part: Part) -> None:
        self._order = order
        self._part = part

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step, rows in self._order:
            mine = self._part.of(len(rows))
            yield [(int(row), step, mine.start + place) for place, row in enumerate(rows[mine])]


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore Ctrl-C in workers: it reaches the whole process group, and the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
