"""`quantize_model`: every dtype and scheme, what auto takes, limits, saving, bad input."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sizewise
from sizewise.errors import PreconditionError, UnknownName, UnsupportedModel, UsageError
from sizewise.pipeline.quantize import quantization_step
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs
from sizewise.testing import TinyConv
from sizewise.types import Cost, Interval, LayerShape


class TinyGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(12, 24, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.gru(x)[0].mean(1))
        return found


class TinyMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 6))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pictures(n: int = 4) -> list[Tensor]:
    return [torch.randn(8, 1, 6, 6) for _ in range(n)]


def change(module: nn.Module) -> Any:
    return module.quantization


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean() / b.var())


def test_convolutions_with_data_become_integers_throughout(tmp_path: Path) -> None:
    model, data = TinyConv().eval(), pictures()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = sizewise.quantize_model(model, calibration=data)
    assert {v.dtype for v in quantized.state_dict().values() if v.ndim == 4} == {torch.int8}
    assert "ranges by" in change(quantized).notes[0]
    with torch.no_grad():
        assert off(quantized(data[0]), model(data[0])) < 0.01
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    sizewise.export_model(quantized, data[0], tmp_path / "m.onnx")


def test_linear_layers_are_dynamic_and_need_no_data() -> None:
    model, x = TinyMixer().eval(), torch.randn(16, 32)
    quantized = sizewise.quantize_model(model, example_inputs=x)
    assert any("compute in integers: 3" in note for note in change(quantized).notes)
    with torch.no_grad():
        assert off(quantized(x), model(x)) < 0.01


def test_recurrent_layers_get_int8_weights_in_every_scheme() -> None:
    model, data = TinyGru().eval(), [torch.randn(8, 7, 12) for _ in range(4)]
    for scheme in ("auto", "static", "dynamic", "weight_only"):
        quantized = sizewise.quantize_model(model, calibration=data, scheme=scheme)
        state = quantized.state_dict()
        assert state["gru.weight_hh_l0_codes"].dtype == torch.int8, scheme
        with torch.no_grad():
            assert off(quantized(data[0]), model(data[0])) < 0.01


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 1e-5), (torch.bfloat16, 1e-3), ("int4", 0.05)])
def test_weights_alone_in_fewer_bits(dtype: torch.dtype | str, largest: float) -> None:
    model, x = TinyMixer().eval(), torch.randn(64, 32)
    quantized = sizewise.quantize_model(model, dtype, calibration=[x], group=16 if dtype == "int4" else None)
    with torch.no_grad():
        assert off(quantized(x), model(x)) < largest


def test_four_bits_of_weights_in_integer_kernels() -> None:
    model, data = TinyConv().eval(), pictures()
    quantized = sizewise.quantize_model(model, "int4", scheme="static", calibration=data)
    weights = [v for v in quantized.state_dict().values() if v.ndim == 4]
    assert all(int(w.min()) >= -7 and int(w.max()) <= 7 for w in weights)
    with torch.no_grad():
        assert off(quantized(data[0]), model(data[0])) < 0.1


def test_a_size_gives_four_bits_to_some_layers() -> None:
    model, data = TinyConv().eval(), pictures()
    sizes = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    limit = sum(sizes) - max(sizes) // 2
    quantized = sizewise.quantize_model(model, "mixed", size=limit, calibration=data)
    assert any("4 bits for the weights of 1 of" in note for note in change(quantized).notes)
    with pytest.raises(PreconditionError, match="cannot be that small"):
        sizewise.quantize_model(model, "mixed", size=sum(sizes) // 2 - 10, calibration=data)


@pytest.mark.slow
def test_a_latency_on_the_real_runtime_leaves_layers_float(tmp_path: Path) -> None:
    from sizewise.zoo.resnet import resnet_cifar

    model, data = resnet_cifar(8).eval(), [torch.randn(8, 3, 32, 32) for _ in range(4)]
    whole = sizewise.quantize_model(model, scheme="static", calibration=data)
    mixed = sizewise.quantize_model(model, "mixed", latency=0.99, calibration=data)
    spared = [skip.what for skip in change(mixed).skipped if "the limit allows it" in skip.reason]
    assert spared
    assert any(
        note.startswith(f"{len(spared)} of 8 layers stay float") and "measured on onnxruntime" in note for note in change(mixed).notes
    )
    held = mixed.state_dict()
    assert all(held[f"{path}.weight"].dtype == torch.float32 for path in spared)
    with torch.no_grad():
        assert off(mixed(data[3]), model(data[3])) < off(whole(data[3]), model(data[3]))
    sizewise.export_model(mixed, data[0], tmp_path / "m.onnx")
    sizewise.save_model(mixed, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(sizewise.load_model(tmp_path / "saved", model, data[0])(data[0]), mixed(data[0]))


class FixedTimer:
    """Every layer costs the same, and half of that in integers; it knows of two models, of which the second is in integers."""

    name, facts, folder = "fixed", "fixed 1.0", Path()

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        return [1e-3 for _ in shapes]

    def profile(self, model: nn.Module, example: Inputs) -> Cost:
        return replace(static_cost(model, example), latency_s=Interval.exact(self.seconds(model)))

    def beside(self, model: nn.Module, example: Inputs) -> Callable[[nn.Module], float]:
        return lambda other: self.seconds(other) / self.seconds(model)

    @staticmethod
    def seconds(model: nn.Module) -> float:
        kinds = [value.dtype for name, value in model.state_dict().items() if value.ndim == 4 or (value.ndim == 2 and "weight" in name)]
        return sum(5e-4 if kind == torch.int8 else 1e-3 for kind in kinds)


@pytest.mark.parametrize("latency", [0.76, "76 %", "1.52 ms"])
def test_a_latency_leaves_a_layer_float(monkeypatch: pytest.MonkeyPatch, latency: str | float) -> None:
    monkeypatch.setattr("sizewise.pipeline.front.timer_for", lambda *_: FixedTimer())
    model, data = Uneven().eval(), [torch.randn(8, 3, 6, 6) for _ in range(4)]
    mixed = sizewise.quantize_model(model, "mixed", latency=latency, calibration=data)
    assert [skip.what for skip in change(mixed).skipped if "the limit allows it" in skip.reason] == ["second"]
    assert any("75.0 % of the float latency measured on fixed, at most 76.0 % allowed" in note for note in change(mixed).notes)
    with pytest.raises(PreconditionError, match="slower than the limit"):
        sizewise.quantize_model(model, "mixed", latency=0.4, calibration=data)


class Uneven(nn.Module):
    """Two convolutions; the second has, for an input that always is 0, weights that make its steps coarse."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 6, 1)
        with torch.no_grad():
            self.first.weight[0], self.first.bias[0] = 0, -1  # type: ignore[index]
            self.second.weight[:, 0] = 100

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.relu(self.first(x))).mean((2, 3))
        return found


def test_layers_stay_float_until_the_drop_is_allowed() -> None:
    model, data = Uneven().eval(), [torch.randn(8, 3, 6, 6) for _ in range(4)]
    with torch.no_grad():
        labelled = [(x, model(x)) for x in data]

    def nearness(outputs: Tensor, target: Tensor) -> Tensor:
        return -(outputs - target).square().sum(1).double()

    def drop(module: nn.Module) -> float:
        with torch.no_grad():
            return -float(torch.cat([nearness(module(x), y) for x, y in labelled]).mean())

    settings: dict[str, Any] = {"calibration": data, "validation": labelled, "metric": nearness}
    whole = sizewise.quantize_model(model, max_drop=1.0, **settings)
    assert any(note.startswith("0 of") and "(1 evaluations)" in note for note in change(whole).notes)
    part = sizewise.quantize_model(model, max_drop=0.1 * drop(whole), **settings)
    assert [skip.what for skip in change(part).skipped if "spared" in skip.reason] == ["second"]
    assert part.state_dict()["second.weight"].dtype == torch.float32
    assert drop(part) <= 0.1 * drop(whole)
    with pytest.raises(PreconditionError, match="drops by more"):
        sizewise.quantize_model(model, max_drop=0.0, **settings)


def test_with_train_data_four_bits_are_trained_and_saved(tmp_path: Path) -> None:
    model, data = TinyConv().eval(), pictures(8)
    settings: dict[str, Any] = {"dtype": "int4", "example_inputs": data[0][:1]}
    path = tmp_path / "training.safetensors"
    trained = sizewise.quantize_model(model, train=data, epochs=4, checkpoint=path, **settings)
    with torch.no_grad():
        want = model(torch.cat(data))
        assert off(trained(torch.cat(data)), want) < 0.001
    learned = change(trained).record["recovery"]
    assert learned["steps"] == 32
    assert learned["scores"][learned["best"]] >= learned["scores"][0]
    assert path.exists()
    sizewise.save_model(trained, tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "plan.json").read_text(), "where a checkpoint was is nobody's business"
    loaded = sizewise.load_model(tmp_path / "saved", model, data[0][:1])
    with torch.no_grad():
        assert torch.equal(loaded(data[0]), trained(data[0]))


def test_training_is_of_static_and_needs_data() -> None:
    model, data = TinyConv().eval(), pictures(1)
    for settings, words in (
        ({"epochs": 1}, "without train data"),
        ({"minutes": 1}, "without train data"),
        ({"checkpoint": "x"}, "without train data"),
        ({"learn": "codes"}, "without train data"),
        ({"train": data, "scheme": "dynamic"}, "only static"),
        ({"train": data, "epochs": 1, "minutes": 1}, "either epochs or a time"),
        ({"train": iter(data)}, "only once"),
        ({"train": data, "learn": "everything"}, "unknown learn"),
    ):
        with pytest.raises(UsageError, match=words):
            sizewise.quantize_model(model, calibration=data, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"scheme": "static"},
        {"scheme": "static", "dtype": "int4"},
        {"scheme": "dynamic", "skip": []},
        {"scheme": "weight_only"},
        {"scheme": "weight_only", "dtype": "int4", "group": 16},
        {"scheme": "static", "max_drop": 1.0, "validation": [(torch.ones(2, 1, 6, 6), torch.zeros(2, dtype=torch.long))]},
    ],
)
def test_no_parameter_is_copied_to_be_read_and_none_is_shared_in_the_end(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = TinyConv().eval(), pictures()
    before = {name: (value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()}

    def refuse(*_: Any) -> None:
        raise AssertionError("a parameter was copied")

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    quantized = sizewise.quantize_model(model, calibration=data, **{"skip": ["head"], **settings})
    held = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    assert not any(tensor.untyped_storage().data_ptr() in held for tensor in (*quantized.parameters(), *quantized.buffers()))
    for name, value in model.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name][0])
        assert value._version == before[name][1]


def test_training_integers_leaves_the_model_as_it_was() -> None:
    model, data = TinyConv().eval(), pictures()
    before = {name: (value.clone(), value.requires_grad) for name, value in model.state_dict(keep_vars=True).items()}
    for learn in ("scales", "codes"):
        trained = sizewise.quantize_model(model, example_inputs=data[0], train=data, epochs=1, learn=learn)
        for name, value in model.state_dict(keep_vars=True).items():
            assert torch.equal(value, before[name][0])
            assert value.requires_grad == before[name][1]
        with torch.no_grad():
            assert off(trained(data[0]), model(data[0])) < 0.05


def test_skipped_modules_stay_float() -> None:
    quantized = sizewise.quantize_model(TinyMixer().eval(), example_inputs=torch.randn(4, 32), skip=["layers.0"])
    assert quantized.state_dict()["layers.0.weight"].dtype == torch.float32
    with pytest.raises(UnknownName, match="nowhere"):
        sizewise.quantize_model(TinyMixer().eval(), example_inputs=torch.randn(4, 32), skip=["nowhere"])


def test_the_same_seed_gives_the_same_weights() -> None:
    model, data = TinyConv().eval(), pictures()
    first, second = (sizewise.quantize_model(model, "int4", scheme="static", calibration=data).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_meant_is_refused() -> None:
    for settings, words in (
        ({"dtype": "int4", "scheme": "dynamic"}, "dynamic quantization has no int4"),
        ({"dtype": "int8", "scheme": "static", "group": 64}, "groups are of"),
        ({"dtype": "mixed", "scheme": "static"}, "size says"),
        ({"dtype": "int8", "scheme": "static", "size": 100}, "size says"),
        ({"dtype": "int8", "scheme": "static", "latency": 0.5}, "latency says"),
        ({"dtype": "mixed", "scheme": "static", "size": 100, "latency": 0.5}, "one would undo the other"),
        ({"dtype": "mixed", "scheme": "static", "latency": 1.5}, "share of the float model's"),
        ({"dtype": "mixed", "scheme": "static", "latency": "0%"}, "share of the float model's"),
        ({"dtype": "mixed", "scheme": "static", "latency": "2 sec"}, "unknown unit 'sec'"),
        ({"dtype": "mixed", "scheme": "static", "latency": ""}, "not a quantity"),
        ({"dtype": "int8", "scheme": "dynamic", "max_drop": 0.1}, "max_drop lets"),
    ):
        with pytest.raises(UsageError, match=words):
            quantization_step(**settings)
    assert quantization_step("mixed", "static", latency=" 60% ").settings == {"max_latency": 0.6}
    assert quantization_step("mixed", "static", latency="2ms").settings == {"max_seconds": 0.002}
    with pytest.raises(UnknownName, match="int9"):
        quantization_step("int9", "static")
    with pytest.raises(UnknownName, match="sideways"):
        quantization_step("int8", "sideways")


def test_bad_models_and_data() -> None:
    model, data = TinyConv().eval(), pictures(1)
    with pytest.raises(UsageError, match="example_inputs"):
        sizewise.quantize_model(model)
    with pytest.raises(PreconditionError, match="needs calibration data"):
        sizewise.quantize_model(model, example_inputs=data[0], scheme="static")
    with pytest.raises(PreconditionError, match="cannot be shrunk"):
        sizewise.quantize_model(sizewise.quantize_model(model, calibration=data), calibration=data)
    with pytest.raises(UnsupportedModel, match="no weight gets smaller"):
        sizewise.quantize_model(nn.ReLU(), example_inputs=torch.randn(2, 3))
    with pytest.raises(UsageError, match="go together"):
        sizewise.quantize_model(model, calibration=data, max_drop=0.1)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(PreconditionError, match="not finite"):
        sizewise.quantize_model(model, calibration=data)
