"""Small convolutional networks of every common design, for tests: each isolates one way in which channels meet."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


def conv_bn(before: int, after: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU() if act is None else act,
    )


def classifier(features: Sequence[nn.Module], channels: int) -> nn.Sequential:
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def vgg() -> nn.Module:
    """Convolutions, pooling, and places flattened together with channels."""
    return nn.Sequential(
        conv_bn(3, 16),
        conv_bn(16, 16),
        nn.MaxPool2d(2),
        conv_bn(16, 32),
        conv_bn(32, 32),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(64, CLASSES),
    )


def alexnet() -> nn.Module:
    """Large kernels, response normalization over neighbouring channels, two groups, no batch normalization."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 32, 5, padding=2, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(128, 64),
        nn.ReLU(inplace=True),
        nn.Linear(64, CLASSES),
    )


def network_in_network() -> nn.Module:
    """No linear layer: the last convolution makes the classes."""
    return nn.Sequential(
        conv_bn(3, 24, 5),
        conv_bn(24, 24, 1),
        nn.MaxPool2d(2),
        conv_bn(24, 32),
        nn.Conv2d(32, CLASSES, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Residual(nn.Module):
    """A body and a shortcut: identity, convolution, or subsampling with channels of zeros."""

    def __init__(self, body: nn.Module, before: int, after: int, stride: int, shortcut: str, last: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.stride, self.extra, self.kind = body, stride, after - before, shortcut
        self.last = nn.ReLU() if last is None else last
        self.shortcut: nn.Module = nn.Identity()
        if shortcut == "conv" and (stride > 1 or before != after):
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        past: Tensor = self.shortcut(x)
        if self.kind == "pad":
            past = F.pad(past[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        joined: Tensor = self.last(self.body(x) + past)
        return joined


def resnet(shortcut: str) -> nn.Module:
    blocks = [
        Residual(nn.Sequential(conv_bn(a, b, stride=s), conv_bn(b, b, act=nn.Identity())), a, b, s, shortcut)
        for a, b, s in ((16, 16, 1), (16, 32, 2), (32, 32, 1))
    ]
    return classifier([conv_bn(3, 16), *blocks], 32)


def bottleneck(groups: int) -> nn.Module:
    """ResNet of bottlenecks; with groups, ResNeXt."""
    blocks = [
        Residual(nn.Sequential(conv_bn(a, 32, 1), conv_bn(32, 32, 3, s, groups), conv_bn(32, b, 1, act=nn.Identity())), a, b, s, "conv")
        for a, b, s in ((16, 48, 1), (48, 48, 1), (48, 64, 2))
    ]
    return classifier([conv_bn(3, 16), *blocks], 64)


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.relu(self.norm2(inner)))
        return out


def preactivation() -> nn.Module:
    return classifier([nn.Conv2d(3, 24, 3, padding=1), PreActivation(24), PreActivation(24), nn.BatchNorm2d(24), nn.ReLU()], 24)


class DenseLayer(nn.Module):
    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet() -> nn.Module:
    transition = [nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 24, 1, bias=False), nn.AvgPool2d(2)]
    return classifier(
        [
            nn.Conv2d(3, 16, 3, padding=1),
            DenseLayer(16, 12),
            DenseLayer(28, 12),
            *transition,
            DenseLayer(24, 16),
            nn.BatchNorm2d(40),
            nn.ReLU(),
        ],
        40,
    )


class Branches(nn.Module):
    """Several branches on one input, their channels side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception() -> nn.Module:
    def block(before: int) -> nn.Module:
        return Branches(
            conv_bn(before, 16, 1),
            nn.Sequential(conv_bn(before, 16, 1), conv_bn(16, 24)),
            nn.Sequential(conv_bn(before, 8, 1), conv_bn(8, 16, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(before, 8, 1)),
        )

    return classifier([conv_bn(3, 24), block(24), nn.MaxPool2d(2), block(64)], 64)


class Fire(nn.Module):
    def __init__(self, before: int, squeezed: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeezed, 1)
        self.narrow, self.square = nn.Conv2d(squeezed, wide, 1), nn.Conv2d(squeezed, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.narrow(x)), F.relu(self.square(x))], 1)


def squeezenet() -> nn.Module:
    last = [nn.Dropout(), nn.Conv2d(48, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 24, 3, 2), nn.ReLU(), Fire(24, 16, 24), nn.MaxPool2d(2), Fire(48, 16, 24), *last)


class UNet(nn.Module):
    def __init__(self, upsample: str) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv_bn(3, 16), conv_bn(16, 24), conv_bn(24, 32)
        self.up2 = self._up(32, 24, upsample)
        self.merge2, self.up1, self.merge1 = conv_bn(48, 24), self._up(24, 16, upsample), conv_bn(32, 16)
        self.head = nn.Conv2d(16, 2, 1)

    @staticmethod
    def _up(before: int, after: int, how: str) -> nn.Module:
        if how == "transposed":
            return nn.ConvTranspose2d(before, after, 2, 2)
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(before, after, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.merge2(torch.cat([self.up2(x), second], 1))
        pixels: Tensor = self.head(self.merge1(torch.cat([first, self.up1(x)], 1)))
        return pixels


def separable(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv_bn(before, before, 3, stride, before), conv_bn(before, after, 1))


def mobilenet_v1() -> nn.Module:
    return classifier([conv_bn(3, 16, stride=2), separable(16, 32), separable(32, 48, 2), separable(48, 48)], 48)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand, self.gate = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))
        out: Tensor = x * scale
        return out


def efficientnet() -> nn.Module:
    """Inverted residuals with swish and squeeze-and-excitation."""

    def block(before: int, after: int, stride: int) -> nn.Module:
        wide = 3 * before
        body = nn.Sequential(
            conv_bn(before, wide, 1, act=nn.SiLU()),
            conv_bn(wide, wide, 5, stride, wide, nn.SiLU()),
            SqueezeExcite(wide, 16, nn.Sigmoid()),
            conv_bn(wide, after, 1, act=nn.Identity()),
        )
        return body if stride > 1 or before != after else Residual(body, before, after, 1, "identity", nn.Identity())

    return classifier(
        [conv_bn(3, 16, act=nn.SiLU()), block(16, 16, 1), block(16, 24, 2), block(24, 24, 1), conv_bn(24, 64, 1, act=nn.SiLU())], 64
    )


class ShuffleUnit(nn.Module):
    """Half of the channels passes by, half is treated, then both are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(conv_bn(half, half, 1), conv_bn(half, half, 3, 1, half, nn.Identity()), conv_bn(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.body(right)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def shufflenet() -> nn.Module:
    return classifier([conv_bn(3, 32, stride=2), ShuffleUnit(32), ShuffleUnit(32), conv_bn(32, 64, 1)], 64)


class Ghost(nn.Module):
    """Half of the outputs is made from the other half by a depthwise convolution."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        half = after // 2
        self.primary, self.cheap = conv_bn(before, half, 1), conv_bn(half, half, 3, 1, half)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)


def ghostnet() -> nn.Module:
    body = nn.Sequential(Ghost(16, 48), Ghost(48, 16))
    return classifier([conv_bn(3, 16), Residual(body, 16, 16, 1, "identity"), Ghost(16, 48), Ghost(48, 48)], 48)


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        inner = self.scale * self.narrow(F.gelu(self.wide(inner)))
        out: Tensor = x + inner.permute(0, 3, 1, 2)
        return out


def convnext() -> nn.Module:
    return classifier([nn.Conv2d(3, 24, 4, 4), ConvNextBlock(24), ConvNextBlock(24)], 24)


class RepVggBlock(nn.Module):
    """Three branches of the same channels added, one of them only a normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.square = conv_bn(width, width, act=nn.Identity())
        self.point = conv_bn(width, width, 1, act=nn.Identity())
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.square(x) + self.point(x) + self.norm(x))


def repvgg() -> nn.Module:
    return classifier([conv_bn(3, 24), RepVggBlock(24), conv_bn(24, 32, stride=2), RepVggBlock(32)], 32)


class Pyramid(nn.Module):
    """A feature pyramid with a detection head that all levels share; a list of boxes and a dict of classes come out."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv_bn(3, 16, stride=2), conv_bn(16, 24, stride=2), conv_bn(24, 32, stride=2)])
        self.lateral = nn.ModuleList([nn.Conv2d(width, 24, 1) for width in (16, 24, 32)])
        self.smooth = conv_bn(24, 24)
        self.boxes, self.classes = nn.Conv2d(24, 4, 1), nn.Conv2d(24, CLASSES, 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        maps = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        for level in (1, 0):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], scale_factor=2.0, mode="nearest")
        smooth = [self.smooth(level) for level in maps]
        return [self.boxes(level) for level in smooth], {f"level{i}": self.classes(level) for i, level in enumerate(smooth)}


def group_normalized() -> nn.Module:
    def block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.GroupNorm(4, after), nn.SiLU())

    return classifier([block(3, 32), Residual(nn.Sequential(block(32, 32), block(32, 32)), 32, 32, 1, "identity"), block(32, 64)], 64)


def style_transfer() -> nn.Module:
    """Instance normalization, mirrored borders, and pictures as outputs."""

    def block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(before, after, 3), nn.InstanceNorm2d(after, affine=True), nn.ReLU())

    body = Residual(nn.Sequential(block(24, 24), block(24, 24)), 24, 24, 1, "identity", nn.Identity())
    return nn.Sequential(block(3, 16), block(16, 24), body, nn.Upsample(scale_factor=2), block(24, 16), nn.Conv2d(16, 3, 1), nn.Tanh())


def parametric_relu() -> nn.Module:
    return classifier([conv_bn(3, 24, act=nn.PReLU(24)), conv_bn(24, 32, act=nn.PReLU()), conv_bn(32, 32, act=nn.PReLU(32))], 32)


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 3, 2, 1, output_padding=1),
        nn.Sigmoid(),
    )


def super_resolution() -> nn.Module:
    """Channels become pixels in the end."""
    return nn.Sequential(nn.Conv2d(3, 32, 5, padding=2), nn.Tanh(), conv_bn(32, 24), nn.Conv2d(24, 12, 3, padding=1), nn.PixelShuffle(2))


def deep_pixel_shuffle() -> nn.Module:
    """Channels become pixels in the middle, so that four go together."""
    return nn.Sequential(
        conv_bn(3, 32), nn.Conv2d(32, 64, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), conv_bn(16, 16), nn.Conv2d(16, 3, 1)
    )


class MultiScale(nn.Module):
    """Res2Net: parts of the channels are treated one after the other, each with what came out of the one before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after, self.part = conv_bn(width, width, 1), conv_bn(width, width, 1), width // 4
        self.convs = nn.ModuleList([conv_bn(self.part, self.part) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.before(x), self.part, 1)
        found = [parts[0]]
        for part, conv in zip(parts[1:], self.convs, strict=True):
            found.append(conv(part + found[-1]))
        out: Tensor = x + self.after(torch.cat(found, 1))
        return out


def res2net() -> nn.Module:
    return classifier([conv_bn(3, 32), MultiScale(32), conv_bn(32, 48)], 48)


class Attended(nn.Module):
    """CBAM: a gate per channel, then one per place, from the mean and the maximum over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))
        self.place = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x.mean((2, 3))) + self.gate(x.amax((2, 3))))
        x = x * gate[:, :, None, None]
        out: Tensor = x * torch.sigmoid(self.place(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
        return out


def cbam() -> nn.Module:
    return classifier([conv_bn(3, 24), conv_bn(24, 32), Attended(32), conv_bn(32, 32)], 32)


class Dilated(nn.Module):
    """DeepLab: dilated branches beside the mean picture, resized to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 24, stride=2)
        self.branches = nn.ModuleList([nn.Conv2d(24, 16, 3, padding=d, dilation=d) for d in (1, 2, 4)])
        self.picture, self.project, self.head = nn.Conv2d(24, 16, 1), conv_bn(64, 24, 1), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.stem(x)
        mean = self.picture(F.adaptive_avg_pool2d(features, 1)).expand(-1, -1, *features.shape[2:])
        joined = torch.cat([*(F.relu(branch(features)) for branch in self.branches), F.relu(mean)], 1)
        return {"out": F.interpolate(self.head(self.project(joined)), size=x.shape[2:], mode="bilinear", align_corners=False)}


class Parallel(nn.Module):
    """HRNet: two resolutions side by side that exchange what they see."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.high, self.low = conv_bn(3, 24), conv_bn(24, 24), conv_bn(24, 32, stride=2)
        self.up, self.down = nn.Conv2d(32, 24, 1), nn.Conv2d(24, 32, 3, 2, 1)
        self.head = nn.Linear(56, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        high, low = self.high(x), self.low(x)
        fine = F.relu(high + F.interpolate(self.up(low), scale_factor=2.0))
        coarse = F.relu(low + self.down(high))
        logits: Tensor = self.head(torch.cat([fine.mean((2, 3)), coarse.mean((2, 3))], 1))
        return logits


class Siamese(nn.Module):
    """One body for two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 16), nn.MaxPool2d(2), conv_bn(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(64, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.body(left), self.body(right)
        score: Tensor = self.head(torch.cat([(a - b).abs(), a * b], 1))
        return score


def recurrent_convolution() -> nn.Module:
    """One convolution used three times in a row, so that its outputs are its inputs."""
    shared = nn.Conv2d(24, 24, 3, padding=1)
    return classifier([conv_bn(3, 24), shared, nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), conv_bn(24, 32)], 32)


class MixerLayer(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.within = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.within(self.norm2(x))
        return out


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.layers = nn.Conv2d(3, 32, 4, 4), nn.Sequential(MixerLayer(16, 32), MixerLayer(16, 32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.patches(x).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def volumes() -> nn.Module:
    """Convolutions over time, height and width."""
    return nn.Sequential(
        nn.Conv3d(2, 16, 3, padding=1),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(16, 24, 3, padding=1),
        nn.BatchNorm3d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 48), nn.GELU(), nn.Dropout(), nn.Linear(48, 3))
