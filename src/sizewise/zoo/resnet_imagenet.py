"""ResNet for pictures of about 224 pixels at any width and depth: a 7x7 stem, then four stages of residual blocks.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1. State-dict names follow torchvision's
`resnet18` to `resnet152`, so its checkpoints load. Deviation, which is torchvision's ("v1.5"): a bottleneck that halves the
picture does so in its 3x3 convolution, where the paper does it in the first 1x1; this costs a few percent more MACs.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sizewise.errors import UsageError

__all__ = ["BasicBlock", "Bottleneck", "ImageNetResNet", "resnet_imagenet"]

# blocks per stage, and whether they are bottlenecks: table 1 of the paper
PAPER_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
STAGE_CHANNELS = (64, 128, 256, 512)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a residual connection.

    Args:
        in_channels: channels of the input.
        channels: channels of both convolutions and of the output.
        stride: of the first convolution and of the shortcut.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in, h, w] to [batch, channels, ceil(h / stride), ceil(w / stride)]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        joined: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return joined


class Bottleneck(nn.Module):
    """A 1x1 convolution that narrows, a 3x3 one that takes the stride, a 1x1 one that widens four times.

    Args:
        in_channels: channels of the input.
        channels: channels of the narrow part; the output has four times as many.
        stride: of the 3x3 convolution and of the shortcut.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in, h, w] to [batch, 4 * channels, ceil(h / stride), ceil(w / stride)]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        joined: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return joined


class ImageNetResNet(nn.Module):
    """The whole network, with torchvision's names.

    Args:
        blocks: blocks in each of the four stages.
        bottleneck: whether the blocks are bottlenecks (from 50 layers on) or basic blocks.
        width: multiplies the published 64, 128, 256 and 512 channels, rounded to whole ones.
        classes: outputs of the last layer.
        in_channels: channels of the input picture.

    Raises:
        UsageError: not four stages.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        width: float = 1.0,
        classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if len(blocks) != len(STAGE_CHANNELS):
            raise UsageError("an ImageNet ResNet has four stages", got=f"blocks for {len(blocks)}", wanted="blocks like (2, 2, 2, 2)")
        kind = Bottleneck if bottleneck else BasicBlock
        widths = [max(1, round(base * width)) for base in STAGE_CHANNELS]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        entering = [widths[0], *(kind.expansion * w for w in widths[:-1])]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(kind, before, channels, count, stride)
            for before, channels, count, stride in zip(entering, widths, blocks, (1, 2, 2, 2), strict=True)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(kind.expansion * widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [batch, channels, h, w] to logits [batch, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _stage(kind: type[BasicBlock | Bottleneck], before: int, channels: int, count: int, stride: int) -> nn.Sequential:
    first = kind(before, channels, stride)
    return nn.Sequential(first, *(kind(kind.expansion * channels, channels) for _ in range(count - 1)))


def resnet_imagenet(depth: int = 18, width: float = 1.0, classes: int = 1000, in_channels: int = 3) -> ImageNetResNet:
    """ResNet-`depth` for ImageNet as published; other depths come from `ImageNetResNet` itself.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        width: multiplies the published channels.
        classes: outputs of the last layer.
        in_channels: channels of the input picture.

    Raises:
        UsageError: a depth that was not published.
    """
    if depth not in PAPER_DEPTHS:
        raise UsageError("no published ResNet has this depth", got=str(depth), wanted=f"one of {', '.join(map(str, PAPER_DEPTHS))}")
    blocks, bottleneck = PAPER_DEPTHS[depth]
    return ImageNetResNet(blocks, bottleneck, width, classes, in_channels)
