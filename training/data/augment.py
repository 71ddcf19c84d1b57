"""Augments whole batches of images: pad, crop and flip."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.contract.nearest import did_you_mean
from training.faults import WrongUse

AUGMENTATIONS = ("none", "flip", "crop-flip", "resized-crop-flip")


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images.

    name: `none`; `flip` mirrors half of the images; `crop-flip` also shifts them by up to `pad`
    pixels and fills with black; `resized-crop-flip` crops image files while they are decoded
    (pixels.random_crop).
    """

    name: str = "none"
    pad: int = 4

    def __post_init__(self) -> None:
        if self.name not in AUGMENTATIONS:
            raise WrongUse(
                f"unknown augmentation '{self.name}'; expected {', '.join(AUGMENTATIONS)}"
                f"{did_you_mean(self.name, AUGMENTATIONS)}"
            )

    @property
    def on_batches(self) -> bool:
        """Whether whole batches are augmented, not each image while it is decoded."""
        return self.name in ("flip", "crop-flip")

    def draw(self, rows: int, *, seed: int) -> Tensor:
        """Draw a batch's augmentation, int64 [rows, 3]: mirror (0 or 1), row and column offset.

        Every process draws for the whole batch and takes its part, so that several processes
        together compute the same batch as one.
        """
        generator = torch.Generator().manual_seed(seed)
        mirror = torch.randint(0, 2, (rows, 1), generator=generator)
        offsets = torch.randint(0, 2 * self.pad + 1, (rows, 2), generator=generator)
        return torch.cat([mirror, offsets], dim=1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Augment images [B, channels, H, W] of any dtype as `drawn` [B, 3] says."""
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
