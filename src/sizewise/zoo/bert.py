"""BERT's encoder at any width and depth, and a classifier of sequences on top of it.

Source: Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, NAACL 2019. State-dict names follow
transformers' `BertModel` and `BertForSequenceClassification`, so their checkpoints load; the heads of pre-training are not
here. Deviations: weights start from a normal distribution that is not truncated (as in transformers).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.errors import UsageError

__all__ = ["BertClassifier", "BertEncoder"]

_EPS = 1e-12  # of the normalizations, as published


def _forget_position_ids(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    # checkpoints of transformers before 4.31 hold the numbers 0, 1, 2, ... as a buffer
    state.pop(f"{prefix}position_ids", None)


class Embeddings(nn.Module):
    """The sum of a vector for the token, one for its position and one for its segment, normalized."""

    def __init__(self, vocab: int, hidden: int, positions: int, token_types: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, hidden, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, hidden)
        self.token_type_embeddings = nn.Embedding(token_types, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=_EPS)
        self.dropout = nn.Dropout(dropout)
        self.register_load_state_dict_pre_hook(_forget_position_ids)  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Map token numbers [batch, length] to [batch, length, hidden]."""
        length, most = input_ids.shape[1], self.position_embeddings.num_embeddings
        if length > most:
            raise UsageError("the sequence is longer than the model has positions", got=f"{length} tokens", wanted=f"at most {most}")
        places = torch.arange(length, device=input_ids.device)
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        total = self.word_embeddings(input_ids) + self.token_type_embeddings(segments) + self.position_embeddings(places)
        embedded: Tensor = self.dropout(self.LayerNorm(total))
        return embedded


class SelfAttention(nn.Module):
    """Scaled dot-product attention in several heads; the projection of their outputs is `Projection`'s."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.head_size = hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dropout = dropout

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Map [batch, length, hidden] to the same shape; `bias` [batch, 1, 1, length] is added to the scores."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropped)
        return mixed.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        # by size rather than number, so that whole heads can be cut from the layers
        return x.reshape(x.shape[0], x.shape[1], -1, self.head_size).transpose(1, 2)


class Projection(nn.Module):
    """A linear layer whose output is added to the residual path, then normalized (post-LN)."""

    def __init__(self, in_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map [batch, length, in] and the residual path [batch, length, hidden] to the latter's shape."""
        joined: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return joined


class Attention(nn.Module):
    """Self-attention and its projection."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self = SelfAttention(hidden, heads, dropout)
        self.output = Projection(hidden, hidden, dropout)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Map [batch, length, hidden] to the same shape."""
        out: Tensor = self.output(self.self(x, bias), x)
        return out


class Intermediate(nn.Module):
    """The wide layer with the exact (not the tanh-approximated) GELU."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, intermediate)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, hidden] to [batch, length, intermediate]."""
        wide: Tensor = self.activation(self.dense(x))
        return wide


class Layer(nn.Module):
    """Attention, then two linear layers, each with a residual connection."""

    def __init__(self, hidden: int, heads: int, intermediate: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads, dropout)
        self.intermediate = Intermediate(hidden, intermediate)
        self.output = Projection(intermediate, hidden, dropout)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Map [batch, length, hidden] to the same shape."""
        x = self.attention(x, bias)
        out: Tensor = self.output(self.intermediate(x), x)
        return out


class Layers(nn.Module):
    """The layers, one after the other."""

    def __init__(self, layers: int, hidden: int, heads: int, intermediate: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(hidden, heads, intermediate, dropout) for _ in range(layers))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Map [batch, length, hidden] to the same shape."""
        for layer in self.layer:
            x = layer(x, bias)
        return x


class Pooler(nn.Module):
    """One linear layer and tanh on the first token."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, hidden] to [batch, hidden]."""
        return torch.tanh(self.dense(x[:, 0]))


class BertEncoder(nn.Module):
    """The encoder with its pooler, with transformers' names; BERT-base by default.

    Args:
        vocab: tokens in the vocabulary; token 0 is the padding, whose vector starts at zero and is not trained.
        hidden: numbers per token.
        layers: of attention and two linear layers each.
        heads: of attention; must divide `hidden`.
        intermediate: numbers per token between the two linear layers.
        positions: longest sequence, in tokens.
        token_types: segments that tokens may belong to.
        dropout: share of activations and attention weights dropped while training.

    Raises:
        UsageError: `heads` does not divide `hidden`.
    """

    def __init__(
        self,
        vocab: int = 30522,
        hidden: int = 768,
        layers: int = 12,
        heads: int = 12,
        intermediate: int = 3072,
        positions: int = 512,
        token_types: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if heads < 1 or hidden % heads:
            raise UsageError("the heads must share the hidden size evenly", got=f"hidden={hidden}, heads={heads}")
        self.hidden = hidden
        self.embeddings = Embeddings(vocab, hidden, positions, token_types, dropout)
        self.encoder = Layers(layers, hidden, heads, intermediate, dropout)
        self.pooler = Pooler(hidden)
        self.apply(_initialize)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode sequences of tokens.

        Args:
            input_ids: token numbers [batch, length].
            attention_mask: [batch, length], 0 where a token is padding, which no other token then attends to; None: no padding.
            token_type_ids: segment numbers [batch, length]; None: all 0.

        Returns:
            the last layer's output [batch, length, hidden], and the pooled first token [batch, hidden].

        Raises:
            UsageError: sequences longer than `positions`.
        """
        embedded = self.embeddings(input_ids, token_type_ids)
        hidden = self.encoder(embedded, None if attention_mask is None else _score_bias(attention_mask, embedded.dtype))
        return hidden, self.pooler(hidden)


def _score_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    # the lowest finite number rather than -inf: a sequence of nothing but padding then gives numbers, not NaN
    padding = (mask == 0)[:, None, None, :]
    return padding.to(dtype) * torch.finfo(dtype).min


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0, 0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()


class BertClassifier(nn.Module):
    """An encoder, dropout and one linear layer on the pooled first token, with transformers' names.

    Args:
        bert: the encoder.
        classes: outputs of the last layer.
        dropout: share of pooled features dropped while training.
    """

    def __init__(self, bert: BertEncoder, classes: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.bert = bert
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(bert.hidden, classes)
        self.classifier.apply(_initialize)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        """Map token numbers [batch, length], with mask and segments as in `BertEncoder`, to logits [batch, classes]."""
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits
