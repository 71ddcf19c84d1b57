"""ResNet-32 for 32 × 32 images in two variants.

One follows He et al., which the paper cites; the other follows the code released with the paper.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGES = ((16, 1), (32, 2), (64, 2))  # channels, stride of the first block; five blocks each
BLOCKS = 5


class ResNet(nn.Sequential):
    """Stem, three stages of five blocks, pooling, linear layer: [B, channels, H, W] -> [B, C]."""


def resnet32(num_classes: int, input_shape: tuple[int, ...] = (3, 32, 32)) -> nn.Module:
    """He et al. (2016), section 4.2, n = 5: shortcuts without parameters where the size changes."""
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    width = 16
    for channels, stride in STAGES:
        for block in range(BLOCKS):
            layers.append(_Block(width, channels, stride if block == 0 else 1))
            width = channels
    network = ResNet(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
    _initialise(network)
    return network


def released_resnet32(num_classes: int, input_shape: tuple[int, ...] = (3, 32, 32)) -> nn.Module:
    """The ResNet-32 of the code released with the paper.

    It differs from `resnet32` in four ways. Its blocks are 1 × 1, 3 × 3, 1 × 1 convolutions of one
    width; the stem enlarges the image by 4 pixels; the shortcuts have convolutions; and a batch
    normalisation follows the last stage.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], 16, 3, padding=3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    width = 16
    for channels, stride in STAGES:
        for block in range(BLOCKS):
            layers.append(_ReleasedBlock(width, channels, stride, projects=block == 0))
            width = channels
    last = nn.Linear(width, num_classes)
    network = ResNet(*layers, nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    _initialise(network)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return network


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = after - before
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = inputs
        if self.stride > 1 or self.new_channels:
            # option A of He et al.: every second pixel, and zeros for the new channels
            half = self.new_channels // 2
            shortcut = inputs[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, half, self.new_channels - half))
        return torch.relu(self.body(inputs) + shortcut)


class _ReleasedBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        step = stride if projects else 1
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, stride=step, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if projects:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=step, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.body(inputs) + self.shortcut(inputs))


def _initialise(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
