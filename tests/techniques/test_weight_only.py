"""Weights in few bits beyond the conformance kit: every kind of layer, what compensation is worth, round trips, bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import PreconditionError, UnknownName, UnsupportedModel, UsageError
from sizewise.pipeline.apply import apply_plan, rebuild_plan
from sizewise.pipeline.weights import load_state, save_state
from sizewise.protocols import Context, Inputs
from sizewise.testing import TinyConv, check_technique
from sizewise.types import Change, Plan, Step, from_json, to_json


class Mixed(nn.Module):
    """An embedding shared with the output layer, a recurrent layer and a convolution."""

    def __init__(self, tokens: int = 64, width: int = 48) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.conv = nn.Conv1d(width, width, 3, groups=2, padding=1)
        self.head = nn.Linear(width, tokens)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.gru(self.table(ids))[0].transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(x)
        return logits


def mixed() -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    return Mixed().eval(), Inputs((torch.randint(0, 64, (4, 6)),))


def apply(model: nn.Module, inputs: Inputs, *, data: list[Inputs] | None = None, **settings: Any) -> tuple[nn.Module, Plan, Change]:
    plan = Plan(scale="x", steps=(Step(technique="weight_only", settings=settings),))
    module, applied, changes = apply_plan(model, plan, Context(inputs, data))
    return module, applied, changes[0]


def error(model: nn.Module, shrunk: nn.Module, inputs: Inputs) -> float:
    with torch.no_grad():
        want, got = inputs.call(model), inputs.call(shrunk)
        return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(
    "settings", [{}, {"dtype": "int4"}, {"dtype": "int4", "rounding": "hqq"}, {"dtype": "float16"}, {"dtype": "bfloat16"}]
)
def test_the_promises_of_every_technique(settings: dict[str, Any]) -> None:
    model, inputs = mixed()
    check_technique("weight_only", settings)
    change = check_technique("weight_only", settings, model=model, example=inputs)
    assert set(change.touched) == {"table", "gru", "conv"}
    assert not change.skipped


@pytest.mark.parametrize(("dtype", "most"), [("float16", 1e-3), ("bfloat16", 1e-2), ("int8", 0.02), ("int4", 0.25)])
def test_outputs_change_as_little_as_the_bits_allow(dtype: str, most: float) -> None:
    model, inputs = mixed()
    assert error(model, apply(model, inputs, dtype=dtype)[0], inputs) < most


def test_without_scheme_or_calibration_data_it_works_all_the_same() -> None:
    model, inputs = mixed()
    shrunk, _, change = apply(model, inputs, dtype="int4")
    assert {value.dtype for name, value in shrunk.state_dict().items() if name.endswith("_codes")} == {torch.uint8}
    assert "rounded by nearest" in change.notes


def test_codes_that_make_up_for_each_other_are_worth_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32)
    )
    basis = torch.randn(6, 4 * 6 * 6)  # inputs of few dimensions, as pictures are
    data = [Inputs(((torch.randn(64, 6) @ basis).reshape(64, 4, 6, 6),)) for _ in range(6)]
    plain, _, _ = apply(model.eval(), data[0], dtype="int4", rounding="nearest")
    better, _, change = apply(model, data[0], data=data[:5], dtype="int4")
    assert error(model, better, data[5]) < 0.7 * error(model, plain, data[5])
    assert any("codes of 3 of 3 weights" in note for note in change.notes)


def test_moments_are_taken_in_parts_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40)).eval(), [Inputs((torch.randn(128, 40),))]
    whole, _, _ = apply(model, data[0], data=data, dtype="int4")
    monkeypatch.setattr("sizewise.techniques.weight_only.MOMENTS_BYTES", 1)
    parts, _, _ = apply(model, data[0], data=data, dtype="int4")
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


def test_smaller_groups_are_more_exact() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(256, 64).eval(), Inputs((torch.randn(32, 256),))
    errors = [error(model, apply(model, inputs, dtype="int4", group=group)[0], inputs) for group in (16, 64, 256)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("dtype", ["int8", "int4", "bfloat16"])
def test_a_plan_and_a_file_of_weights_are_enough_to_rebuild(dtype: str, tmp_path: Path) -> None:
    model, inputs = mixed()
    shrunk, plan, _ = apply(model, inputs, dtype=dtype)
    save_state(shrunk, tmp_path / "weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = Mixed()
    rebuilt = rebuild_plan(other, from_json(Plan, to_json(plan)), Context(inputs))
    load_state(rebuilt, tmp_path / "weights")
    with torch.no_grad():
        assert torch.equal(inputs.call(rebuilt), inputs.call(shrunk))


def test_what_stays_float_is_named() -> None:
    model, inputs = mixed()
    _, _, change = apply(model, inputs, skip=("gru", "head"))
    assert change.touched == ("conv",)
    reasons = {skip.what: skip.reason for skip in change.skipped}
    assert reasons == dict.fromkeys(("table.weight", "gru.weight_ih_l0", "gru.weight_hh_l0"), "named in skip")
    small = apply(TinyConv(), Inputs((torch.randn(2, 1, 6, 6),)), dtype="int4")[2]
    assert {skip.reason for skip in small.skipped} == {"too small to gain"}


def test_pruned_zeros_stay_zeros() -> None:
    model, inputs = mixed()
    with torch.no_grad():
        model.get_parameter("conv.weight")[:, ::2] = 0
    shrunk, _, _ = apply(model, inputs)
    assert bool((shrunk.state_dict()["conv.weight_codes"].reshape(48, 24, 3)[:, ::2] == 0).all())


@pytest.mark.parametrize(
    ("settings", "kind"), [({"dtype": "int3"}, UnknownName), ({"rounding": "up"}, UnknownName), ({"group": 48}, UsageError)]
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], kind: type[Exception]) -> None:
    model, inputs = mixed()
    with pytest.raises(kind):
        apply(model, inputs, **settings)


def test_compensation_asks_for_data() -> None:
    model, inputs = mixed()
    with pytest.raises(PreconditionError, match="needs calibration data"):
        apply(model, inputs, dtype="int4", rounding="compensated")


def test_data_that_are_not_finite() -> None:
    model, bad = nn.Linear(64, 64).eval(), Inputs((torch.full((4, 64), torch.inf),))
    with pytest.raises(PreconditionError, match="not finite"):
        apply(model, Inputs((torch.randn(4, 64),)), data=[bad], dtype="int4")


def test_a_quantized_model_is_refused() -> None:
    model, inputs = mixed()
    shrunk, _, _ = apply(model, inputs)
    with pytest.raises(PreconditionError, match="graph already"):
        apply(shrunk, inputs)


def test_a_model_without_weights() -> None:
    with pytest.raises(UnsupportedModel, match="no weight gets smaller"):
        apply(nn.ReLU(), Inputs((torch.randn(2, 3),)))
