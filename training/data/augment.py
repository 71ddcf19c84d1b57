"""Vectorised augmentation of a batch of images: pad, crop and flip, by numbers drawn for the batch as a whole."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.faults import WrongUse

AUGMENTATIONS = ("none", "flip", "crop-flip", "resized-crop-flip")


@dataclass(frozen=True)
class Augmentation:
    """none; flip: mirror half of the images; crop-flip: also shift by up to `pad` pixels, black coming in.

    resized-crop-flip is for images in files, which are cropped while they are decoded (see pixels.random_crop).
    """

    name: str = "none"
    pad: int = 4

    def __post_init__(self) -> None:
        if self.name not in AUGMENTATIONS:
            raise WrongUse(
                f"unknown augmentation '{self.name}'; expected {', '.join(AUGMENTATIONS)}"
            )

    @property
    def on_batches(self) -> bool:
        """Whether whole batches are changed (rather than nothing, or each image as it is decoded)."""
        return self.name in ("flip", "crop-flip")

    def draw(self, rows: int, *, seed: int) -> Tensor:
        """Numbers for a batch, int64 [rows, 3]: mirror (0 or 1), row offset, column offset.

        Drawn for the whole batch whatever part of it a process handles, so that the parts add up to the whole.
        """
        generator = torch.Generator().manual_seed(seed)
        mirror = torch.randint(0, 2, (rows, 1), generator=generator)
        offsets = torch.randint(0, 2 * self.pad + 1, (rows, 2), generator=generator)
        return torch.cat([mirror, offsets], dim=1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Images [B, channels, H, W] of any type, changed as drawn [B, 3] says: each pixel is fetched once."""
        batch, channels, height, width = images.shape
        mirror = drawn[:, :1].bool()
        column = torch.arange(width, device=images.device)
        columns = torch.where(mirror, column.flip(0), column)
        rows = torch.arange(height, device=images.device).expand(batch, -1)
        if self.name == "crop-flip":
            images = functional.pad(images, (self.pad,) * 4)
            rows, columns = rows + drawn[:, 1:2], columns + drawn[:, 2:]
        places = rows[:, :, None] * images.shape[3] + columns[:, None, :]
        fetched = images.flatten(2).gather(2, places.view(batch, 1, -1).expand(-1, channels, -1))
        return fetched.view(batch, channels, height, width)
