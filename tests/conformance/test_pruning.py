"""Pruning over a zoo of architectures, and on what users do wrong: what `prune_model` promises, whatever the network."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conformance.architectures import ARCHITECTURES, Case, make
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sizewise
from sizewise.data.batches import as_inputs, split_batch
from sizewise.errors import PreconditionError, SizewiseError, UnsupportedModel, UsageError
from sizewise.pipeline.bundle import SavedPlan
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.prune import pruning_step
from sizewise.pipeline.weights import save_state
from sizewise.types import Change, Plan, to_json

RATE = 0.3
SHORT = 0.02  # of the rate that may be missed
LARGE = 100  # times a layer's largest weight
NAMES = [pytest.param(name, marks=() if found.fast else pytest.mark.slow) for name, found in ARCHITECTURES.items()]


def defect(reason: str) -> pytest.MarkDecorator:
    """What should hold and does not yet; the test fails as soon as it does, so that the mark goes."""
    return pytest.mark.xfail(strict=True, reason=reason)


def _marked(name: str) -> Any:
    return pytest.param(name, marks=[] if ARCHITECTURES[name].fast else [pytest.mark.slow])


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """These networks are too small for more; tests run beside each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [_marked(name) for name in ARCHITECTURES])
def test_channels(name: str, tmp_path: Path) -> None:
    case, (unprunable, _) = make(name), ARCHITECTURES[name].unprunable
    before, want = _state(case.model), _outputs(case.model, case.example)
    if unprunable:
        with pytest.raises((UnsupportedModel, PreconditionError), match=unprunable):
            _prune(case.model, case)
    else:
        pruned = _prune(case.model, case)
        _check_outputs(case, pruned)
        _check_costs(case, pruned)
        _check_report(case, pruned)
        _check_weights(case, pruned)
        _check_backward(case, pruned)
        _check_file(case, pruned, tmp_path, ARCHITECTURES[name].no_file)
        _check_load(case, pruned, tmp_path)
        again = copy.deepcopy(case.model)
        assert _prune(again, case, in_place=True) is again
        assert _same(_outputs(again, case.example), _outputs(pruned, case.example)), "the same seed gave another result"
    assert _same_state(before, _state(case.model)), "the original changed"
    assert _same(_outputs(case.model, case.example), want), "the original computes something else"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("pattern", "share"), [("weight", RATE), ("2:4", 0.5)])
def test_single_weights(name: str, pattern: str, share: float) -> None:
    case, (_, unprunable) = make(name), ARCHITECTURES[name].unprunable
    before, rate = _state(case.model), () if pattern == "2:4" else (RATE,)
    if unprunable:
        with pytest.raises(UnsupportedModel, match=unprunable):
            sizewise.prune_model(case.model, *rate, granularity=pattern)
        return
    pruned = sizewise.prune_model(case.model, *rate, granularity=pattern)
    assert _same_state(before, _state(case.model)), "the original changed"
    _check_outputs(case, pruned)
    assert _change(pruned).touched
    weights = [_weight(pruned.get_submodule(path)) for path in _change(pruned).touched]
    gone = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert share - SHORT < gone < share + 0.1
    assert _tied(pruned) == _tied(case.model)


def _prune(model: nn.Module, case: Case, **options: Any) -> nn.Module:
    """To the channel: the multiples that runtimes like are coarse for networks so small."""
    return sizewise.prune_model(model, RATE, example_inputs=case.example, calibration=case.calibration, multiple=1, **options)


def _change(pruned: nn.Module) -> Change:
    found = pruned.pruning
    assert isinstance(found, Change)
    return found


def _check_outputs(case: Case, pruned: nn.Module) -> None:
    """The same class, and outputs of the same structure and shapes at any batch, finite."""
    assert type(pruned) is type(case.model)
    for inputs in (case.example, split_batch(case.calibration[0])[0]):
        want, got = (_tree(model, inputs) for model in (case.model, pruned))
        assert got[1] == want[1], "outputs have another structure"
        assert [(t.shape, t.dtype) for t in got[0]] == [(t.shape, t.dtype) for t in want[0]]
        assert all(bool(torch.isfinite(t).all()) for t in got[0])


def _check_costs(case: Case, pruned: nn.Module) -> None:
    whole, left = (sizewise.profile_model(model, case.example, device=None) for model in (case.model, pruned))
    assert left.params < whole.params
    assert left.macs < whole.macs
    gone = 1 - left.macs / whole.macs
    assert gone >= RATE - SHORT
    reached = (_change(pruned).record or {})["reached"]
    assert reached == pytest.approx(gone, abs=SHORT), "the report says another share than really went"


def _check_report(case: Case, pruned: nn.Module) -> None:
    """What was cut and what was left alone are modules of the original; what was left alone has a reason."""
    change, paths = _change(pruned), dict(case.model.named_modules())
    assert change.skipped
    assert all(skip.what in paths and skip.reason for skip in change.skipped)
    assert change.touched
    assert set(change.touched) <= set(paths)


def _check_weights(case: Case, pruned: nn.Module) -> None:
    """What was fitted is of the size that it was before: huge weights that cancel each other break files and training."""
    before = dict(case.model.named_parameters())
    for name, value in pruned.named_parameters():
        if value.ndim > 1:
            assert float(value.detach().abs().max()) < LARGE * float(before[name].detach().abs().max()), f"{name} is huge"


def _check_backward(case: Case, pruned: nn.Module) -> None:
    twin = copy.deepcopy(pruned).train()
    outputs = [t for t in _tree_with_gradients(twin, split_batch(case.calibration[0])[0]) if t.is_floating_point()]
    torch.stack([t.square().mean() for t in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in twin.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def _check_file(case: Case, pruned: nn.Module, folder: Path, no_file: str) -> None:
    runtime = find_runtime("onnxruntime")
    path, inputs = folder / runtime.file_name, as_inputs(case.example)
    if no_file:
        for model in (case.model, pruned):
            with pytest.raises(UnsupportedModel, match=no_file):
                runtime.lower(model, inputs, path)
        return
    runtime.lower(pruned, inputs, path)
    got, want = runtime.load(path, threads=1)(inputs), _outputs(pruned, case.example)
    assert [t.shape for t in got] == [t.shape for t in want]
    for ours, theirs in zip(got, want, strict=True):
        allowed = runtime.tolerance(quantized=False) * max(float(theirs.abs().mean()), 1e-6)
        assert float((ours - theirs).abs().mean()) <= allowed


def _check_load(case: Case, pruned: nn.Module, folder: Path) -> None:
    """What `sizewise.load` makes from the plan and the weights computes the same, bit for bit."""
    record = _change(pruned).record
    plan = Plan(scale="net", steps=(replace(pruning_step(RATE), record=record),))
    saved = SavedPlan(plan=plan, runtime="onnxruntime", scheme=None)
    (folder / "plan.json").write_bytes(to_json(saved))
    save_state(pruned, folder / "weights.safetensors")
    task = sizewise.Task({"net": case.model}, case.example, validation=case.calibration)
    loaded = sizewise.load(folder, task)
    assert type(loaded) is type(case.model)
    assert _same(_outputs(loaded, case.example), _outputs(pruned, case.example))


def _tree(model: nn.Module, inputs: Any) -> tuple[list[Tensor], Any]:
    with torch.no_grad():
        leaves, structure = pytree.tree_flatten(as_inputs(inputs).call(model.eval()))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], structure


def _tree_with_gradients(model: nn.Module, inputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(as_inputs(inputs).call(model)) if isinstance(leaf, Tensor)]


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    return _tree(model, inputs)[0]


def _same(got: list[Tensor], want: list[Tensor]) -> bool:
    return len(got) == len(want) and all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same_state(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one tensor."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


# --- what users do: sharing, freezing, other precisions

TIED = ["tied_language_model", "decoder_grouped_queries", "recurrent_convolution"]


@pytest.mark.parametrize("name", TIED)
def test_what_was_shared_is_shared_afterwards(name: str) -> None:
    case = make(name)
    assert _tied(case.model)
    assert _tied(_prune(case.model, case)) == _tied(case.model)


def test_frozen_parameters_stay_frozen_whatever_goes() -> None:
    case = make("resnet_padded")
    frozen = {name for name, _ in case.model.named_parameters() if name.startswith(("0.", "1."))}
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for options in ({"example_inputs": case.example}, {"granularity": "weight"}):
        pruned = sizewise.prune_model(case.model, RATE, **options)
        assert {name for name, p in pruned.named_parameters() if not p.requires_grad} == frozen


@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay_what_they_are(granularity: str, dtype: torch.dtype) -> None:
    case = make("mlp")
    model, example = case.model.to(dtype), case.example.to(dtype)
    data = [batch.to(dtype) for batch in case.calibration]
    pruned = sizewise.prune_model(model, RATE, granularity=granularity, example_inputs=example, calibration=data)
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    got, want = _outputs(pruned, example)[0], _outputs(model, example)[0]
    assert got.dtype == dtype
    assert bool(torch.isfinite(got).all())
    assert float((got - want).norm() / want.norm()) < 0.7, "what is left makes up for what is gone"


def test_training_mode_and_hooks_of_the_original_are_left_alone() -> None:
    case = make("vgg")
    seen: list[str] = []
    case.model.train()
    case.model[0].register_forward_hook(lambda *_: seen.append("called"))  # type: ignore[index]
    pruned = _prune(case.model, case)
    assert case.model.training
    assert not pruned.training
    before = len(seen)
    pruned(case.example)
    assert len(seen) == before + 1, "the pruned module has the original's hooks"


# --- the repair does no harm


def _error(model: nn.Module, pruned: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        want: Tensor = model(inputs)
        return float((pruned(inputs) - want).norm() / want.norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zoo_resnet_imagenet", "zoo_mobilenet_v3", "zoo_resnet50", "mlp", "gru", "inception"])
def test_few_calibration_examples_are_no_worse_than_none(name: str) -> None:
    case = make(name)
    fresh = ARCHITECTURES[name].inputs(64, torch.Generator().manual_seed(9))
    without = sizewise.prune_model(case.model, RATE, example_inputs=case.example, multiple=1)
    assert _error(case.model, _prune(case.model, case), fresh) <= 1.1 * _error(case.model, without, fresh)


@pytest.mark.slow
def test_a_network_whose_signal_dies_is_not_fitted_with_huge_weights() -> None:
    case = make("zoo_mobilenet_v3")
    with torch.no_grad():
        for module in case.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
    _check_weights(case, _prune(case.model, case))


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_statistics_that_do_not_fit_the_data_are_no_reason_to_compute_something_else(granularity: str) -> None:
    case = make("mlp")
    case.model[1].reset_running_stats()  # type: ignore[index]
    fresh = ARCHITECTURES["mlp"].inputs(256, torch.Generator().manual_seed(9))
    options = {"granularity": granularity, "example_inputs": case.example}
    without, fitted = (sizewise.prune_model(case.model, 0.1, calibration=data, **options) for data in (None, case.calibration))
    assert _error(case.model, fitted, fresh) <= 1.5 * _error(case.model, without, fresh)


# --- what users do wrong


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_weights_that_are_not_finite_are_refused(granularity: str) -> None:
    case = make("vgg")
    with torch.no_grad():
        _weight(case.model.get_submodule("1.0"))[0, 0, 0, 0] = float("nan")
    with pytest.raises(PreconditionError, match="not finite"):
        sizewise.prune_model(case.model, RATE, granularity=granularity, example_inputs=case.example, calibration=case.calibration)


@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_data_that_are_not_finite_are_refused(granularity: str, value: float) -> None:
    case = make("vgg")
    data = [case.calibration[0], torch.full_like(case.calibration[1], value)]
    with pytest.raises((PreconditionError, UnsupportedModel), match="not finite"):
        sizewise.prune_model(case.model, RATE, granularity=granularity, example_inputs=case.example, calibration=data)


@pytest.mark.parametrize("name", ["vgg", "lstm_embedded", "vit_inferred_heads"])
def test_more_than_can_go_is_refused_and_says_how_much_can(name: str) -> None:
    case = make(name)
    with pytest.raises(PreconditionError, match="cannot be removed") as caught:
        sizewise.prune_model(case.model, 0.9999, example_inputs=case.example)
    assert caught.value.reach is not None
    assert f"{100 * caught.value.reach:.1f} %" in str(caught.value.got)
    assert caught.value.hint


RATES = [0.0, 1.0, -0.1, 1.5, float("nan")]
MEANINGLESS = [(kind, rate) for kind in ("channel", "weight") for rate in RATES if (kind, rate) != ("weight", 0.0)]


@pytest.mark.parametrize(("granularity", "rate"), [*MEANINGLESS, ("weight", 0.0)])
def test_a_rate_that_cannot_be_meant_is_refused(granularity: str, rate: float) -> None:
    case = make("mlp")
    with pytest.raises(UsageError, match="rate"):
        sizewise.prune_model(case.model, rate, granularity=granularity, example_inputs=case.example)


@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("where", ["example_inputs", "calibration"])
def test_batches_without_examples_are_refused(granularity: str, where: str) -> None:
    case = make("mlp")
    inputs = {"example_inputs": case.example, "calibration": case.calibration, where: case.example[:0]}
    inputs["calibration"] = [inputs["calibration"]] if where == "calibration" else inputs["calibration"]
    with pytest.raises(UsageError, match="no example"):
        sizewise.prune_model(case.model, RATE, granularity=granularity, **inputs)


@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("model", [nn.Sequential(nn.Flatten(), nn.ReLU()), nn.Sequential(nn.LayerNorm(20), nn.ReLU())])
def test_models_without_prunable_layers_are_refused(model: nn.Module, granularity: str) -> None:
    with pytest.raises((UnsupportedModel, PreconditionError), match=r"no parameters|no group of channels|no layer|nothing"):
        sizewise.prune_model(model, RATE, granularity=granularity, example_inputs=torch.randn(2, 20))


def test_one_layer_that_makes_the_output_is_not_pruned_and_says_why() -> None:
    with pytest.raises(UnsupportedModel, match="makes the model's output"):
        sizewise.prune_model(nn.Sequential(nn.Linear(20, 64)), RATE, example_inputs=torch.randn(2, 20))


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_a_model_that_fails_on_its_inputs_says_so(granularity: str) -> None:
    case = make("mlp")
    wrong = torch.randn(2, 19)
    with pytest.raises(SizewiseError, match="failed on"):
        sizewise.prune_model(case.model, RATE, granularity=granularity, example_inputs=wrong, calibration=[wrong])


def test_calibration_data_of_another_shape_than_the_example_say_so() -> None:
    case = make("mlp")
    with pytest.raises(SizewiseError, match="calibration"):
        sizewise.prune_model(case.model, RATE, example_inputs=case.example, calibration=[torch.randn(2, 19)])


class Branching(nn.Module):
    """Its path depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(20, 32), nn.Linear(20, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.first(x) if float(x.sum()) > 0 else self.second(x))
        return logits


def test_code_that_branches_on_data_cannot_be_followed_but_its_weights_can_go() -> None:
    model = Branching().eval()
    with pytest.raises(UnsupportedModel, match=r"traced|export"):
        sizewise.prune_model(model, RATE, example_inputs=torch.randn(2, 20))
    pruned = sizewise.prune_model(model, RATE)
    assert bool((pruned.head.weight == 0).any())  # type: ignore[union-attr]
