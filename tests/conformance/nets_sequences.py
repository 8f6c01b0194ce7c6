"""Small networks over time, over tokens and over tables, for tests: each isolates one way in which channels meet."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

CLASSES = 10
VOCABULARY = 40


def conv_1d() -> nn.Module:
    """Speech frames [batch, 40, time]."""
    return nn.Sequential(
        nn.Conv1d(40, 32, 3, padding=1),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Conv1d(32, 48, 3, padding=2, dilation=2),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(48, CLASSES),
    )


class Causal(nn.Module):
    """A residual block of a temporal convolutional network: padding on both sides, the future cut off."""

    def __init__(self, before: int, after: int, dilation: int, normed: bool) -> None:
        super().__init__()
        self.reach = 2 * dilation
        convs = (nn.Conv1d(a, after, 3, padding=self.reach, dilation=dilation) for a in (before, after))
        self.conv1, self.conv2 = (weight_norm(conv) if normed else conv for conv in convs)
        self.shortcut: nn.Module = nn.Identity() if before == after else nn.Conv1d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.conv1(x)[..., : -self.reach])
        inner = F.relu(self.conv2(inner)[..., : -self.reach])
        return F.relu(inner + self.shortcut(x))


class TemporalConvolution(nn.Module):
    def __init__(self, normed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Causal(40, 24, 1, normed), Causal(24, 24, 2, normed), Causal(24, 32, 4, normed))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(x)[:, :, -1])
        return logits


class Recurrent(nn.Module):
    """Recurrent layers whose last output is classified."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1, bidirectional: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        options = {"batch_first": batch_first, "bidirectional": bidirectional}
        self.recurrent = kind(12, 24, layers, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(48 if bidirectional else 24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.recurrent(x if self.batch_first else x.transpose(0, 1))
        logits: Tensor = self.head(out[:, -1] if self.batch_first else out[-1])
        return logits


class LastState(nn.Module):
    """A tagger that reads the final states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(12, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, _) = self.recurrent(x)
        logits: Tensor = self.head(torch.cat([hidden[0], hidden[1]], -1))
        return logits


class EmbeddedLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.recurrent = nn.Embedding(VOCABULARY, 24), nn.LSTM(24, 32, batch_first=True)
        self.inner, self.head = nn.Linear(32, 24), nn.Linear(24, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        out, _ = self.recurrent(self.embedding(tokens))
        logits: Tensor = self.head(F.relu(self.inner(out.mean(1))))
        return logits


class CellLoop(nn.Module):
    """A cell that the code calls for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.cell, self.head = nn.Linear(12, 24), nn.GRUCell(24, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(len(x), self.cell.hidden_size, dtype=x.dtype)
        for step in range(x.shape[1]):
            hidden = self.cell(F.relu(self.inner(x[:, step])), hidden)
        logits: Tensor = self.head(hidden)
        return logits


class ConvRecurrent(nn.Module):
    """Pictures of text: columns of a feature map become steps of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.recurrent, self.head = nn.LSTM(16 * 4, 24, batch_first=True, bidirectional=True), nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv(x)
        steps = found.permute(0, 3, 1, 2).flatten(2)
        out, _ = self.recurrent(steps)
        logits: Tensor = self.head(out)
        return logits


class SequenceToSequence(nn.Module):
    """A GRU that reads, a GRU that begins with its state and writes, and attention of one on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.encoder, self.decoder = nn.GRU(16, 24, batch_first=True), nn.GRU(16, 24, batch_first=True)
        self.merge, self.head = nn.Linear(48, 24), nn.Linear(24, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.embedding(source))
        out, _ = self.decoder(self.embedding(target), state)
        weights = torch.softmax(out @ memory.transpose(1, 2), -1)
        logits: Tensor = self.head(torch.tanh(self.merge(torch.cat([out, weights @ memory], -1))))
        return logits


class TiedLanguageModel(nn.Module):
    """The embedding's weights are the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.recurrent = nn.Embedding(VOCABULARY, 24), nn.GRU(24, 48, batch_first=True)
        self.project, self.head = nn.Linear(48, 24), nn.Linear(24, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out, _ = self.recurrent(self.embedding(tokens))
        logits: Tensor = self.head(self.project(out))
        return logits


class TwoTowers(nn.Module):
    """A recommender: embeddings of two columns beside numbers, in a dict; a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(30, 16), nn.Embedding(20, 16)
        self.numbers = nn.Linear(6, 16)
        self.body = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.click, self.rating = nn.Linear(24, 1), nn.Linear(24, 5)

    def forward(self, user: Tensor, item: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        joined = torch.cat([self.user(user), self.item(item), F.relu(self.numbers(numbers))], -1)
        body = self.body(joined)
        return {"logits": self.click(body), "rating": self.rating(body)}


class SetNetwork(nn.Module):
    """PointNet: every point by itself, the largest over points, and what all points share beside each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(3, 24, 1), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 32, 1), nn.ReLU())
        self.both = nn.Sequential(nn.Conv1d(64, 32, 1), nn.ReLU(), nn.Conv1d(32, 4, 1))

    def forward(self, points: Tensor) -> Tensor:
        each = self.each(points)
        shared = each.amax(2, keepdim=True).expand_as(each)
        labels: Tensor = self.both(torch.cat([each, shared], 1))
        return labels


class GraphNetwork(nn.Module):
    """Two graph convolutions: features are multiplied with a matrix of neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, features: Tensor, neighbours: Tensor) -> Tensor:
        x = F.relu(neighbours @ self.first(features))
        x = F.relu(torch.bmm(neighbours, self.second(x))) + x
        logits: Tensor = self.head(x)
        return logits


class Radiance(nn.Module):
    """NeRF: positions by waves, joined again in the middle; two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(72, 48), nn.ReLU())
        self.density, self.color = nn.Linear(48, 1), nn.Linear(48, 3)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        scaled = torch.cat([points * 2.0**power for power in range(4)], -1)
        waves = torch.cat([scaled.sin(), scaled.cos()], -1)
        x = self.second(torch.cat([self.first(waves), waves], -1))
        return torch.sigmoid(self.color(x)), F.softplus(self.density(x))


class Experts(nn.Module):
    """Experts that all run, mixed by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(20, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 24)) for _ in range(3)])
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.gate(x), -1)
        stacked = torch.stack([expert(x) for expert in self.experts], 1)
        logits: Tensor = self.head((weights.unsqueeze(-1) * stacked).sum(1))
        return logits
