"""Weights averaged over the last steps of a training.

A high learning rate hides what was learned: it shows only when the rate falls, or in an average. ResNet-56 without 30 % of its latency had
a loss of 0.67 on validation; a quarter, a half, three quarters and all of an epoch later 1.14, 0.54, 0.25 and 0.218, and its average 0.41,
0.28, 0.23 and 0.215.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sizewise.data.statistics import normalizations

__all__ = ["Average"]

POWER = 4  # the last sixth of the steps are averaged


class Average:
    """Of a model's parameters and normalization statistics.

    The weight of step t is proportional to t ** POWER, so that an average never is of more than the end of what was done, however
    long that was.

    Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, CVPR 2024, section 3.1, for averages of
    that profile; Izmailov et al., Averaging Weights Leads to Wider Optima, UAI 2018, for what they are like. Deviation: statistics are
    averaged, not re-estimated.

    Args:
        model: that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        buffers = [buffer for norm in normalizations(model) for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
        self._now = [*(p.data for p in model.parameters() if p.is_floating_point()), *buffers]
        self._values: list[Tensor] = []

    def follow(self, step: int) -> None:
        """Take in what the model has become, after so many steps; the first begins anew."""
        if step <= 1 or not self._values:
            self._values = [tensor.clone() for tensor in self._now]
        else:
            torch._foreach_lerp_(self._values, self._now, 1 - (1 - 1 / step) ** (POWER + 1))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model as its average within, then as it is."""
        before = [tensor.clone() for tensor in self._now]
        self._put(self._values or before)
        try:
            yield
        finally:
            self._put(before)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {str(number): value for number, value in enumerate(self._values)}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint held."""
        self._values = [tensors[str(number)].to(now.device) for number, now in enumerate(self._now)] if tensors else []

    def _put(self, values: list[Tensor]) -> None:
        for now, value in zip(self._now, values, strict=True):
            now.copy_(value)
