"""Let the kept inputs of a layer stand in for the removed ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["absorb"]


def absorb(
    weight: Float[Tensor, "out in *taps"],
    mean: Float[Tensor, " in"],
    covariance: Float[Tensor, "in in"],
    kept: Sequence[int],
    damping: float = 1e-3,
) -> tuple[Float[Tensor, "out kept *taps"], Float[Tensor, " out"]]:
    """The weight on the kept inputs that best computes what the layer computed, and the constant to add to its output.

    Removed inputs are predicted from the kept ones by least squares, x_R = m_R + A (x_K - m_K) with
    A = C_RK (C_KK + d I)^-1, and the prediction is folded into the kept weights at every kernel tap:
    W'_K = W_K + W_R A, constant W_R (m_R - A m_K) summed over taps.

    Args:
        weight: of a linear layer (no taps) or an ungrouped convolution.
        mean: of every input channel.
        covariance: between input channels at the same position.
        kept: indices of the inputs that stay.
        damping: d as a share of the kept inputs' mean variance, against noise in few observations.

    Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 3.1, reconstructs
    with least squares over whole receptive fields; the deviation, one regression between channels shared by all taps,
    needs a matrix smaller by the square of the kernel's area and ignores correlation between positions.
    """
    keep = torch.tensor(list(kept), dtype=torch.long)
    gone = torch.tensor([i for i in range(weight.shape[1]) if i not in set(kept)], dtype=torch.long)
    taps = weight.detach().double().flatten(2) if weight.ndim > 2 else weight.detach().double().unsqueeze(-1)
    c_kk = covariance[keep][:, keep].double()
    ridge = damping * float(c_kk.diagonal().mean().clamp_min(1e-12))
    mix = torch.linalg.solve(c_kk + ridge * torch.eye(len(keep), dtype=torch.float64), covariance[keep][:, gone].double()).T
    folded = taps[:, keep] + torch.einsum("ort,rk->okt", taps[:, gone], mix)
    constant = torch.einsum("ort,r->o", taps[:, gone], mean[gone].double() - mix @ mean[keep].double())
    shape = (weight.shape[0], len(keep), *weight.shape[2:])
    return folded.reshape(shape).to(weight.dtype), constant.to(weight.dtype)
