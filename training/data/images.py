"""Images as arrays: uint8 [N, H, W, channels] to normalised float32 [N, channels, H, W], and the channels' statistics."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import ImageSpec

STATISTICS_ROWS = 20_000  # a mean over these is exact to the four digits that are kept


def channel_statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, H, W, channels], on the scale 0 … 1, to four digits."""
    step = max(1, len(images) // STATISTICS_ROWS)
    pixels = np.asarray(images[::step], np.float64) / 255
    mean = pixels.mean(axis=(0, 1, 2))
    std = np.maximum(pixels.std(axis=(0, 1, 2)), 1e-3)  # a constant channel stays finite
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def normalise(images: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """What the graph takes: float32 [N, channels, H, W], divided by 255, less the mean, over the deviation."""
    scaled = images.astype(np.float32) / np.float32(255)
    shifted = (scaled - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(shifted.transpose(0, 3, 1, 2))
