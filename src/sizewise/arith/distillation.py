"""How far a student's numbers are from its teacher's: class scores, other outputs, and features on the way to them.

Every function returns a scalar that gradients flow through to the student; the teacher's tensor is a constant.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention_error", "label_loss", "relative_error", "softened_divergence"]

FLOOR = 1e-6  # of the mean square: what the teacher holds constant must not be divided by nothing
IGNORED = -100  # torch's convention for positions that do not count


def softened_divergence(
    student: Float[Tensor, "*rows classes"], teacher: Float[Tensor, "*rows classes"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over rows of the divergence KL(teacher || student) of class probabilities softened by a temperature, in nats, times its square.

    Args:
        student: class scores before the softmax.
        teacher: the same of the teacher.
        temperature: scores are divided by it; the higher, the more the small scores count. Gradients shrink with its square,
            which the factor makes up for, so that weights of losses mean the same at every temperature.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2. Deviation: the divergence
    instead of the cross entropy, which differ by a constant, so that a perfect student has a loss of 0.
    """
    want, got = F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    rows = F.kl_div(got, want, reduction="none", log_target=True).sum(-1)
    return rows.mean() * temperature**2


def relative_error(student: Float[Tensor, "*shape"], teacher: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean squared difference as a share of the teacher's variance over all its numbers: 0 is the same, 1 is no better than its mean.

    For outputs that are no class scores and for features whose shapes agree; the division makes layers of different scale
    count alike (Romero et al., FitNets, ICLR 2015, compare without it).
    """
    variance, mean = teacher.var(correction=0), teacher.mean()  # `torch.var_mean` takes several times as long on CPUs
    scale = variance + FLOOR * (variance + mean.square())
    return F.mse_loss(student, teacher) / scale.clamp_min(torch.finfo(scale.dtype).tiny)


def attention_error(student: Float[Tensor, "n some *places"], teacher: Float[Tensor, "n others *places"]) -> Float[Tensor, ""]:
    """Mean over examples of the squared distance between normalized maps of where a layer is active; channel counts may differ.

    A map is the mean of the squares over channels, at every place, divided by its length, so that the distance is between 0 and 2.

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, equation 2. Deviation: the distance is squared, as
    in their published code.
    """
    maps = [F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def label_loss(scores: Float[Tensor, "*rows classes"], labels: Int[Tensor, "*rows"]) -> Float[Tensor, ""]:
    """Mean cross entropy, in nats, over the rows whose label is not -100; 0 where none counts."""
    flat = labels.reshape(-1).long()
    total = F.cross_entropy(scores.reshape(-1, scores.shape[-1]), flat, ignore_index=IGNORED, reduction="sum")
    return total / (flat != IGNORED).sum().clamp_min(1)
