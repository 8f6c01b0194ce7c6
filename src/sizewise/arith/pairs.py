"""Scales of 8-bit weights with which no sum of two products overflows 16 bits.

On x86 processors without VNNI instructions, integer kernels multiply unsigned activations by signed weights and add the products of
neighbours in 16 bits, clipped at the ends: 255 * 127 twice is almost twice as much as there is room for. A file then computes something
else than on other machines: int8 of ResNet-56 lost 1.2 points of CIFAR-10, and of ResNet-20 1.7. Kernels that add in 32 bits take
1.3 to 2.3 times as long. Codes that add up to no more than 128 in every pair are exact in the fast kernels.

Others keep 7 bits of every weight for that ("reduce range"). But only neighbours meet, of which both are seldom large and of one sign,
and a scale has to grow only where they are.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["least_scale"]


def least_scale(weight: Float[Tensor, "out in *places"], limit: int | None) -> Float[Tensor, " out"]:
    """The least scale per output with which the codes nearest to its weights add up to at most `limit` in every pair.

    A sum goes over the inputs at the first position of a convolution's kernel, then over those at the next; its first two terms are a
    pair, and the next two, and so on. The nearest codes of two weights add up to at most 1 more than the weights do.

    Args:
        weight: of a layer, or of one of its groups after the other.
        limit: of the sum of two codes, in absolute value, at least 2; without one every scale will do, and 0 is the least.
    """
    if limit is None:
        return weight.new_zeros(len(weight), dtype=torch.float32)
    terms = weight.detach().float().flatten(2).mT.flatten(1) if weight.ndim > 2 else weight.detach().float()
    even = F.pad(terms, (0, terms.shape[1] % 2))
    largest: Tensor = (even[:, 0::2] + even[:, 1::2]).abs().amax(1)
    return largest / (limit - 1)
