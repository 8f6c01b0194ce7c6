"""Modules survive one small file: plain, tied, half, quantized, pruned, with forms attached."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sizewise
from sizewise.errors import UsageError
from sizewise.pipeline.compressed import compressed_bytes, load_compressed, save_compressed
from sizewise.storage.forms import Codebook, Integers, attach_forms, attached_forms, same_bits
from sizewise.storage.swz import open_swz
from sizewise.testing import TinyConv


def seeded(build: type[nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


class Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.head = nn.Linear(8, 30, bias=False)
        self.register_buffer("mask", torch.ones(6, 6).tril().bool())
        self.register_buffer("passing", torch.zeros(3), persistent=False)
        self.register_buffer("scalar", torch.tensor(7))
        self.register_buffer("nothing", torch.empty(0, 2))
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(x))
        return logits


@pytest.fixture
def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 1, 6, 6, generator=generator) for _ in range(4)]


def check_same(one: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    assert list(one.state_dict()) == list(state)
    assert all(same_bits(value, state[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("build", [TinyConv, lambda: nn.GRU(5, 7, 2, bidirectional=True), lambda: nn.MultiheadAttention(8, 2)])
def test_plain_modules(build: type[nn.Module], tmp_path: Path) -> None:
    model = seeded(build, 0)
    save_compressed(model, tmp_path / "weights.swz")
    target = seeded(build, 1).train()
    loaded = load_compressed(tmp_path / "weights.swz", target)
    check_same(loaded, model)
    assert not loaded.training
    assert target.training
    assert not same_bits(next(target.parameters()), next(loaded.parameters()))


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    model = seeded(Tied, 0)
    save_compressed(model, tmp_path / "a.swz")
    assert ("table.weight", "head.weight") in open_swz(tmp_path / "a.swz").tied
    for target in (seeded(Tied, 1), Tied(tied=False)):
        loaded = load_compressed(tmp_path / "a.swz", target)
        assert isinstance(loaded, Tied)
        check_same(loaded, model)
        assert loaded.head.weight is loaded.table.weight
    assert len(list(loaded.parameters())) == 1


def test_types_and_strides(tmp_path: Path) -> None:
    model = seeded(TinyConv, 0).half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = next(module.weight for module in model.modules() if isinstance(module, nn.Linear))
    weight.data = weight.data.t().contiguous().t().bfloat16()
    save_compressed(model, tmp_path / "a.swz")
    loaded = load_compressed(tmp_path / "a.swz", seeded(TinyConv, 1))
    check_same(loaded, model)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_attached_forms_are_written_while_they_hold(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    codes = torch.randint(-2, 3, (30, 40), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    form, stale = Integers(codes, torch.tensor([[0.25]]), (30, 40)), Codebook(codes[:20, :30].abs().byte(), torch.ones(1, 3), (20, 30))
    model[0].weight.data = form.decode()
    attach_forms(model, {"0.weight": form, "1.weight": stale})
    save_compressed(model, tmp_path / "a.swz")
    stored = open_swz(tmp_path / "a.swz")
    assert isinstance(stored.form("0.weight"), Integers)
    assert stored.form("1.weight").kind == "raw"
    loaded = load_compressed(tmp_path / "a.swz", nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20)))
    check_same(loaded, model)
    assert set(attached_forms(loaded)) == {"0.weight"}
    save_compressed(loaded, tmp_path / "b.swz")  # what was loaded is as small again
    assert (tmp_path / "b.swz").read_bytes() == (tmp_path / "a.swz").read_bytes()


def test_forms_of_another_shape_do_not_hold(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    attach_forms(model, {"weight": Integers(torch.ones(2, 2, dtype=torch.int8), torch.ones(1, 1), (2, 2))})
    save_compressed(model, tmp_path / "a.swz")
    check_same(load_compressed(tmp_path / "a.swz", nn.Linear(4, 3)), model)


@pytest.mark.parametrize("how", ["pruned", "int8", "both"])
def test_shrunk_modules_are_rebuilt_from_the_float_one(how: str, data: list[Tensor], tmp_path: Path) -> None:
    model = shrunk = seeded(TinyConv, 0).eval()
    if how != "int8":
        shrunk = sizewise.prune_model(model, 0.4, example_inputs=data[0], calibration=data, multiple=1)
    if how != "pruned":
        shrunk = sizewise.quantize_model(shrunk, "int4" if how == "both" else "int8", calibration=data, example_inputs=data[0])
    path = tmp_path / "weights.swz"
    save_compressed(shrunk, path)
    assert compressed_bytes(shrunk) == path.stat().st_size
    assert compressed_bytes(shrunk, shrunk.shrunk_by.plan) == path.stat().st_size  # type: ignore[arg-type, union-attr]
    loaded = load_compressed(path, seeded(TinyConv, 7).eval(), data[0])
    check_same(loaded, shrunk)
    with torch.no_grad():
        assert torch.equal(loaded(data[0]), shrunk(data[0]))
    save_compressed(loaded, tmp_path / "again.swz")
    assert (tmp_path / "again.swz").read_bytes() == path.read_bytes()
    with pytest.raises(UsageError, match="needs example inputs"):
        load_compressed(path, model)


def test_other_structures_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    save_compressed(nn.Linear(4, 3), tmp_path / "a.swz")
    for other in (nn.Linear(4, 3, bias=False), nn.Linear(5, 3), nn.Sequential(nn.Linear(4, 3)), nn.LayerNorm(4)):
        with pytest.raises(UsageError, match="do not fit this model"):
            load_compressed(tmp_path / "a.swz", other)
    with pytest.raises(UsageError, match="no such file"):
        load_compressed(tmp_path / "b.swz", nn.Linear(4, 3))


def test_states_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> str:
            return "more"

    with pytest.raises(UsageError, match="not a tensor"):
        save_compressed(Extra(2, 2), tmp_path / "a.swz")
    assert list(tmp_path.iterdir()) == []
