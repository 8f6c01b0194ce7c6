"""GRU and LSTM classifiers: the recurrences written out, sizes, export."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from sizewise.errors import UnknownName
from sizewise.pipeline.export import export_model
from sizewise.protocols import Inputs
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.zoo.recurrent import RecurrentClassifier

Kind = Literal["gru", "lstm"]


def _gru_step(state: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
    from_x = x @ state["weight_ih_l0"].T + state["bias_ih_l0"]
    from_h = h @ state["weight_hh_l0"].T + state["bias_hh_l0"]
    (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3, 1), from_h.chunk(3, 1)
    reset, update = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    return (1 - update) * torch.tanh(xn + reset * hn) + update * h


def _lstm_step(state: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    total = x @ state["weight_ih_l0"].T + state["bias_ih_l0"] + h @ state["weight_hh_l0"].T + state["bias_hh_l0"]
    enter, forget, cell, leave = total.chunk(4, 1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(cell)
    return torch.sigmoid(leave) * torch.tanh(c), c


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_it_is_the_mean_of_the_recurrence_then_linear(kind: Kind) -> None:
    model = RecurrentClassifier(kind, 5, 3, hidden=7).double().eval()
    state = dict(model.recurrent.state_dict())
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    h = c = torch.zeros(2, 7, dtype=torch.float64)
    total = torch.zeros_like(h)
    for at in range(6):
        if kind == "gru":
            h = _gru_step(state, x[:, at], h)
        else:
            h, c = _lstm_step(state, x[:, at], h, c)
        total = total + h / 6
    torch.testing.assert_close(model(x), model.classifier(total))


@pytest.mark.parametrize(("kind", "gates"), [("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_size_by_the_formula(kind: Kind, gates: int, bidirectional: bool) -> None:
    model = RecurrentClassifier(kind, 40, 10, hidden=16, layers=2, bidirectional=bidirectional)
    directions = 1 + bidirectional
    layers = sum(directions * gates * 16 * (entering + 16 + 2) for entering in (40, 16 * directions))
    assert sum(p.numel() for p in model.parameters()) == layers + 16 * directions * 10 + 10
    assert model(torch.randn(3, 8, 40)).shape == (3, 10)


def test_names_are_torchs() -> None:
    names = set(RecurrentClassifier("gru", layers=2, bidirectional=True).state_dict())
    ends = [f"l{layer}{back}" for layer in (0, 1) for back in ("", "_reverse")]
    parts = {f"{part}_{way}_{end}" for part in ("weight", "bias") for way in ("ih", "hh") for end in ends}
    assert names == {f"recurrent.{part}" for part in parts} | {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_is_only_for_training(layers: int) -> None:
    model, x = RecurrentClassifier("gru", 5, 3, hidden=16, layers=layers, dropout=0.5), torch.randn(2, 9, 5)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_another_kind_is_refused() -> None:
    with pytest.raises(UnknownName, match="'lstn'") as caught:
        RecurrentClassifier("lstn")  # type: ignore[arg-type]
    assert caught.value.hint == "did you mean 'lstm'?"


# short sequences: torch's exporter walks through every frame
@pytest.mark.parametrize(("kind", "layers", "bidirectional"), [("gru", 1, False), ("lstm", 2, True)])
def test_it_becomes_one_file_with_a_free_batch(tmp_path: Path, kind: Kind, layers: int, bidirectional: bool) -> None:
    model = RecurrentClassifier(kind, 5, 3, 8, layers, bidirectional).eval()
    artefact = export_model(model, torch.randn(1, 3, 5), tmp_path / "model.onnx")
    assert artefact.batch == "dynamic"
    x = torch.randn(4, 3, 5)
    (got,) = OnnxRuntime().load(tmp_path / "model.onnx", threads=1)(Inputs((x,)))
    torch.testing.assert_close(got, model(x).detach(), rtol=1e-3, atol=1e-5)
