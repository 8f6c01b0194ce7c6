"""Static cost of a module: parameters, MACs, bytes; what has no MAC formula is counted by name."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sizewise.data.batches import examples_in
from sizewise.errors import blaming
from sizewise.graph.trace import is_graph, quiet
from sizewise.protocols import Inputs
from sizewise.types import Cost

__all__ = ["profile_model"]

# operators that move or rename data and do no arithmetic
_FREE_NAMES = """
view reshape _unsafe_view expand permute transpose t squeeze unsqueeze slice select split split_with_sizes unbind detach alias
clone contiguous copy_ _to_copy empty empty_like zeros zeros_like ones ones_like full arange lift_fresh as_strided cat stack
dropout native_dropout
"""
_FREE = frozenset(_FREE_NAMES.split())


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet is torch.ops.aten.mv:
            self.macs += args[0].numel()
        elif packet in flop_registry:
            self.macs += flop_registry[packet](*args, **kwargs, out_val=out) // 2
        elif (name := packet.__name__) not in _FREE:
            self.uncounted[name] += 1
        return out


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention and recurrent layers as the matrix products they are made of, which have formulas; fused kernels have none."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet(), sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def profile_model(model: nn.Module, example: Inputs) -> Cost:
    """Count one forward pass on `example`, in inference mode.

    One MAC is one multiply-accumulate, two of torch's FLOPs. Shared parameters count once. Every module's mode is kept.
    """
    counter = _Counter()
    modes = {module: module.training for module in model.modules()}
    if not is_graph(model):
        model.eval()
    try:
        with blaming("the model failed on the example inputs"), torch.no_grad(), _unfused(), counter:
            example.call(model)
    finally:
        for module, mode in modes.items():
            module.training = mode
    stored = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        macs=counter.macs,
        weight_bytes=sum(t.numel() * t.element_size() for t in stored),
        batch=examples_in(example),
        uncounted=dict(sorted(counter.uncounted.items())),
    )
