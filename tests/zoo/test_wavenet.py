"""WaveNet: causality, receptive field, the gate written out, export."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.pipeline.export import export_model
from sizewise.protocols import Inputs
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.zoo.wavenet import GatedLayer, WaveNet


def _tiny(blocks: int = 3, stacks: int = 2, kernel: int = 2) -> WaveNet:
    torch.manual_seed(0)
    return WaveNet(5, 3, channels=4, skip_channels=6, blocks=blocks, stacks=stacks, kernel=kernel).double().eval()


@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_nothing_before_a_change_changes_and_nothing_behind_its_reach(blocks: int, stacks: int, kernel: int, data: st.DataObject) -> None:
    model = _tiny(blocks, stacks, kernel)
    reach = model.receptive_field
    length = reach + 4
    where = data.draw(st.integers(0, 3))
    x = torch.randn(1, length, 5, dtype=torch.float64)
    other = x.clone()
    other[:, where] += 1
    with torch.no_grad():
        changed = (model.frames(x) - model.frames(other)).abs().amax((0, 1)) > 0
    assert not changed[:where].any(), "the past saw the future"
    assert not changed[where + reach :].any(), "a frame saw further than the receptive field"


@pytest.mark.parametrize(("blocks", "stacks", "kernel", "frames"), [(1, 1, 2, 3), (3, 1, 2, 9), (3, 2, 2, 16), (4, 2, 3, 63), (2, 1, 1, 1)])
def test_the_receptive_field_is_reached(blocks: int, stacks: int, kernel: int, frames: int) -> None:
    model = _tiny(blocks, stacks, kernel)
    assert model.receptive_field == frames
    x = torch.randn(1, frames, 5, dtype=torch.float64)
    other = x.clone()
    other[:, 0] += 1
    with torch.no_grad():
        assert not torch.equal(model.frames(x)[..., -1], model.frames(other)[..., -1])


def test_a_gated_layer_is_the_papers_formula() -> None:
    layer = GatedLayer(3, 5, kernel=2, dilation=4).eval()
    x = torch.randn(2, 3, 11)

    def tap(weights: Tensor, at: int) -> Tensor:
        total = torch.zeros(2, 3)
        for index, place in enumerate((at - 4, at)):
            if place >= 0:
                total = total + x[:, :, place] @ weights[:, :, index].T
        return total

    following, skip = layer(x)
    assert layer.residual is not None
    for at in range(11):
        filtered = tap(layer.filter.weight, at) + _bias(layer.filter)
        gated = torch.tanh(filtered) * torch.sigmoid(tap(layer.gate.weight, at) + _bias(layer.gate))
        torch.testing.assert_close(skip[:, :, at], gated @ layer.skip.weight[:, :, 0].T + _bias(layer.skip))
        torch.testing.assert_close(following[:, :, at], x[:, :, at] + gated @ layer.residual.weight[:, :, 0].T + _bias(layer.residual))


def _bias(layer: torch.nn.Conv1d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def test_skips_are_summed_and_the_head_means_over_time() -> None:
    model = _tiny()
    x = torch.randn(2, 20, 5, dtype=torch.float64)
    inner = model.input(torch.nn.functional.pad(x.transpose(1, 2), (1, 0)))
    total = torch.zeros(2, 6, 20, dtype=torch.float64)
    for layer in model.layers:
        inner, skip = layer(inner)
        total = total + skip
    torch.testing.assert_close(model.frames(x), model.hidden(total.relu()).relu())
    torch.testing.assert_close(model(x), model.classifier(model.frames(x).mean(2)))


def test_every_parameter_is_used_and_names_are_stable() -> None:
    model = WaveNet(5, 3, 4, 6, blocks=2, stacks=2)
    model(torch.randn(2, 9, 5)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    names = set(model.state_dict())
    assert {"input.weight", "layers.0.filter.weight", "layers.2.gate.bias", "layers.3.skip.weight", "hidden.bias"} <= names
    assert "layers.2.residual.weight" in names
    assert "layers.3.residual.weight" not in names, "nobody would read it"


def test_width_and_depth_scale() -> None:
    counts = [sum(p.numel() for p in WaveNet(channels=c, skip_channels=c, blocks=b).parameters()) for c, b in ((8, 3), (16, 3), (16, 6))]
    assert counts[0] < counts[1] < counts[2]


def test_dropout_is_only_for_training() -> None:
    model, x = WaveNet(5, 3, 8, 8, dropout=0.5), torch.randn(2, 9, 5)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_it_becomes_one_file_with_a_free_batch(tmp_path: Path) -> None:
    model = _tiny().float()
    artefact = export_model(model, torch.randn(1, 20, 5), tmp_path / "model.onnx")
    assert artefact.batch == "dynamic"
    x = torch.randn(3, 20, 5)
    (got,) = OnnxRuntime().load(tmp_path / "model.onnx", threads=1)(Inputs((x,)))
    torch.testing.assert_close(got, model(x).detach(), rtol=1e-3, atol=1e-5)
