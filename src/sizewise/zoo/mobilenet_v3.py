"""MobileNetV3 at any width: inverted residual blocks with squeeze-and-excite gates and hard activations.

Source: Howard et al., Searching for MobileNetV3, ICCV 2019, tables 1 and 2. State-dict names follow torchvision's
`mobilenet_v3_large` and `mobilenet_v3_small`, so its checkpoints load. Deviations, which are torchvision's: a gate's narrow
layer is a quarter of the expanded channels rounded to a multiple of 8; the widest layer is six times the last block and the
layer before the classifier shrinks with the width (in MobileNetV2 it never does).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sizewise.zoo.mobilenet import round_channels

__all__ = ["Block", "GatedResidual", "MobileNetV3", "SqueezeExcite", "mobilenet_v3_large", "mobilenet_v3_small"]


@dataclass(frozen=True)
class Block:
    """One row of the paper's tables, at width 1.

    Attributes:
        kernel: side of the depthwise convolution, in pixels.
        expanded: channels inside the block.
        out: channels of its output.
        gate: whether the block has a squeeze-and-excite gate.
        hard: whether its activation is hard-swish rather than ReLU.
        stride: of the depthwise convolution.
    """

    kernel: int
    expanded: int
    out: int
    gate: bool
    hard: bool
    stride: int


LARGE = (
    Block(3, 16, 16, False, False, 1),
    Block(3, 64, 24, False, False, 2),
    Block(3, 72, 24, False, False, 1),
    Block(5, 72, 40, True, False, 2),
    Block(5, 120, 40, True, False, 1),
    Block(5, 120, 40, True, False, 1),
    Block(3, 240, 80, False, True, 2),
    Block(3, 200, 80, False, True, 1),
    Block(3, 184, 80, False, True, 1),
    Block(3, 184, 80, False, True, 1),
    Block(3, 480, 112, True, True, 1),
    Block(3, 672, 112, True, True, 1),
    Block(5, 672, 160, True, True, 2),
    Block(5, 960, 160, True, True, 1),
    Block(5, 960, 160, True, True, 1),
)
SMALL = (
    Block(3, 16, 16, True, False, 2),
    Block(3, 72, 24, False, False, 2),
    Block(3, 88, 24, False, False, 1),
    Block(5, 96, 40, True, True, 2),
    Block(5, 240, 40, True, True, 1),
    Block(5, 240, 40, True, True, 1),
    Block(5, 120, 48, True, True, 1),
    Block(5, 144, 48, True, True, 1),
    Block(5, 288, 96, True, True, 2),
    Block(5, 576, 96, True, True, 1),
    Block(5, 576, 96, True, True, 1),
)


def _conv_bn(
    in_channels: int, out_channels: int, kernel: int, activation: type[nn.Module] | None, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),
    ]
    return nn.Sequential(*layers, *([] if activation is None else [activation()]))


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate between 0 and 1 that is computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, h, w] to the same shape."""
        gate: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return gate * x


class GatedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, gate, 1x1 projection; residual where the shape stays."""

    def __init__(self, in_channels: int, expanded: int, out_channels: int, row: Block) -> None:
        super().__init__()
        activation = nn.Hardswish if row.hard else nn.ReLU
        self.use_res_connect = row.stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = [] if expanded == in_channels else [_conv_bn(in_channels, expanded, 1, activation)]
        layers.append(_conv_bn(expanded, expanded, row.kernel, activation, row.stride, groups=expanded))
        if row.gate:
            layers.append(SqueezeExcite(expanded, round_channels(expanded // 4)))
        layers.append(_conv_bn(expanded, out_channels, 1, None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in, h, w] to [batch, out, ceil(h / stride), ceil(w / stride)]."""
        out: Tensor = self.block(x)
        return x + out if self.use_res_connect else out


class MobileNetV3(nn.Module):
    """The whole network, with torchvision's names.

    Args:
        rows: the blocks at width 1, `LARGE` or `SMALL` in the paper.
        last: channels before the classifier at width 1; 1280 (large) or 1024 (small) in the paper.
        width: multiplies every channel count; rounded to multiples of 8.
        classes: outputs of the last layer.
        in_channels: channels of the input picture.
        dropout: share of features dropped before the classifier while training.
    """

    def __init__(
        self,
        rows: Sequence[Block] = LARGE,
        last: int = 1280,
        width: float = 1.0,
        classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        channels = round_channels(16 * width)
        features: list[nn.Module] = [_conv_bn(in_channels, channels, 3, nn.Hardswish, stride=2)]
        for row in rows:
            out = round_channels(row.out * width)
            features.append(GatedResidual(channels, round_channels(row.expanded * width), out, row))
            channels = out
        widest, last = 6 * channels, round_channels(last * width)
        features.append(_conv_bn(channels, widest, 1, nn.Hardswish))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(widest, last), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(last, classes))
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [batch, channels, h, w] to logits [batch, classes]."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def mobilenet_v3_large(width: float = 1.0, classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> MobileNetV3:
    """MobileNetV3-Large as published.

    Args:
        width: multiplies every channel count.
        classes: outputs of the last layer.
        in_channels: channels of the input picture.
        dropout: share of features dropped before the classifier while training.
    """
    return MobileNetV3(LARGE, 1280, width, classes, in_channels, dropout)


def mobilenet_v3_small(width: float = 1.0, classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> MobileNetV3:
    """MobileNetV3-Small as published.

    Args:
        width: multiplies every channel count.
        classes: outputs of the last layer.
        in_channels: channels of the input picture.
        dropout: share of features dropped before the classifier while training.
    """
    return MobileNetV3(SMALL, 1024, width, classes, in_channels, dropout)
