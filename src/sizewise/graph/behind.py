"""What follows a layer: where its output's constant may go, and the residual stream that its output is added to."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from sizewise.graph.flow import operator
from sizewise.graph.layer_rows import argument
from sizewise.graph.lockstep import Lockstep

__all__ = ["Behind"]


@dataclass(frozen=True)
class Behind:
    """What follows a layer.

    Attributes:
        sink: name of the tensor that takes a constant, and whether it is the layer's bias; None where nothing does.
        gain: of the normalization behind the layer, per channel; None where there is none.
        stream: the other part of the sum that the output goes into, where both models know it already.
    """

    sink: tuple[str, bool] | None
    gain: Tensor | None
    stream: Node | None

    @staticmethod
    def of(lockstep: Lockstep, node: Node) -> "Behind":
        """Of a convolution or linear layer."""
        end, gain, sink = node, None, None
        bias = argument(node, 2, "bias", None)
        if isinstance(bias, Node) and bias.op == "get_attr":
            sink = lockstep.name(bias), True
        follower = _only_user(end)
        if follower is not None and operator(follower) == "batch_norm" and not follower.args[5]:
            end, gain = follower, _gain(lockstep, follower)
            mean: Node = follower.args[3]  # type: ignore[assignment]
            sink = sink or (lockstep.name(mean), False)
        return Behind(sink, gain, _stream(lockstep, end))

    def missing(self, lockstep: Lockstep, batch: int, y: Tensor) -> Tensor | float:
        """What the residual stream lacks, in the layer's own output."""
        if self.stream is None:
            return 0.0
        lost: Tensor = lockstep.whole(self.stream)[batch] - lockstep.twin(self.stream)[batch]
        if lost.shape != y.shape:
            return 0.0
        if self.gain is None:
            return lost
        shape = (1, -1, *[1] * (y.ndim - 2))
        usable = self.gain.abs() > 1e-6
        return lost * torch.where(usable, 1 / torch.where(usable, self.gain, 1.0), 0.0).reshape(shape)


def _gain(lockstep: Lockstep, norm: Node) -> Tensor:
    weight, variance = norm.args[1], norm.args[4]
    scale: Tensor = (lockstep.weights[lockstep.name(variance)] + float(norm.args[7])).rsqrt()  # type: ignore[arg-type]
    if isinstance(weight, Node):
        scale = lockstep.weights[lockstep.name(weight)] * scale
    return scale


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _stream(lockstep: Lockstep, end: Node) -> Node | None:
    add = _only_user(end)
    if add is None or operator(add) not in ("add", "add_") or len(add.all_input_nodes) != 2 or add.kwargs:
        return None
    other = next(node for node in add.all_input_nodes if node is not end)
    return other if lockstep.known(other) else None
