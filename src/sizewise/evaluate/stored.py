"""How many bytes a model's tensors take after lossless coding, where zeros cost next to nothing."""

import zlib

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["coded_bytes"]


def coded_bytes(model: nn.Module) -> int:
    """Bytes of the state dict's tensors, each as a bitmap of its nonzeros and their values, both coded by zlib at level 9.

    An estimate of what a coded container takes, without names and shapes; a runtime's own file is larger until something
    compresses it. Values of floats hardly compress, so that the size falls with the share of zeros; a tensor under several
    names is counted once.
    """
    tensors = {(t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else name: t for name, t in model.state_dict().items()}
    return sum(_coded(tensor) for tensor in tensors.values())


def _coded(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().flatten()
    filled = flat != 0
    bitmap = np.packbits(filled.numpy()).tobytes()
    values = flat[filled].contiguous().view(torch.uint8).numpy().tobytes()
    return len(zlib.compress(bitmap, 9)) + len(zlib.compress(values, 9))
