"""Shrunk modules survive a folder: pruned, quantized, both."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sizewise
from sizewise.errors import UsageError
from sizewise.testing import TinyConv


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyConv().eval()


@pytest.fixture
def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 1, 6, 6, generator=generator) for _ in range(4)]


def check(shrunk: nn.Module, model: nn.Module, data: list[Tensor], folder: Path) -> None:
    sizewise.save_model(shrunk, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "weights.safetensors"]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        loaded = sizewise.load_model(folder, TinyConv().eval(), data[0])
    with torch.no_grad():
        assert torch.equal(loaded(data[0]), shrunk(data[0]))
    sizewise.save_model(loaded, folder)  # what was loaded knows what made it, too
    assert torch.equal(sizewise.load_model(folder, model, data[0])(data[0]), loaded(data[0]))


def test_a_pruned_model(model: nn.Module, data: list[Tensor], tmp_path: Path) -> None:
    check(sizewise.prune_model(model, 0.4, example_inputs=data[0], calibration=data, multiple=1), model, data, tmp_path)


def test_a_quantized_model(model: nn.Module, data: list[Tensor], tmp_path: Path) -> None:
    check(sizewise.quantize_model(model, calibration=data), model, data, tmp_path)


def test_a_pruned_then_quantized_model(model: nn.Module, data: list[Tensor], tmp_path: Path) -> None:
    pruned = sizewise.prune_model(model, 0.4, example_inputs=data[0], calibration=data, multiple=1)
    check(sizewise.quantize_model(pruned, "int4", calibration=data, group=16), model, data, tmp_path)


def test_pruned_in_place(model: nn.Module, data: list[Tensor], tmp_path: Path) -> None:
    pruned = sizewise.prune_model(model, 0.4, example_inputs=data[0], calibration=data, multiple=1, in_place=True)
    check(pruned, TinyConv().eval(), data, tmp_path)


def test_what_was_not_shrunk_or_not_saved_is_refused(model: nn.Module, data: list[Tensor], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not know how it was shrunk"):
        sizewise.save_model(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match=r"no plan\.json"):
        sizewise.load_model(tmp_path, model, data[0])
    sizewise.save_model(sizewise.quantize_model(model, torch.float16, calibration=data), tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(UsageError, match="damaged"):
        sizewise.load_model(tmp_path, model, data[0])
