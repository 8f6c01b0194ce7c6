"""Tiny models and data that exercise every form of input, for tests of techniques and runtimes."""

import torch
from torch import Tensor, nn

from sizewise.tasks.task import Task

__all__ = ["DictInput", "FixedBatch", "TinyConv", "TwoInputs", "tiny_task"]


class TinyConv(nn.Module):
    """Two convolutions with normalization and a residual connection, a depthwise one, and a linear layer."""

    def __init__(self, classes: int = 4, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 1, h, w] to [batch, classes]."""
        x = self.stem(x)
        x = self.depthwise(x + self.inner(x))
        logits: Tensor = self.head(torch.flatten(self.pool(x), 1))
        return logits


class TwoInputs(nn.Module):
    """Adds two branches; several positional inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 16), nn.Linear(3, 16), nn.Linear(16, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map [batch, 6] and [batch, 3] to [batch, 4]."""
        logits: Tensor = self.head(torch.relu(self.left(first) + self.right(second)))
        return logits


class DictInput(nn.Module):
    """Keyword inputs and a dictionary of outputs, as transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Map token numbers and a mask, both [batch, length], to {"logits": [batch, 4]}."""
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1).clamp_min(1)
        return {"logits": self.head(mean)}


class FixedBatch(nn.Module):
    """A model that only accepts batches of three."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map [3, 5] to [3, 4]."""
        logits: Tensor = self.head(x.reshape(3, 5))
        return logits


def tiny_task(examples: int = 96, *, seed: int = 0) -> Task:
    """Two scales of `TinyConv` on random pictures whose labels are what the larger scale says, so that quality is known."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(3 * examples, 1, 6, 6, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        large, small = TinyConv(width=16), TinyConv(width=8)
        for model in (large, small):  # normalization statistics that fit the data
            model.train()
            for _ in range(20):
                model(pictures[:examples])
            model.eval()
    with torch.no_grad():
        labels = large(pictures).argmax(1)
    parts = [(pictures[i : i + 32], labels[i : i + 32]) for i in range(0, len(pictures), 32)]
    third = len(parts) // 3
    return Task(
        models={"large": large, "small": small},
        example_inputs=pictures[:1],
        calibration=parts[:third],
        validation=parts[third : 2 * third],
        test=parts[2 * third :],
        reference="large",
        name="tiny",
    )
