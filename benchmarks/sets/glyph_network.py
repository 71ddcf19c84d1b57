"""A small residual network for glyphs: `--network benchmarks.sets.glyph_network:residual`."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3 × 3 convolutions with a shortcut around them."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        self.around = (
            nn.Identity()
            if (channels, stride) == (out, 1)
            else nn.Conv2d(channels, out, 1, stride=stride, bias=False)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B, channels, H, W] to [B, out, H / stride, W / stride]."""
        hidden = functional.relu(self.first_norm(self.first(inputs)))
        added: Tensor = self.second_norm(self.second(hidden)) + self.around(inputs)
        return torch.relu(added)


def residual(num_classes: int) -> nn.Module:
    """Make a network of three blocks: grey images [B, 1, 32, 32] -> [B, num_classes]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, num_classes),
    )
