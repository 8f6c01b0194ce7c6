"""ResNet for small pictures at any width and depth; names as in the usual reimplementations of the paper's CIFAR networks.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016. Deviation: the shortcut between stages is a
1x1 convolution with normalization (option B) by default; option A (subsampled, zero-padded channels) is
what published CIFAR checkpoints use.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.errors import UnknownName, UsageError

__all__ = ["BasicBlock", "ResNet", "ZeroPadShortcut", "resnet_cifar"]

Shortcut = Literal["A", "B"]


class ZeroPadShortcut(nn.Module):
    """Option A of the paper: every second pixel, missing channels filled with zeros, no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.extra = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in, h, w] to [batch, out, ceil(h / stride), ceil(w / stride)]."""
        before = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = (
                ZeroPadShortcut(in_channels, out_channels, stride)
                if shortcut == "A"
                else nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in, h, w] to [batch, out, h / stride, w / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        joined: Tensor = self.relu(out + self.shortcut(x))
        return joined


class ResNet(nn.Module):
    """The CIFAR form: a 3x3 stem, stages of basic blocks (stride 2 from the second on), global mean, one linear layer.

    Args:
        blocks: blocks per stage; (9, 9, 9) is ResNet-56.
        widths: channels per stage.
        classes: outputs of the last layer.
        in_channels: channels of the input picture.
        shortcut: "A" (no parameters) or "B" (1x1 convolution) where the shape changes.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        classes: int = 10,
        in_channels: int = 3,
        shortcut: Shortcut = "B",
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths):
            raise UsageError("blocks and widths must name the same stages", got=f"{len(blocks)} and {len(widths)}")
        if shortcut not in ("A", "B"):
            raise UnknownName("shortcut", str(shortcut), ("A", "B"))
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages = len(blocks)
        channels = widths[0]
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            layer = nn.Sequential()
            for block in range(count):
                stride = 2 if index > 1 and block == 0 else 1
                layer.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
            setattr(self, f"layer{index}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [batch, channels, h, w] to logits [batch, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        for index in range(1, self.stages + 1):
            x = getattr(self, f"layer{index}")(x)
        logits: Tensor = self.linear(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet_cifar(depth: int = 20, width: float = 1.0, classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-`depth` for CIFAR-10 as published (option A shortcuts).

    Args:
        depth: 6n + 2, for instance 20 or 56.
        width: multiplies the published 16, 32 and 64 channels.
        classes: outputs of the last layer.
        in_channels: channels of the input picture.

    Raises:
        UsageError: when depth is not 6n + 2.
    """
    count, rest = divmod(depth - 2, 6)
    if rest or count < 1:
        raise UsageError("depth must be 6n + 2", got=str(depth), wanted="8, 14, 20, 56, ...")
    widths = [max(1, round(base * width)) for base in (16, 32, 64)]
    return ResNet((count,) * 3, widths, classes, in_channels, shortcut="A")
