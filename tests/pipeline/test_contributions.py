"""What each method saves: files with one left out, made again by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sizewise
from sizewise.data.outputs import OutputChange
from sizewise.pipeline.apply import apply_plan
from sizewise.pipeline.contributions import judged, leave_one_out
from sizewise.pipeline.small_weights import small_bytes
from sizewise.protocols import Context, Inputs
from sizewise.types import Change, Contribution, Plan, Step

PRUNING = Step(technique="channel_pruning", settings={"rate": 0.4, "target": "params"})
SHARING = Step(technique="weight_sharing", settings={"bits": 4})


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6)).eval()


def data(seed: int = 1) -> Tensor:
    return torch.randn(192, 12, generator=torch.Generator().manual_seed(seed))


def applied(*steps: Step) -> tuple[nn.Module, nn.Module, Plan, tuple[Change, ...], Context]:
    whole, plan = model(), Plan(scale="x", steps=steps)
    context = Context(Inputs((data()[:2],)), [Inputs((part,)) for part in data().chunk(3)], channel_multiple=1, train=[data()])
    module, done, changes = apply_plan(whole, plan, context)
    return whole, module, done, changes, context


def test_without_the_only_step_the_file_is_the_whole_models() -> None:
    whole, module, plan, changes, context = applied(PRUNING)
    (change,) = leave_one_out(whole, plan, changes, small_bytes(module), context)
    (saved,) = change.contributions
    assert saved == Contribution(method="pruning", size_bytes=small_bytes(module), bytes_without=small_bytes(whole))


def test_without_pruning_weights_have_as_many_bits_each() -> None:
    whole, module, plan, changes, context = applied(PRUNING, SHARING)
    change = OutputChange(whole, [Inputs((data(2),))])
    first, last = leave_one_out(whole, plan, changes, small_bytes(module), context, change)
    assert last == changes[1]
    (saved,) = first.contributions
    shared, _, _ = apply_plan(whole, Plan(scale="x", steps=(SHARING,)), context)
    assert saved.bytes_without == pytest.approx(small_bytes(shared), rel=0.1)
    assert saved.bytes_without > 1.3 * saved.size_bytes
    assert saved.change_without is not None
    assert saved.change_without < 0.5 * change(module)
    again = leave_one_out(whole, plan, (first, last), small_bytes(module), context, change)
    assert again == (first, last), "what is known is not made again"


def test_a_training_behind_it_goes_too_and_coding_without_loss_stays_so() -> None:
    recovery = Step(technique="recovery", settings={"epochs": 1})
    whole, module, plan, changes, context = applied(PRUNING, recovery, Step(technique="weight_sharing", settings={"rate": 1.0}))
    first, *_ = leave_one_out(whole, plan, changes, small_bytes(module), context)
    assert first.contributions[0].bytes_without == small_bytes(whole)


def test_what_cannot_be_made_is_named() -> None:
    low = Step(technique="low_rank", settings={"rate": 0.4})
    whole, module, plan, changes, context = applied(PRUNING, low)
    impossible = Plan(scale="x", steps=(plan.steps[0], Step(technique="low_rank", settings={"rate": 0.99})))
    first, _ = leave_one_out(whole, impossible, changes, small_bytes(module), context)
    assert not first.contributions
    assert any(skip.what == "the file without pruning" and "cannot be removed" in skip.reason for skip in first.skipped)


def test_changes_of_outputs_go_to_their_methods() -> None:
    found = judged([Contribution(method=m, size_bytes=1, bytes_without=2) for m in ("shared values", "entropy coding")], 0.2, 0.1)
    assert [(one.change, one.change_without) for one in found] == [(0.2, 0.1), (0.2, 0.2)]


def test_compress_model_tells_them_all() -> None:
    x = data()
    small: Any = sizewise.compress_model(model(), 0.2, calibration=list(x.chunk(6)), methods=["sharing"])
    saved = {one.method: one for one in small.compression.contributions}
    assert saved.keys() == {"shared values", "entropy coding"}
    assert all(one.bytes_without > one.size_bytes for one in saved.values())
