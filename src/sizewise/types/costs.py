"""What a model and its layers cost."""

from dataclasses import dataclass, field, replace
from typing import Literal

from sizewise.types.figures import Interval

__all__ = ["Cost", "LayerCost", "LayerKind", "LayerShape", "ModelProfile"]

LayerKind = Literal["conv", "conv_transpose", "linear", "gru", "lstm", "rnn"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one forward pass, in total and per layer.

    Attributes:
        params: parameters, shared ones counted once.
        macs: multiply-accumulates of convolutions, linear layers, attention, recurrent cells and matrix products (one MAC
            = two FLOPs). Elementwise work is not in it but in `elementwise`.
        weight_bytes: bytes of parameters and buffers in the stored dtype, shared ones counted once.
        batch: examples in the pass that was counted.
        uncounted: operators that no handler knows and how often each ran.
        activation_bytes: bytes of every tensor that an operator writes; views write nothing.
        peak_bytes: most bytes of activations (inputs and outputs among them, weights not) alive at one time when operators
            run in the graph's order; None where the model cannot be exported.
        elementwise: scalar operations outside the MACs, such as activations, additions, normalization, pooling.
        intensity: MACs per byte that operators read and write, weights included.
        latency_s: seconds of one pass; None where it was not asked for.
        layers: one row per module that runs operators, in the order of running; empty where the model cannot be exported.
        notes: what could not be said, and why.
    """

    params: int
    macs: int
    weight_bytes: int
    batch: int
    uncounted: dict[str, int] = field(default_factory=dict)
    activation_bytes: int = 0
    peak_bytes: int | None = None
    elementwise: int = 0
    intensity: float = 0.0
    latency_s: Interval | None = None
    layers: tuple["LayerCost", ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one module costs by itself, its submodules not counted.

    Attributes:
        path: module path; "" is the model itself.
        kind: the module's class.
        family: what most of its work is: conv, conv1d, pointwise, depthwise, matmul, recurrent, or memory (no MACs).
        calls: operators run.
        params: its own parameters; those shared with an earlier layer are counted there.
        macs, weight_bytes, activation_bytes, elementwise, intensity, uncounted: as in `Cost`.
        peak_bytes: most bytes of activations alive while it runs.
        latency_s: its part of the pass; 0 where the runtime folded it into another layer.
    """

    path: str
    kind: str
    family: str
    calls: int
    params: int
    macs: int
    weight_bytes: int
    activation_bytes: int
    peak_bytes: int
    elementwise: int
    intensity: float
    latency_s: Interval | None = None
    uncounted: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelProfile(Cost):
    """A named model's cost on a device.

    Attributes:
        name: of the model.
        inputs: shape and dtype of every input tensor, such as "1x3x224x224 float32".
        predicted_s: the roofline's prediction, where `latency_s` is measured.
        misfits: why the device cannot run it; empty when nothing is known to be in the way.
    """

    name: str
    inputs: tuple[str, ...]
    predicted_s: Interval | None = None
    misfits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What the time of one layer depends on, so that the layer can be timed alone, at any number of channels.

    Attributes:
        kind: of layer.
        out_channels: output channels or features; hidden units of one direction of a recurrent layer.
        in_channels: input channels or features.
        batch: examples per call; for "linear" all rows that are multiplied.
        sides: of the input behind batch and channels; the number of steps of a recurrent layer; empty for "linear".
        kernel, stride, dilation: of a convolution, one per side.
        padding: of a convolution, at the beginning of every side, then at the end of every side.
        groups: of a convolution.
        directions: 2 for a recurrent layer that also reads backwards.
        stacked: whether a recurrent layer reads the hidden states of the one before it in the same module.
        integer: whether a convolution or linear layer takes and gives integers of 8 bits.
    """

    kind: LayerKind
    out_channels: int
    in_channels: int
    batch: int
    sides: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    groups: int = 1
    directions: int = 1
    stacked: bool = False
    integer: bool = False

    @property
    def tied(self) -> bool:
        """Whether inputs go with outputs: a grouped convolution loses whole groups."""
        return self.groups > 1 or self.stacked

    def resized(self, out_channels: int, in_channels: int) -> "LayerShape":
        """The same layer with other channels; where inputs go with outputs, `in_channels` does not count."""
        if self.tied:
            in_channels = self.in_channels * out_channels // self.out_channels
        groups = self.groups if self.groups == 1 else self.groups * out_channels // self.out_channels
        return replace(self, out_channels=out_channels, in_channels=in_channels, groups=groups)
