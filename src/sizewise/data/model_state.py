"""Which tensors a model's state really holds: those of several names once."""

from torch import Tensor, nn

from sizewise.errors import UsageError

__all__ = ["distinct_tensors"]


def distinct_tensors(model: nn.Module) -> list[tuple[tuple[str, ...], Tensor]]:
    """Every tensor of the state with all its names, in the state's order; those of the same memory, type, shape and strides are one.

    Raises:
        UsageError: the state holds something that is not a tensor.
    """
    found: dict[object, tuple[list[str], Tensor]] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UsageError("the model's state holds something that is not a tensor", where=name, got=type(value).__name__)
        place = (value.device, value.dtype, value.data_ptr(), tuple(value.shape), value.stride())
        found.setdefault(place if value.numel() else name, ([], value))[0].append(name)
    return [(tuple(names), value) for names, value in found.values()]
