"""WaveNet as a classifier of sequences, at any width and depth: dilated causal convolutions with gated activations.

Source: van den Oord et al., WaveNet: A Generative Model for Raw Audio, 2016 (arXiv:1609.03499), sections 2.1 to 2.4 and 3.4.
Deviations: real-valued features per frame instead of one-hot samples; the paper's 256-way softmax per sample becomes a mean
over time and one linear layer; the last layer has no residual convolution, since nobody would read it; optional dropout
of the gated activations.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GatedLayer", "WaveNet"]


class GatedLayer(nn.Module):
    """tanh(filter) * sigmoid(gate) of a dilated causal convolution, then one 1x1 convolution each for residual and skip.

    Args:
        channels: of the residual path.
        skip_channels: of what goes to the head.
        kernel: taps of the convolution.
        dilation: frames between two taps.
        dropout: share of gated activations dropped while training.
        last: whether no layer follows, so that there is no residual.
    """

    def __init__(self, channels: int, skip_channels: int, kernel: int, dilation: int, dropout: float = 0.0, last: bool = False) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation
        # apart rather than one convolution of twice the channels: pruning can then follow them
        self.filter = nn.Conv1d(channels, channels, kernel, dilation=dilation)
        self.gate = nn.Conv1d(channels, channels, kernel, dilation=dilation)
        self.dropout = nn.Dropout(dropout)
        self.residual = None if last else nn.Conv1d(channels, channels, 1)
        self.skip = nn.Conv1d(channels, skip_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [batch, channels, time] to the next layer's input, of the same shape, and the skip [batch, skip channels, time]."""
        past = F.pad(x, (self.reach, 0))
        gated = self.dropout(torch.tanh(self.filter(past)) * torch.sigmoid(self.gate(past)))
        following = x if self.residual is None else x + self.residual(gated)
        return following, self.skip(gated)


class WaveNet(nn.Module):
    """A causal convolution, stacks of gated layers with doubling dilation, and the head relu, 1x1, relu, mean over time, linear.

    Args:
        features: numbers per frame.
        classes: outputs of the last layer.
        channels: of the residual path.
        skip_channels: of the skip path and the head.
        blocks: gated layers per stack, with dilations 1, 2, 4, ...
        stacks: how often the dilations start again at 1.
        kernel: taps of every causal convolution; 2 in the paper.
        dropout: share of gated activations dropped while training; none in the paper.
    """

    def __init__(
        self,
        features: int = 40,
        classes: int = 10,
        channels: int = 48,
        skip_channels: int = 48,
        blocks: int = 5,
        stacks: int = 2,
        kernel: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.input = nn.Conv1d(features, channels, kernel)
        dilations = [2**block for _ in range(stacks) for block in range(blocks)]
        self.layers = nn.ModuleList(
            GatedLayer(channels, skip_channels, kernel, dilation, dropout, last=index == len(dilations))
            for index, dilation in enumerate(dilations, start=1)
        )
        self.hidden = nn.Conv1d(skip_channels, skip_channels, 1)
        self.classifier = nn.Linear(skip_channels, classes)

    @property
    def receptive_field(self) -> int:
        """Frames, the present one included, that one frame of the head's input depends on."""
        reaches = [layer.reach for layer in self.layers if isinstance(layer, GatedLayer)]
        return self.kernel + sum(reaches)

    def frames(self, x: Tensor) -> Tensor:
        """Map sequences [batch, time, features] to [batch, skip channels, time]; a frame sees no later frame."""
        x = self.input(F.pad(x.transpose(1, 2), (self.kernel - 1, 0)))
        skips: list[Tensor] = []
        for layer in self.layers:
            x, skip = layer(x)
            skips.append(skip)
        total = torch.relu(sum(skips[1:], start=skips[0]))
        return torch.relu(self.hidden(total))

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences [batch, time, features] to logits [batch, classes]."""
        logits: Tensor = self.classifier(self.frames(x).mean(2))
        return logits
