"""GRU and LSTM classifiers of sequences, at any width and depth.

Sources: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014 (GRU); Hochreiter and Schmidhuber,
Long Short-Term Memory, Neural Computation 1997, with the forget gate of Gers et al., 2000 (LSTM). Deviations, which are
torch's (and cuDNN's): the GRU's reset gate acts after the recurrent matrix product, and every gate has two biases.
"""

from typing import Literal

from torch import Tensor, nn

from sizewise.errors import UnknownName

__all__ = ["RecurrentClassifier"]

_KINDS = {"gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentClassifier(nn.Module):
    """Recurrent layers, the mean of their outputs over time, and one linear layer.

    Args:
        kind: "gru" or "lstm".
        features: numbers per frame.
        classes: outputs of the last layer.
        hidden: units per layer and direction.
        layers: recurrent layers.
        bidirectional: whether every layer also reads the sequence backwards, which doubles its outputs.
        dropout: share of outputs dropped between recurrent layers and before the linear one while training.

    Raises:
        UnknownName: another kind.
    """

    def __init__(
        self,
        kind: Literal["gru", "lstm"] = "gru",
        features: int = 40,
        classes: int = 10,
        hidden: int = 96,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise UnknownName("kind of recurrent layer", str(kind), _KINDS)
        self.recurrent: nn.GRU | nn.LSTM = _KINDS[kind](
            features,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,  # torch warns where there is no layer to drop between
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden * (2 if bidirectional else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences [batch, time, features] to logits [batch, classes]."""
        outputs, _ = self.recurrent(x)
        logits: Tensor = self.classifier(self.dropout(outputs.mean(1)))
        return logits
