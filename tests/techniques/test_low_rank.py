"""Low rank beyond the conformance kit: shares reached, data put to use, what is left alone, files, training, errors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import PreconditionError, UnknownName, UnsupportedModel, UsageError
from sizewise.pipeline.apply import apply_plan, rebuild_plan
from sizewise.pipeline.compressed import load_compressed, save_compressed
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.saving import load_model, remember, save_model
from sizewise.profile.layer_shapes import layer_shapes
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Inputs
from sizewise.storage.forms import Product, attached_forms
from sizewise.testing import check_technique
from sizewise.types import Change, Cost, Interval, LayerShape, Plan, Step, from_json, to_json
from sizewise.zoo.resnet import resnet_cifar
from sizewise.zoo.wavenet import WaveNet


def factorize(
    model: nn.Module, x: Tensor, *, data: bool = True, timer: Any = None, batches: int = 2, **settings: Any
) -> tuple[nn.Module, Change]:
    plan = Plan(scale="x", steps=(Step(technique="low_rank", settings=settings),))
    calibration = [Inputs((part,)) for part in x.chunk(batches)] if data else None
    module, _, changes = apply_plan(model, plan, Context(Inputs((x[:2],)), calibration, channel_multiple=4, timer=timer))
    return module, changes[0]


def mlp(width: int = 24) -> nn.Module:
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 6)).eval()


def distance(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - other(x)).square().mean() / model(x).var())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Transformer(nn.Module):
    """Torch's own encoder, and a head."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x).mean(1))
        return out


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (mlp, (32, 12)),
    "convolutions": (lambda: resnet_cifar(8), (16, 3, 12, 12)),
    "transformer": (Transformer, (8, 10, 16)),
    "wavenet": (lambda: WaveNet(features=6, channels=16, skip_channels=16, stacks=1, blocks=3), (8, 20, 6)),
}


CONFORMANCE = [(name, "params") for name in MODELS] + [pytest.param(name, "macs", marks=pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize(("name", "target"), CONFORMANCE)
def test_conformance(name: str, target: str) -> None:
    make, shape = MODELS[name]
    change = check_technique("low_rank", {"rate": 0.2, "target": target}, model=make().eval(), example=Inputs((torch.randn(shape),)))
    assert change.record["reached"] >= 0.18


@pytest.mark.parametrize(("target", "rate"), [("params", 0.3), pytest.param("params", 0.6, marks=pytest.mark.slow), ("macs", 0.4)])
def test_the_share_that_goes_is_what_was_asked(target: str, rate: float) -> None:
    model, x = resnet_cifar(8).eval(), torch.randn(16, 3, 12, 12)
    shrunk, change = factorize(model, x, rate=rate, target=target)
    before, after = (getattr(static_cost(m, Inputs((x[:2],))), target) for m in (model, shrunk))
    assert 1 - after / before == pytest.approx(change.record["reached"])
    assert rate - 0.001 <= change.record["reached"] <= rate + 0.03
    assert f"{100 * change.record['reached']:.1f} %" in change.notes[0]
    named = set(change.touched) | {skip.what for skip in change.skipped}
    layers = {path for path, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert layers <= named, "every layer is either factorized or named"


def test_data_bring_the_outputs_nearer() -> None:
    model, mix = mlp(32), torch.randn(12, 12) * torch.logspace(0, 1.5, 12)
    x, fresh = torch.randn(256, 12) @ mix, torch.randn(256, 12) @ mix
    with_data, _ = factorize(model, x, rate=0.5)
    plain, change = factorize(model, x, data=False, rate=0.5)
    assert distance(model, with_data, fresh) < 0.5 * distance(model, plain, fresh)
    assert "no calibration data" in change.notes[1]


def test_layers_of_low_rank_cost_nothing() -> None:
    model, x = mlp(32), torch.randn(128, 12)
    with torch.no_grad():
        layer: Any = model[2]  # type: ignore[index]
        layer.weight.copy_(torch.randn(32, 4) @ torch.randn(4, 32))
    shrunk, change = factorize(model, x, rate=0.3)
    assert "2" in change.touched
    assert distance(model, shrunk, torch.randn(64, 12)) < 1e-2


def test_what_is_skipped_stays() -> None:
    model, x = mlp(), torch.randn(64, 12)
    _, change = factorize(model, x, rate=0.2, skip=("2",))
    assert "2" not in change.touched
    assert ("2", "skipped on request") in {(skip.what, skip.reason) for skip in change.skipped}
    with pytest.raises(UnknownName, match="7"):
        factorize(model, x, rate=0.2, skip=("7",))


class Recurrent(nn.Module):
    """A memory of two layers and directions between layers; its matrices are nearly of rank 4."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, **settings: Any) -> None:
        super().__init__()
        self.before, self.last = nn.Linear(12, 16), nn.Linear(48, 4)
        self.memory = kind(16, 24, num_layers=2, bidirectional=True, batch_first=True, **settings)  # type: ignore[arg-type]
        with torch.no_grad():
            for value in self.memory.parameters():
                if value.ndim == 2:
                    value.copy_(0.1 * torch.randn(len(value), 4) @ torch.randn(4, value.shape[1]) + 0.01 * torch.randn(value.shape))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.memory(torch.relu(self.before(x)))[0][:, -1])
        return out


@pytest.mark.parametrize(("target", "timed"), [("macs", False), ("latency", True)])
def test_recurrent_layers_are_left_alone_where_work_counts(target: str, timed: bool, tmp_path: Path) -> None:
    layers = (nn.Linear(12, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 12))
    model, x = nn.Sequential(*layers, nn.GRU(12, 4, batch_first=True), First()).eval(), data(16)
    shrunk, change = factorize(model, x, rate=0.1, target=target, timer=FakeTimer(tmp_path) if timed else None)
    reason = "GRU multiplies whole matrices: factors would make only its file smaller"
    assert ("5", reason) in {(skip.what, skip.reason) for skip in change.skipped}
    assert not attached_forms(shrunk)


class First(nn.Module):
    """The sequence, without the state behind it."""

    def forward(self, found: tuple[Tensor, Tensor]) -> Tensor:
        return found[0]


def data(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 8, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "settings"), [(nn.GRU, {}), (nn.LSTM, {"bias": False}), (nn.RNN, {"nonlinearity": "tanh"})])
def test_recurrent_matrices_become_products_in_the_file(kind: type[nn.RNNBase], settings: dict[str, Any], tmp_path: Path) -> None:
    model, x = Recurrent(kind, **settings).eval(), data(96)
    shrunk, change = factorize(model, x, rate=0.5, skip=("before", "last"))
    forms, state = attached_forms(shrunk), shrunk.state_dict()
    assert forms
    assert set(forms) == set(change.touched)
    stored = sum(value.numel() for value in model.parameters())
    for name, form in forms.items():
        assert isinstance(form, Product)
        assert torch.equal(form.decode(), state[name])
        stored -= state[name].numel() - form.left.shape[1] * sum(state[name].shape)
    assert 1 - stored / sum(value.numel() for value in model.parameters()) == pytest.approx(change.record["reached"])
    assert any("weights.swz only" in note and "speed stay" in note for note in change.notes)
    save_compressed(shrunk, tmp_path / "a.swz")
    save_compressed(model, tmp_path / "whole.swz")
    assert (tmp_path / "a.swz").stat().st_size < 0.6 * (tmp_path / "whole.swz").stat().st_size
    again = load_compressed(tmp_path / "a.swz", model)
    with torch.no_grad():
        assert torch.equal(again(x), shrunk(x))
    assert distance(model, shrunk, data(64, 2)) < 0.02


def test_recurrent_matrices_are_fitted_to_data() -> None:
    model, x = Recurrent().eval(), data(96)
    with_data, _ = factorize(model, x, rate=0.6)
    plain, change = factorize(model, x, data=False, rate=0.6)
    assert attached_forms(plain)
    assert "no calibration data" in change.notes[1]
    assert distance(model, with_data, data(64, 2)) < 0.5 * distance(model, plain, data(64, 2))


def test_a_recurrent_layer_can_be_skipped_and_one_of_a_model_that_cannot_be_exported_is_fitted_by_itself() -> None:
    model, x = Recurrent().eval(), data(32)
    _, change = factorize(model, x, rate=0.015, skip=("memory",))
    assert not any(name.startswith("memory") for name in change.touched)
    assert ("memory.weight_hh_l1", "skipped on request") in {(skip.what, skip.reason) for skip in change.skipped}

    class Asking(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if float(x.sum()) < 1e9 else -x)

    torch.manual_seed(0)
    asking = Asking().eval()
    shrunk, change = factorize(asking, x, rate=0.5)
    assert "cannot export" in change.notes[1]
    assert attached_forms(shrunk)
    assert distance(asking, shrunk, data(64, 2)) < 0.1


def test_the_promises_hold_for_recurrent_layers() -> None:
    change = check_technique("low_rank", {"rate": 0.4}, model=Recurrent().eval(), example=Inputs((data(16),)))
    assert any(name.startswith("memory.") for name in change.touched)


@pytest.mark.parametrize("settings", [{"rate": 0.0}, {"rate": 1.0}, {"rate": float("nan")}, {"multiple": -1}, {"target": "bytes"}])
def test_settings_that_cannot_be_meant(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        factorize(mlp(), torch.randn(8, 12), **settings)


def test_a_rate_out_of_reach_says_what_can_be_had() -> None:
    with pytest.raises(PreconditionError, match="cannot be removed") as caught:
        factorize(mlp(), torch.randn(64, 12), rate=0.97, multiple=1)
    assert caught.value.reach is not None
    assert f"{100 * caught.value.reach:.1f} %" in str(caught.value.got)
    shrunk, _ = factorize(mlp(), torch.randn(64, 12), rate=round(caught.value.reach - 0.005, 3), multiple=1)
    assert shrunk is not None


def test_data_and_weights_that_are_not_finite() -> None:
    x = torch.randn(32, 12)
    x[3, 4] = float("nan")
    with pytest.raises(PreconditionError, match="not finite"):
        factorize(mlp(), x, rate=0.3)
    broken = mlp()
    with torch.no_grad():
        next(broken.parameters())[0, 0] = float("inf")
    with pytest.raises(PreconditionError, match="weights are not finite"):
        factorize(broken, torch.randn(32, 12), rate=0.3)


def test_inputs_of_zeros_give_finite_layers() -> None:
    shrunk, _ = factorize(mlp(), torch.zeros(32, 12), rate=0.3)
    assert all(bool(p.isfinite().all()) for p in shrunk.parameters())


def test_a_model_without_layers_says_why() -> None:
    with pytest.raises(UnsupportedModel, match="no layer can be factorized"):
        factorize(nn.Sequential(nn.Conv1d(4, 4, 3, groups=4)), torch.randn(4, 4, 9), rate=0.3)
    with pytest.raises(UnsupportedModel, match="no layer gets cheaper"):
        factorize(nn.Sequential(nn.Linear(2, 1)), torch.randn(4, 2), rate=0.3)


class Branching(nn.Module):
    """Torch cannot export it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if float(x.sum()) > 1e9:
            return x
        out: Tensor = self.second(x)
        return out


def test_a_model_that_cannot_be_exported_is_factorized_layer_by_layer() -> None:
    model, x = Branching().eval(), torch.randn(128, 12) @ torch.randn(12, 12)
    shrunk, change = factorize(model, x, rate=0.3)
    plain, _ = factorize(model, x, data=False, rate=0.3)
    assert "cannot export" in change.notes[1]
    assert distance(model, shrunk, x) < distance(model, plain, x)


class ByName(nn.Module):
    """Calls a layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(input=x)))
        return out


def test_a_layer_called_by_keyword_is_left_alone_and_named() -> None:
    _, change = factorize(ByName().eval(), torch.randn(64, 12), rate=0.2)
    assert change.touched == ("second",)
    assert "not called with one tensor" in {skip.what: skip.reason for skip in change.skipped}["first"]


def test_it_trains() -> None:
    shrunk, _ = factorize(resnet_cifar(8), torch.randn(8, 3, 12, 12), rate=0.4)
    shrunk.train()
    shrunk(torch.randn(4, 3, 12, 12)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in shrunk.parameters())


def test_the_same_twice_and_the_model_itself_unchanged() -> None:
    model, x = resnet_cifar(8).eval(), torch.randn(8, 3, 12, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (first, _), (second, _) = (factorize(model, x, rate=0.4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model, x = resnet_cifar(8).eval(), torch.randn(8, 3, 12, 12)
    step = Step(technique="low_rank", settings={"rate": 0.4})
    context = Context(Inputs((x[:2],)), [Inputs((x,))], channel_multiple=4)
    shrunk, applied, _ = apply_plan(model, Plan(scale="x", steps=(step,)), context)
    remember(shrunk, model, applied.steps[0], context, "onnxruntime")
    save_model(shrunk, tmp_path / "saved")
    again = load_model(tmp_path / "saved", resnet_cifar(8), x[:2])
    with torch.no_grad():
        assert torch.equal(again(x), shrunk(x))


def test_a_record_of_another_model_is_refused() -> None:
    model, x = mlp(), torch.randn(64, 12)
    plan = Plan(scale="x", steps=(Step(technique="low_rank", settings={"rate": 0.3}),))
    context = Context(Inputs((x[:2],)), [Inputs((x,))])
    _, applied, _ = apply_plan(model, plan, context)
    for other in (nn.Sequential(nn.Linear(12, 4)), mlp(2), resnet_cifar(8)):
        with pytest.raises(PreconditionError, match="do not fit this model"):
            rebuild_plan(other, from_json(Plan, to_json(applied)), context)


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("convolutions", "transformer")), "wavenet"])
def test_the_onnx_file_computes_the_same(name: str, tmp_path: Path) -> None:
    make, shape = MODELS[name]
    x = torch.randn(shape)
    shrunk, _ = factorize(make().eval(), x, rate=0.25)
    runtime, example = find_runtime("onnxruntime"), Inputs((x[:2],))
    runtime.lower(shrunk, example, tmp_path / runtime.file_name)
    with torch.no_grad():
        want = shrunk(x)
    (got,) = runtime.load(tmp_path / runtime.file_name, threads=1)(Inputs((x,)))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


class FakeTimer:
    """A nanosecond per product and row, and a microsecond per layer; a model takes what its layers take."""

    name = "fake"
    facts = "fake 1.0"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.timed = 0

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        return [1e-9 * s.out_channels * s.in_channels * torch.Size(s.kernel).numel() * torch.Size(s.sides).numel() + 1e-6 for s in shapes]

    def profile(self, model: nn.Module, example: Inputs) -> Cost:
        return replace(static_cost(model, example), latency_s=Interval.exact(self._whole(model, example)))

    def beside(self, model: nn.Module, example: Inputs) -> Callable[[nn.Module], float]:
        def share(other: nn.Module) -> float:
            self.timed += 1
            return self._whole(other, example) / self._whole(model, example)

        return share

    def _whole(self, model: nn.Module, example: Inputs) -> float:
        return sum(self.kernel_seconds([shape for shapes in layer_shapes(model, example).values() for shape in shapes]))


def test_the_latency_falls_by_the_share_and_small_layers_stay(tmp_path: Path) -> None:
    model, x, timer = resnet_cifar(8).eval(), torch.randn(8, 3, 12, 12), FakeTimer(tmp_path)
    shrunk, change = factorize(model, x, rate=0.3, target="latency", timer=timer)
    assert 1 - timer.beside(model, Inputs((x[:2],)))(shrunk) == pytest.approx(change.record["reached"])
    assert 0.28 <= change.record["reached"] <= 0.36
    assert ("linear", "would not get faster") in {(skip.what, skip.reason) for skip in change.skipped}
    with pytest.raises(PreconditionError, match="latency cannot be removed"):
        factorize(model, x, rate=0.99, target="latency", timer=timer)
    with pytest.raises(UsageError, match="latency cannot be measured"):
        factorize(model, x, rate=0.3, target="latency")
