"""Training a candidate: the layout it trains in is nobody else's business, and the seed decides the result."""

import torch
from torch import Tensor, nn

from sizewise.pipeline.train import train_module
from sizewise.tasks.task import Untrained

X, Y = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
LOADER = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]


class ByView(nn.Module):
    """Reshapes its activations by `view`, which needs them laid out channel after channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x)
        logits: Tensor = self.head(hidden.view(len(x), -1))
        return logits


def by_flatten() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2))


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    return train_module(model, LOADER, Untrained(lambda: model, epochs=3, lr=1e-2), seed, "here")


def test_a_model_that_reshapes_by_view_is_trained() -> None:
    model = ByView()
    before = [p.detach().clone() for p in model.parameters()]
    trained(model)
    assert all((was != now).any() for was, now in zip(before, model.parameters(), strict=True))


def test_weights_come_back_contiguous_and_the_seed_decides_them() -> None:
    torch.manual_seed(0)
    first = by_flatten()
    second = by_flatten()
    second.load_state_dict(first.state_dict())
    trained(first)
    trained(second)
    assert not first.training
    assert all(p.is_contiguous() for p in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_the_layout_changes_nothing_but_rounding() -> None:
    """Against the textbook loop in the layout that the weights came in."""
    torch.manual_seed(0)
    model, plain = by_flatten().double(), by_flatten().double()
    plain.load_state_dict(model.state_dict())
    loader = [(x.double(), y) for x, y in LOADER]
    train_module(model, loader, Untrained(lambda: model, epochs=3, lr=1e-2), 0, "here")
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=13, cycle_momentum=False)
    for x, y in loader * 3:
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(plain.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
