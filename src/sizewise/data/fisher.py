"""How much a loss, or the outputs, react to every channel of every group, told from gradients."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.data.batches import examples_in
from sizewise.data.outputs import output_tensors
from sizewise.data.readings import readings
from sizewise.graph.groups import Group
from sizewise.graph.hooks import hooked
from sizewise.protocols import Inputs

__all__ = ["channel_fisher"]


def channel_fisher(
    model: nn.Module, groups: Sequence[Group], pairs: Iterable[tuple[Inputs, Any]], seed: int = 0
) -> list[Float[Tensor, " channels"]]:
    """Per group, what removing each channel is estimated to cost: half the mean squared gradient with respect to a gate of 1.

    Every channel of a group gets one gate for all layers that read it, and a value per example, so that one backward pass per
    batch gives every example's gradient for every channel of every group. With class labels the loss is cross entropy. Without,
    it is a random projection of the outputs, whose expected squared gradient is that of all outputs together.

    Args:
        model: in inference mode.
        groups: of the model. A group that no linear layer or convolution reads gets zeros.
        pairs: inputs and targets; targets that are no class numbers count as absent.
        seed: of the projections.

    Source: Molchanov et al., Importance estimation for neural network pruning, CVPR 2019, and Liu et al., Group Fisher
    pruning, ICML 2021. Deviation: gates act on what is read instead of what is written, and without labels (above).
    """
    generator = torch.Generator().manual_seed(seed)
    sums = [torch.zeros(group.channels, dtype=torch.float64) for group in groups]
    seen = 0
    for inputs, target in pairs:
        gates = [torch.ones(examples_in(inputs), group.channels, requires_grad=True) for group in groups]
        with hooked(_gated(model, groups, gates)):
            with torch.enable_grad():
                loss = _loss(output_tensors(inputs.call(model)), target, generator)
            found = torch.autograd.grad(loss, gates, allow_unused=True)
        for total, gradient in zip(sums, found, strict=True):
            if gradient is not None:
                total += gradient.double().square().sum(0).cpu()
        seen += examples_in(inputs)
    return [total / (2 * max(seen, 1)) for total in sums]


def _gated(model: nn.Module, groups: Sequence[Group], gates: Sequence[Tensor]) -> list[Any]:
    """Hooks that multiply what every reading layer is given; a layer may read several groups."""
    by_path: dict[str, list[tuple[Tensor, tuple[int, ...]]]] = {}
    for group, gate in zip(groups, gates, strict=True):
        members = {member.path: member.channel_of for member in group.members if member.axis == "in"}
        for path in {reading.path for reading in readings(model, group)} & set(members):
            by_path.setdefault(path, []).append((gate, members[path]))

    def hook(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        name = None if args else "input"
        x: Tensor = args[0] if args else kwargs["input"]
        dim = 1 if isinstance(layer, nn.modules.conv._ConvNd) else x.ndim - 1
        for gate, channel_of in by_path[path]:
            if len(gate) == len(x) and x.ndim > 1:
                x = x * _spread(gate, channel_of, x, dim)
        return ((x, *args[1:]), dict(kwargs)) if name is None else (args, {**kwargs, name: x})

    return [model.get_submodule(path).register_forward_pre_hook(partial(hook, path), with_kwargs=True) for path in by_path]


def _spread(gate: Tensor, channel_of: Sequence[int], x: Tensor, dim: int) -> Tensor:
    """The gate of every index of the dimension, 1 where it has none."""
    ones = gate.new_ones(len(gate), 1)
    values = torch.cat([gate, ones], 1)[:, torch.tensor(channel_of)]  # -1 is the last column
    shape = [len(gate), *[1] * (x.ndim - 1)]
    shape[dim] = len(channel_of)
    return values.to(x).reshape(shape)


def _loss(outputs: Sequence[Tensor], target: Any, generator: torch.Generator) -> Tensor:
    first = outputs[0]
    labels = isinstance(target, Tensor) and target.dtype == torch.long and target.ndim == 1 and len(target) == len(first)
    if labels and first.ndim == 2:
        return F.cross_entropy(first, target, reduction="sum")
    return torch.stack([(out * torch.randn(out.shape, generator=generator).to(out)).sum() for out in outputs]).sum()
