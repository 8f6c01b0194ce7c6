"""MobileNetV2 at any width: inverted residual blocks of depthwise separable convolutions.

Source: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018. State-dict names follow
torchvision's `mobilenet_v2`, so its checkpoints load.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["InvertedResidual", "MobileNetV2", "round_channels"]

# expansion, channels, blocks, stride: table 2 of the paper
PAPER_SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at least one of it, and never more than 10 % below `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection; residual where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.use_res_connect = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn_relu(in_channels, hidden, 1)]
        layers += [
            _conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in, h, w] to [batch, out, h / stride, w / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self.use_res_connect else out


class MobileNetV2(nn.Module):
    """The whole network, with torchvision's names.

    Args:
        width: multiplies every channel count; rounded to multiples of `divisor`.
        classes: outputs of the last layer.
        in_channels: channels of the input picture.
        setting: rows of (expansion, channels, blocks, stride); the paper's table by default.
        stem: channels before the first block.
        stem_stride: 2 for pictures of 224 pixels, 1 for small ones.
        last: channels before the classifier; never scaled below this, as in the paper.
        dropout: share of features dropped before the classifier while training.
        divisor: what channel counts are rounded to.
    """

    def __init__(
        self,
        width: float = 1.0,
        classes: int = 1000,
        in_channels: int = 3,
        setting: Sequence[tuple[int, int, int, int]] = PAPER_SETTING,
        stem: int = 32,
        stem_stride: int = 2,
        last: int = 1280,
        dropout: float = 0.2,
        divisor: int = 8,
    ) -> None:
        super().__init__()
        channels = round_channels(stem * width, divisor)
        features: list[nn.Module] = [_conv_bn_relu(in_channels, channels, 3, stem_stride)]
        for expansion, base, blocks, first_stride in setting:
            out = round_channels(base * width, divisor)
            for block in range(blocks):
                features.append(InvertedResidual(channels, out, first_stride if block == 0 else 1, expansion))
                channels = out
        last = round_channels(last * max(1.0, width), divisor)
        features.append(_conv_bn_relu(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [batch, channels, h, w] to logits [batch, classes]."""
        logits: Tensor = self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(self.features(x), 1), 1))
        return logits
