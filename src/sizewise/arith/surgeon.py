"""Which channels to remove from what a layer reads, one after the other, when the kept ones take over their part."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Reader", "Removal", "absorbed", "removal_order"]


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels.

    Attributes:
        weight: one row per output, one column per input (of a convolution: per channel and tap).
        covariance: of the inputs, in the order of the columns.
        columns: per channel, the columns that go with it; as many for every channel. Columns of no channel always stay.
    """

    weight: Float[Tensor, "out in"]
    covariance: Float[Tensor, "in in"]
    columns: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Removal:
    """How channels go.

    Attributes:
        order: of their removal; the last one stays.
        losses: once each is gone, but for the last.
        weights: of every reader with only `keep` channels left, zero where channels are gone.
    """

    order: tuple[int, ...]
    losses: tuple[float, ...]
    weights: tuple[Float[Tensor, "out in"], ...]


def removal_order(readers: Sequence[Reader], keep: int = 1, damping: float = 1e-4) -> Removal:
    """Remove the channel that costs least, let the others take over, and so on until one is left.

    The loss of a reader is the squared error of its outputs as a share of their variance; losses of readers add up. With
    covariance C and its inverse P, removing the columns S of weight W while the others adjust costs at least
    tr(W_S (P_SS)^-1 W_S'), by the update W - W_S (P_SS)^-1 P_S. The inverse without S is P - P_:S (P_SS)^-1 P_S:, so that the
    next removal needs no new inversion.

    Args:
        readers: of the same channels; at least one.
        keep: with how many channels the updated weights are wanted.
        damping: added to the diagonal of every covariance, as a share of its mean.

    Source: Kurtic, Frantar, Alistarh, ZipLM, NeurIPS 2023, section 3.1, after Hassibi and Stork, Optimal brain surgeon, NIPS
    1992. Deviations: the covariance instead of the second moment, since a constant is taken up by a bias or a normalization;
    several readers at once, with columns beside
    those of the channels; convolutions by unfolding.
    """
    states = [_State.of(reader, damping) for reader in readers]
    alive = list(range(len(readers[0].columns)))
    order: list[int] = []
    losses: list[float] = []
    total = 0.0
    while len(alive) > 1:
        costs = torch.stack([state.costs() for state in states]).sum(0)
        place = int(costs.argmin())
        total += max(0.0, float(costs[place]))
        order.append(alive[place])
        losses.append(total)
        alive[place] = alive[-1]  # as the states do
        alive.pop()
        for state in states:
            state.remove(place)
    kept = sorted([*order, *alive][len(order) + 1 - keep :])
    return Removal((*order, *alive), tuple(losses), tuple(absorbed(reader, kept, damping) for reader in readers))


def absorbed(reader: Reader, kept: Sequence[int], damping: float = 1e-4) -> Float[Tensor, "out in"]:
    """The weights after all removals at once: W_K' = W (C + d I)_:K (C + d I)_KK^-1, which is what the single updates add up to."""
    weight = reader.weight.detach().double().cpu()
    gone = {column for channel, own in enumerate(reader.columns) if channel not in kept for column in own}
    columns = torch.tensor([column for column in range(weight.shape[1]) if column not in gone])
    damped = _damped(reader.covariance, damping)
    found = torch.zeros_like(weight)
    found[:, columns] = torch.linalg.solve(damped[columns][:, columns], (weight @ damped[:, columns]).T).T
    return found


def _damped(covariance: Float[Tensor, "in in"], damping: float) -> Float[Tensor, "in in"]:
    covariance = covariance.double().cpu()
    ridge = damping * float(covariance.diagonal().mean().clamp_min(1e-12))
    return covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)


@dataclass
class _State:
    """The inverse and the weights of the channels left, each channel's columns side by side, changed in place.

    More outputs than inputs are replaced by the triangle of their QR decomposition, which has the same products. The last
    channel left takes the place of one that goes, so that nothing else moves.
    """

    weight: Float[Tensor, "columns out"]
    inverse: Float[Tensor, "columns columns"]
    per: int
    scale: float
    left: int

    @staticmethod
    def of(reader: Reader, damping: float) -> "_State":
        columns = torch.tensor([list(c) for c in reader.columns])
        flat = columns.flatten()
        weight, covariance = reader.weight.detach().double().cpu(), reader.covariance.double().cpu()
        variance = float(torch.einsum("oi,oi->", weight @ covariance, weight))
        inverse = torch.linalg.inv(_damped(covariance, damping))[flat][:, flat].contiguous()
        weight = weight[:, flat]
        if weight.shape[0] > weight.shape[1]:
            weight = torch.linalg.qr(weight, mode="r").R
        scale = 1 / variance if variance > 0 else 0.0
        return _State(weight.T.contiguous(), inverse, columns.shape[1], scale, columns.shape[0])

    def costs(self) -> Float[Tensor, " channels"]:
        """What removing each channel adds to the loss: tr(W_S B W_S') is the sum over B o W_S' W_S."""
        columns = self.left * self.per
        weight = self.weight[:columns]
        if self.per == 1:
            return self.scale * weight.square().sum(1) / self.inverse.diagonal()[:columns]
        whole = self.inverse[:columns, :columns].view(self.left, self.per, self.left, self.per)
        blocks = whole.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight = weight.view(self.left, self.per, -1)
        costs: Tensor = self.scale * (torch.linalg.inv(blocks) * (weight @ weight.mT)).sum((1, 2))
        return costs

    def remove(self, place: int) -> None:
        """Take one channel out."""
        columns = self.left * self.per
        own, last = (slice(at * self.per, (at + 1) * self.per) for at in (place, self.left - 1))
        rows, weight = self.inverse[own, :columns].clone(), self.weight[own].clone()
        share = torch.linalg.solve(rows[:, own], rows)
        self.inverse[:columns, :columns].addmm_(rows.T, share, alpha=-1)
        self.weight[:columns].addmm_(share.T, weight, alpha=-1)
        if own != last:
            self.weight[own] = self.weight[last]
            self.inverse[own, :columns] = self.inverse[last, :columns]
            self.inverse[:columns, own] = self.inverse[:columns, last]
        self.left -= 1
