"""Static int8 beyond the conformance kit: accuracy of the arithmetic, what stays float, bad input."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.graph.nets import Loud
from torch import nn

from sizewise.errors import PreconditionError, UnsupportedModel, UsageError
from sizewise.pipeline.apply import apply_plan, make_technique
from sizewise.protocols import Context, Inputs
from sizewise.testing import NullRuntime, TinyConv
from sizewise.types import Change, Plan, Scheme, Step

PLAN = Plan(scale="x", steps=(Step(technique="int8_static"),))


def quantize(
    model: nn.Module, x: torch.Tensor, *, data: list[Inputs] | None = None, scheme: Scheme | None = NullRuntime.scheme
) -> tuple[nn.Module, Change]:
    module, _, changes = apply_plan(model, PLAN, Context(Inputs((x,)), [Inputs((x,))] if data is None else data, scheme))
    return module, changes[0]


def test_a_linear_layer_is_within_half_a_step_of_every_rounding() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(16, 8), torch.randn(64, 16)
    quantized, _ = quantize(model, x)
    weight = model.weight
    in_step = float(x.max() - x.min()) / 255
    w_step = torch.maximum(weight.abs().amax(1), (weight[:, 0::2] + weight[:, 1::2]).abs().amax(1)) / 127
    with torch.no_grad():
        want, got = model(x), quantized(x)
        out_step = float(want.max() - want.min()) / 255
        bound = 0.5 * in_step * weight.abs().sum(1) + 0.5 * w_step * (x.abs() + in_step).sum(1, keepdim=True) + out_step
        assert bool(((want - got).abs() <= bound + 1e-6).all())


def test_weights_are_stored_as_int8() -> None:
    quantized, _ = quantize(TinyConv(), torch.randn(8, 1, 6, 6))
    kinds = {tuple(v.shape): v.dtype for v in quantized.state_dict().values() if v.ndim == 4}
    assert kinds == {(16, 1, 3, 3): torch.int8, (16, 16, 3, 3): torch.int8}


class WithSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(x), -1)


def test_what_stays_float_is_named_with_its_reason() -> None:
    _, change = quantize(WithSoftmax(), torch.randn(8, 6))
    assert any("softmax" in skip.reason and "no integer kernel" in skip.reason for skip in change.skipped)


def test_quantizing_twice_is_refused() -> None:
    x = torch.randn(8, 1, 6, 6)
    twice = Plan(scale="x", steps=(*PLAN.steps, *PLAN.steps))
    with pytest.raises(PreconditionError, match="still is FLOAT"):
        apply_plan(TinyConv(), twice, Context(Inputs((x,)), [Inputs((x,))], NullRuntime.scheme))


def test_pruning_after_quantization_is_refused() -> None:
    x = torch.randn(8, 1, 6, 6)
    wrong = Plan(scale="x", steps=(Step(technique="int8_static"), Step(technique="channel_pruning")))
    with pytest.raises(PreconditionError, match="channel_pruning needs a model that still is"):
        apply_plan(TinyConv(), wrong, Context(Inputs((x,)), [Inputs((x,))], NullRuntime.scheme))


def test_calibration_data_is_asked_for() -> None:
    x = torch.randn(8, 1, 6, 6)
    with pytest.raises(PreconditionError, match="needs calibration data"):
        apply_plan(TinyConv(), PLAN, Context(Inputs((x,)), None, NullRuntime.scheme))


def test_a_runtime_without_integer_kernels() -> None:
    with pytest.raises(PreconditionError, match="no integer kernels"):
        quantize(TinyConv(), torch.randn(8, 1, 6, 6), scheme=None)


def test_activations_that_are_not_finite() -> None:
    x = torch.randn(8, 1, 6, 6)
    with pytest.raises(PreconditionError, match="not finite"):
        quantize(TinyConv(), x, data=[Inputs((x * float("inf"),))])


def test_a_model_without_layers_to_quantize() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x * self.scale)

    with pytest.raises(UnsupportedModel, match="nothing in this model"):
        quantize(Nothing(), torch.randn(3, 4))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_latency": 1.0}, "share of the float model"),
        ({"max_latency": float("nan")}, "share of the float model"),
        ({"max_seconds": 0.0}, "takes some time"),
        ({"max_seconds": float("inf")}, "takes some time"),
        ({"max_latency": 0.5, "max_seconds": 0.5}, "whatever else is limited"),
        ({"max_latency": 0.5, "weight_bytes": 500}, "whatever else is limited"),
        ({"max_seconds": 0.5, "max_drop": 0.0}, "whatever else is limited"),
    ],
)
def test_limits_of_the_latency_that_cannot_be_meant(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_technique("int8_static", settings)


def test_a_limit_of_the_latency_needs_something_to_time_with() -> None:
    x = torch.randn(8, 1, 6, 6)
    timed = Plan(scale="x", steps=(Step(technique="int8_static", settings={"max_latency": 0.5}),))
    with pytest.raises(PreconditionError, match="needs a runtime to measure it with"):
        apply_plan(TinyConv(), timed, Context(Inputs((x,)), [Inputs((x,))], NullRuntime.scheme))


def neighbours(codes: torch.Tensor) -> torch.Tensor:
    """Sums of the codes of pairs in the order of the kernels: inputs within places."""
    terms = codes.int().flatten(2).mT.flatten(1) if codes.ndim > 2 else codes.int()
    terms = nn.functional.pad(terms, (0, terms.shape[1] % 2))
    return terms[:, 0::2] + terms[:, 1::2]


@pytest.mark.parametrize("limit", [None, 128])
def test_pairs_of_codes_keep_the_limit_of_the_scheme_but_in_depthwise_layers(limit: int | None) -> None:
    torch.manual_seed(0)
    assert NullRuntime.scheme is not None
    model, x = Loud(), torch.rand(8, 3, 9, 9)
    quantized, _ = quantize(model, x, scheme=replace(NullRuntime.scheme, pair_limit=limit))
    codes = {tuple(v.shape): v for v in quantized.state_dict().values() if v.dtype == torch.int8 and v.ndim > 1}
    assert len(codes) == 4
    for shape, found in codes.items():
        largest = int(neighbours(found).abs().max())
        assert largest <= 128 if limit and shape != (16, 1, 3, 3) else largest > 200, shape
    with torch.no_grad():
        assert float((quantized(x) - model(x)).abs().mean() / model(x).abs().mean()) < 0.02
