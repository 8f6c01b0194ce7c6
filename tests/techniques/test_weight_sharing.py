"""Shared values to a size beyond the conformance kit: every kind of layer, sizes of real files, what fitting is worth, bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import PreconditionError, UnknownName, UnsupportedModel, UsageError
from sizewise.pipeline.apply import apply_plan
from sizewise.protocols import Context, Inputs
from sizewise.storage.forms import Product, Raw, attach_forms, attached_forms, shortest, stored_bytes
from sizewise.storage.packed import packed_bytes
from sizewise.storage.swz import write_swz
from sizewise.testing import TinyConv, check_technique
from sizewise.testing.models import DictInput, FixedBatch
from sizewise.types import Change, Plan, Step


class Mixed(nn.Module):
    """An embedding shared with the output layer, recurrent layers, a convolution in groups with a normalization."""

    def __init__(self, tokens: int = 64, width: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.conv = nn.Conv1d(width, width, 3, groups=2, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, tokens)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.conv(self.gru(self.table(ids))[0].transpose(1, 2))).transpose(1, 2)
        logits: Tensor = self.head(x)
        return logits


def mixed() -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    return Mixed().eval(), Inputs((torch.randint(0, 64, (8, 6)),))


def pictures() -> tuple[nn.Module, list[Inputs]]:
    """A network and pictures of few dimensions, as real ones are."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 8),
    )
    basis = torch.randn(6, 4 * 6 * 6)
    return model.eval(), [Inputs(((torch.randn(64, 6) @ basis).reshape(64, 4, 6, 6),)) for _ in range(6)]


def apply(model: nn.Module, inputs: Inputs, *, data: list[Inputs] | None = None, **settings: Any) -> tuple[nn.Module, Plan, Change]:
    plan = Plan(scale="x", steps=(Step(technique="weight_sharing", settings=settings),))
    module, applied, changes = apply_plan(model, plan, Context(inputs, data))
    return module, applied, changes[0]


def error(model: nn.Module, shrunk: nn.Module, inputs: Inputs) -> float:
    with torch.no_grad():
        want, got = inputs.call(model), inputs.call(shrunk)
        return float((got - want).norm() / want.norm())


def float_bytes(model: nn.Module) -> int:
    return 4 * sum(value.numel() for value in [*model.parameters(), *model.buffers()] if value.is_floating_point())


def file_bytes(shrunk: nn.Module, folder: Path) -> int:
    """Of the real file, tied tensors once."""
    tensors: dict[int, list[str]] = {}
    state, forms = shrunk.state_dict(), attached_forms(shrunk)
    for name, value in state.items():
        tensors.setdefault(value.data_ptr(), []).append(name)
        assert torch.equal(forms[name].decode(), value), name
    return write_swz(folder / "weights.swz", [(names, forms[names[0]]) for names in tensors.values()])


CODEBOOK = pytest.param({"rate": 0.4, "values": "codebook"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("settings", [{"rate": 0.3}, {"bits": 3}, {"bits": 8, "values": "uniform"}, CODEBOOK])
def test_the_promises_of_every_technique(settings: dict[str, Any]) -> None:
    model, inputs = mixed()
    change = check_technique("weight_sharing", settings, model=model, example=inputs)
    assert set(change.touched) == {"table", "gru", "conv"}


@pytest.mark.parametrize("model", [TinyConv(), FixedBatch()])
def test_small_models_and_fixed_batches(model: nn.Module) -> None:
    inputs = Inputs((torch.randn(8, 1, 6, 6),)) if isinstance(model, TinyConv) else Inputs((torch.randn(3, 5),))
    if isinstance(model, FixedBatch):
        with pytest.raises(UnsupportedModel, match="no weights"):  # 20 weights: nothing to gain
            apply(model, inputs, data=[inputs], bits=4)
    else:
        check_technique("weight_sharing", {"bits": 4}, model=model, example=inputs)


def test_keyword_inputs_and_no_data() -> None:
    torch.manual_seed(0)
    model, ids = DictInput().eval(), torch.randint(0, 20, (4, 9))
    inputs = Inputs((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    _, _, change = apply(model, inputs, bits=4)
    assert any("no calibration data" in note for note in change.notes)
    assert change.touched == ("embedding",)


@pytest.mark.parametrize(("rate", "values"), [(0.12, "auto"), (0.2, "uniform"), pytest.param(0.2, "codebook", marks=pytest.mark.slow)])
def test_the_file_has_the_size_that_was_asked_for(rate: float, values: str, tmp_path: Path) -> None:
    model, data = pictures()
    shrunk, _, _ = apply(model, data[0], data=data[:4], rate=rate, values=values)
    assert 0.9 * rate * float_bytes(model) - 300 < file_bytes(shrunk, tmp_path) <= rate * float_bytes(model)
    assert error(model, shrunk, data[5]) < (0.2 if rate == 0.12 else 0.1)


def test_a_size_in_bytes_and_data_are_worth_it(tmp_path: Path) -> None:
    model, data = pictures()
    errors = []
    for given in (None, data[:5]):
        shrunk, _, _ = apply(model, data[0], data=given, size=9000)
        assert file_bytes(shrunk, tmp_path) <= 9000
        errors.append(error(model, shrunk, data[5]))
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.slow
def test_every_bit_halves_the_error_about() -> None:
    model, data = pictures()
    errors = [error(model, apply(model, data[0], data=data[:5], bits=bits)[0], data[5]) for bits in (3, 6)]
    assert errors[0] > 4 * errors[1]


def test_normalizations_hold_constants_and_skipped_layers_stay() -> None:
    model, data = pictures()
    shrunk, _, change = apply(model, data[0], data=data[:4], rate=0.3, skip=("6",))
    assert torch.equal(shrunk.get_parameter("6.weight"), model.get_parameter("6.weight"))
    assert any(skip.what == "6.weight" and skip.reason == "named in skip" for skip in change.skipped)
    assert len(torch.unique(shrunk.get_parameter("1.weight"))) == 1


def test_the_rate_is_that_of_the_model_the_plan_began_with(tmp_path: Path) -> None:
    model, data = pictures()
    steps = (Step(technique="channel_pruning", settings={"rate": 0.4}), Step(technique="weight_sharing", settings={"rate": 0.15}))
    shrunk, _, _ = apply_plan(model, Plan(scale="x", steps=steps), Context(data[0], data[:4], channel_multiple=1))
    size = file_bytes(shrunk, tmp_path)
    assert 0.12 * float_bytes(model) < size <= 0.15 * float_bytes(model)
    assert size > 0.2 * float_bytes(shrunk)


@pytest.mark.parametrize("rate", [1.0, 0.95])
def test_where_coding_without_loss_is_enough_no_value_changes(rate: float, tmp_path: Path) -> None:
    model, data = pictures()
    shrunk, _, change = apply(model, data[0], data=data[:2], rate=rate)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in shrunk.state_dict().items())
    assert file_bytes(shrunk, tmp_path) <= rate * float_bytes(model)
    assert any("no value had to change" in note for note in change.notes)
    assert [saved.method for saved in change.contributions] == ["entropy coding"]


def test_a_tiny_model_at_rate_1_still_fits(tmp_path: Path) -> None:
    """Its names and shapes take what coding saves."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), Inputs((torch.randn(64, 16),))
    shrunk, _, _ = apply(model, inputs, data=[inputs], rate=1.0)
    assert file_bytes(shrunk, tmp_path) <= float_bytes(model)
    assert error(model, shrunk, inputs) < 0.02


def test_what_each_method_saves_is_that_of_real_files(tmp_path: Path) -> None:
    model, data = pictures()
    shrunk, _, change = apply(model, data[0], data=data[:4], rate=0.12)
    values, coding = change.contributions
    assert values.method == "shared values"
    assert values.bytes_without == write_swz(tmp_path / "a.swz", [((name,), shortest(v)) for name, v in model.state_dict().items()])
    size = file_bytes(shrunk, tmp_path)
    assert values.size_bytes == coding.size_bytes == size
    assert coding.method == "entropy coding"
    forms = attached_forms(shrunk)
    parts = [(packed_bytes(form), stored_bytes(form)) for form in forms.values()]
    assert coding.bytes_without == size + sum(packed - stored for packed, stored in parts)
    assert coding.bytes_without > 1.1 * size


class Memory(nn.Module):
    """A recurrent layer, one of whose matrices is a product already."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(16, 48, batch_first=True), nn.Linear(48, 8)
        form = Product(Raw(0.05 * torch.randn(144, 6)), Raw(torch.randn(6, 48)), (144, 48))
        with torch.no_grad():
            self.gru.get_parameter("weight_hh_l0").copy_(form.decode())
        attach_forms(self, {"gru.weight_hh_l0": form})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(x)[0][:, -1])
        return out


@pytest.mark.parametrize(
    "settings", [{"rate": 0.1}, {"bits": 4}, pytest.param({"rate": 0.15, "values": "codebook"}, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("with_data", [True, False])
def test_of_products_the_factors_are_coded(settings: dict[str, Any], with_data: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Memory().eval(), [Inputs((torch.randn(64, 9, 16),)) for _ in range(4)]
    shrunk, _, change = apply(model, data[0], data=data[:3] if with_data else None, **settings)
    form = attached_forms(shrunk)["gru.weight_hh_l0"]
    assert isinstance(form, Product)
    assert form.left.shape == (144, 6)
    assert {form.left.kind, form.right.kind} <= {"integers", "codebook"}
    size = file_bytes(shrunk, tmp_path)
    assert size <= settings.get("rate", 1) * float_bytes(model)
    numbers = sum(p.numel() for p in model.parameters() if p.ndim == 2) - 144 * 48 + 6 * 192
    assert any(f"each of {numbers} weights" in note for note in change.notes)
    whole = Memory().eval()
    whole.load_state_dict(model.state_dict())
    attach_forms(whole, {})
    plain, _, _ = apply(whole, data[0], data=data[:3] if with_data else None, **settings)
    if "bits" in settings:
        assert size < 0.75 * file_bytes(plain, tmp_path)
    else:
        assert error(model, shrunk, data[3]) < error(model, plain, data[3])


def test_a_product_that_no_longer_holds_is_a_weight_as_others() -> None:
    torch.manual_seed(0)
    model, x = Memory().eval(), Inputs((torch.randn(64, 9, 16),))
    with torch.no_grad():
        model.get_parameter("gru.weight_hh_l0")[0, 0] += 1
    shrunk, _, _ = apply(model, x, data=[x], bits=4)
    assert attached_forms(shrunk)["gru.weight_hh_l0"].kind != "product"


def test_a_size_that_cannot_be_reached_names_the_smallest() -> None:
    model, data = pictures()
    with pytest.raises(PreconditionError, match="so few bytes") as caught:
        apply(model, data[0], data=data[:2], size=500)
    assert "a rate of about" in str(caught.value)


@pytest.mark.parametrize("settings", [{"rate": 0.1, "bits": 3}, {"rate": 1.5}, {"size": 0}, {"bits": 1}, {"bits": 9}])
def test_settings_that_cannot_be_meant(settings: dict[str, Any]) -> None:
    model, inputs = mixed()
    with pytest.raises(UsageError):
        apply(model, inputs, **settings)


def test_bad_models_and_names() -> None:
    model, inputs = mixed()
    with pytest.raises(UnknownName):
        apply(model, inputs, values="other")
    with pytest.raises(UnknownName):
        apply(model, inputs, skip=("nothing",))
    with pytest.raises(UnsupportedModel, match="float64"):
        apply(model.double(), inputs)
    with torch.no_grad():
        model.float().get_parameter("table.weight")[0, 0] = torch.nan
    with pytest.raises(PreconditionError, match="finite"):
        apply(model, inputs)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-4])
def test_inputs_that_hardly_vary_are_no_trouble(scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(scale)
        model.get_parameter("0.bias").add_(3)
    inputs = Inputs((torch.randn(333, 16),))
    shrunk, _, _ = apply(model, inputs, data=[inputs, inputs], bits=4)
    with torch.no_grad():
        assert (inputs.call(shrunk) - inputs.call(model)).abs().max() < 1e-2


def test_activations_that_are_not_finite_are_refused() -> None:
    model, data = pictures()
    with pytest.raises(PreconditionError, match="not finite"):
        apply(model, data[0], data=[Inputs((torch.full((4, 4, 6, 6), torch.inf),))], rate=0.2)
