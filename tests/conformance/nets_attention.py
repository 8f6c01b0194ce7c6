"""Small transformers whose code takes heads apart in every common way, for tests."""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
VOCABULARY = 40


class CountedHeads(nn.Module):
    """Three linear layers; the number of heads is an attribute and their size is inferred."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        query, key, value = (
            layer(x).view(batch, tokens, self.num_heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        out: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return out


class InferredHeads(nn.Module):
    """Three linear layers; the size of heads is an attribute and their number is inferred."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        query, key, value = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))
        return out


class FusedHeads(nn.Module):
    """One linear layer makes queries, keys and values, taken apart by `chunk`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        query, key, value = (part.reshape(batch, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class StackedHeads(nn.Module):
    """One linear layer, reshaped to [batch, tokens, 3, heads, size] at once, as timm does."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * self.head_dim**-0.5 @ key.transpose(-2, -1)).softmax(-1)
        out: Tensor = self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width))
        return out


class EinsumHeads(nn.Module):
    """Heads multiplied by einsum."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_head = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (self.n_head, -1)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", query, key) / 2.0, -1)
        out: Tensor = self.out(torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(-2))
        return out


class GroupedQueries(nn.Module):
    """Several queries share a key and a value, which are repeated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, heads // 2, width // heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width // 2), nn.Linear(width, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        query = self.query(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        pairs = (layer(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2) for layer in (self.key, self.value))
        key, value = (one.repeat_interleave(2, 1) for one in pairs)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class TorchHeads(nn.Module):
    """torch's own attention layer, whose weights are parameters of the layer itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


Attention = Callable[[int, int], nn.Module]


class Block(nn.Module):
    """Attention and two linear layers, each behind a normalization and beside a shortcut."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    def __init__(self, attention: Attention, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(Block(width, attention(width, heads)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


class TorchEncoder(nn.Module):
    """torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.embedding, self.encoder = nn.Embedding(VOCABULARY, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embedding(tokens)).mean(1))
        return logits


class TorchTransformer(nn.Module):
    """torch's own encoder and decoder, with attention across."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        logits: Tensor = self.head(self.transformer(self.embedding(source), self.embedding(target)))
        return logits


class Decoder(nn.Module):
    """A language model: causal attention with fewer keys than queries, a gated linear layer, tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(VOCABULARY, 32), nn.RMSNorm(32)
        self.attention = GroupedQueries(32, 4)
        self.gate, self.up, self.down = nn.Linear(32, 96, bias=False), nn.Linear(32, 96, bias=False), nn.Linear(96, 32, bias=False)
        self.head = nn.Linear(32, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.attention(self.norm(x))
        inner = self.norm(x)
        x = x + self.down(F.silu(self.gate(inner)) * self.up(inner))
        return cast("Tensor", self.head(x))


class Conformer(nn.Module):
    """Speech: half-step linear layers, attention, and a convolution with a gated linear unit."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inner = nn.Linear(40, width)
        self.first, self.last = (nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width)) for _ in range(2))
        self.attention, self.norm = CountedHeads(width, 4), nn.LayerNorm(width)
        self.point = nn.Conv1d(width, 2 * width, 1)
        self.depthwise, self.batch = nn.Conv1d(width, width, 5, padding=2, groups=width), nn.BatchNorm1d(width)
        self.back, self.head = nn.Conv1d(width, width, 1), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x.transpose(1, 2))
        x = x + 0.5 * self.first(x)
        x = x + self.attention(self.norm(x))
        gated = F.glu(self.point(x.transpose(1, 2)), 1)
        x = x + self.back(F.silu(self.batch(self.depthwise(gated)))).transpose(1, 2)
        logits: Tensor = self.head((x + 0.5 * self.last(x)).mean(1))
        return logits
