"""Where training happens: device, precision and processes, by accelerate."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sizewise.errors import UnknownName, UsageError
from sizewise.protocols import Inputs

__all__ = ["Place", "Precision"]

Precision = Literal["auto", "float32", "bfloat16"]


class Place:
    """The device of this process, beside how many others, and the precision of what runs there.

    Under `accelerate launch` every process trains on a share of every epoch's batches and gradients are averaged; else there is
    one process, on the GPU where there is one.

    Args:
        precision: "float32"; "bfloat16" for autocast with float32 weights; "auto" is what accelerate was configured with, else
            bfloat16 on GPUs and CPUs that compute in it (AMX, AVX-512 BF16).

    Raises:
        UnknownName: no such precision.
        UsageError: accelerate was configured for float16, whose scaled gradients the loops here do not undo.
    """

    def __init__(self, precision: Precision = "auto") -> None:
        if precision not in get_args(Precision):
            raise UnknownName("precision", precision, get_args(Precision))
        # imported here since only training needs it
        from accelerate import Accelerator, DistributedDataParallelKwargs  # type: ignore[import-untyped]

        self._accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
        self.device: torch.device = self._accelerator.device
        self.processes: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        configured = self._accelerator.mixed_precision
        if configured in ("fp16", "fp8"):
            raise UsageError("not a precision to recover in", where="accelerate", got=configured, wanted="no or bf16")
        self.halved = precision == "bfloat16" or (precision == "auto" and (configured == "bf16" or _computes_halves(self.device)))

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it, operators that bear it run in the precision chosen."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.halved else nullcontext()

    def moved(self, values: Any) -> Any:
        """The same nest of tensors on this device; inputs stay inputs."""
        if isinstance(values, Inputs):
            return Inputs(self.moved(values.args), self.moved(dict(values.kwargs)) if values.kwargs is not None else None)
        return pytree.tree_map(lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, values)

    def portable(self, model: nn.Module) -> nn.Module:
        """The model as one that takes inputs from the CPU and gives outputs there."""
        return model if self.device.type == "cpu" else _Portable(model, self)

    def joined(self, model: nn.Module) -> nn.Module:
        """The model, with its gradients averaged over all processes where there are several."""
        if self.processes == 1:
            return model
        prepared: nn.Module = self._accelerator.prepare_model(model)
        return prepared

    def agree(self, model: nn.Module, judge: Callable[[nn.Module], float]) -> float:
        """What the first process thinks of the model; the others get its statistics and its opinion."""
        if self.processes == 1:
            return judge(model)
        from accelerate.utils import broadcast  # type: ignore[import-untyped]

        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
        return self.common(judge(model) if self.first else 0.0)

    def common(self, value: float) -> float:
        """The first process's value, for all."""
        if self.processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        held = [value]
        broadcast_object_list(held)
        return float(held[0])


def _computes_halves(device: torch.device) -> bool:
    """Whether bfloat16 is computed in, and not only stored.

    A step of ResNet-56 or MiniLM took 0.55 of the time on a CPU with AMX, 0.53 and 0.6 on one with AVX-512's products of pairs only.
    """
    if device.type == "cpu":
        known = torch.cpu.get_capabilities()
        return any(known.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


class _Portable(nn.Module):
    def __init__(self, model: nn.Module, place: Place) -> None:
        super().__init__()
        self.model, self.place = model, place

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.model(*self.place.moved(args), **self.place.moved(kwargs))
        return pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, outputs)
