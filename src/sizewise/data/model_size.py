"""What a model takes in float32."""

from torch import nn

__all__ = ["float_bytes"]


def float_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of real numbers as float32, shared ones once."""
    return 4 * sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
