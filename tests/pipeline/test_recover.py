"""`sizewise.recover`: what it wins, what it keeps, what it refuses, and that interruptions change nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import sizewise
from sizewise.errors import PreconditionError, UnknownName, UsageError
from sizewise.protocols import Inputs
from sizewise.testing import DictInput, TinyConv, TwoInputs
from sizewise.training import distill as loop
from sizewise.training.objective import matched_paths
from sizewise.training.renormalize import renormalized
from sizewise.training.schedule import learning_rate
from sizewise.types import Change


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PICTURES = randn(0, 256, 1, 6, 6)
BARE = list(torch.split(PICTURES, 32))


class Repeated(nn.Module):
    """One layer used twice, with a block that keeps its width."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Linear(8, 8)
        self.inner, self.head = nn.Sequential(first, nn.Tanh()), nn.Linear(8, 3)
        self.again = nn.Linear(8, 8)
        self.again.weight = first.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.again(self.inner(x)))
        return logits


def made(make: Any = TinyConv, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def blurred(model: Any, make: Any = TinyConv, share: float = 0.3) -> Any:
    """The same with noise on its weights."""
    other = made(make)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for i, parameter in enumerate(other.parameters()):
            parameter += share * parameter.std(correction=0) * randn(i + 1, *parameter.shape)
    return other


@pytest.fixture
def teacher() -> nn.Module:
    model: nn.Module = made()
    model.train()
    for _ in range(20):
        model(PICTURES)  # normalization statistics that fit the data
    return model.eval()


@pytest.fixture
def student(teacher: nn.Module) -> nn.Module:
    found: nn.Module = blurred(teacher)
    return found


def distance(model: nn.Module, teacher: nn.Module, x: Tensor = PICTURES) -> float:
    with torch.no_grad():
        return float((model(x) - teacher(x)).square().mean())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def account(model: nn.Module) -> Change:
    found = model.recovery
    assert isinstance(found, Change)
    return found


def test_without_targets_the_student_comes_nearer_to_its_teacher_and_the_given_modules_stay(student: nn.Module, teacher: nn.Module) -> None:
    before, taught = state(student), state(teacher)
    recovered = sizewise.recover(student, teacher, BARE, epochs=6)
    assert distance(recovered, teacher) < 0.2 * distance(student, teacher)
    assert same(state(student), before)
    assert same(state(teacher), taught)
    assert not recovered.training
    assert all(p.grad is None and p.is_contiguous() for p in recovered.parameters())
    record = account(recovered).record
    assert record["steps"] == 48
    assert record["loss_after"] < record["loss_before"]
    assert "head" in account(recovered).touched


def test_labels_make_scores_of_classes_and_enter_only_with_a_weight(student: nn.Module, teacher: nn.Module) -> None:
    right = teacher(PICTURES).argmax(1)
    batches = list(zip(BARE, right.split(32), strict=True))
    turned = [(x, (y + 1) % 4) for x, y in batches]

    def agreement(model: nn.Module) -> float:
        return float((model(PICTURES).argmax(1) == right).float().mean())

    alone = sizewise.recover(student, teacher, turned, epochs=6)
    assert agreement(alone) > 0.9, "wrong labels do not matter"
    told = sizewise.recover(student, teacher, turned, epochs=6, labels=100.0)
    assert agreement(told) < 0.5, "they do now"
    assert same(state(alone), state(sizewise.recover(student, teacher, batches, epochs=6)))


def test_a_loss_of_the_users_counts(student: nn.Module, teacher: nn.Module) -> None:
    wanted = [(x, torch.full((len(x), 4), 7.0)) for x in BARE]
    recovered = sizewise.recover(
        student, teacher, wanted, epochs=6, lr=0.05, labels=1e4, loss=lambda out, target: nn.functional.mse_loss(out, target)
    )
    with torch.no_grad():
        assert float((recovered(PICTURES) - 7).abs().mean()) < 0.2 * float((student(PICTURES) - 7).abs().mean())


def test_the_seed_decides(student: nn.Module, teacher: nn.Module) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(PICTURES), batch_size=32, shuffle=True)
    found = [state(sizewise.recover(student, teacher, loader, seed=seed)) for seed in (0, 0, 1)]
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 8), (0.5, 4), (2.3, 19), (0.001, 1)])
def test_epochs_need_not_be_whole(student: nn.Module, teacher: nn.Module, epochs: float, steps: int) -> None:
    assert account(sizewise.recover(student, teacher, BARE, epochs=epochs)).record["steps"] == steps


def test_minutes_end_it(student: nn.Module, teacher: nn.Module) -> None:
    found = account(sizewise.recover(student, teacher, BARE, minutes=0.2 / 60))
    assert found.record["steps"] > 1
    assert float(found.notes[0].split(" in ")[1].removesuffix(" ms")) == pytest.approx(200, rel=0.5)


def test_zeros_stay_zero_and_nothing_else_is_bound_to(student: nn.Module, teacher: nn.Module) -> None:
    pruned = sizewise.prune_model(student, 0.5, granularity="2:4", calibration=BARE)
    masks = {name: p == 0 for name, p in pruned.named_parameters() if p.ndim >= 2 and bool((p == 0).any())}
    recovered = sizewise.recover(pruned, teacher, BARE, epochs=4)
    assert masks
    trained = dict(recovered.named_parameters())
    for name, mask in masks.items():
        assert bool((trained[name][mask] == 0).all())
        assert bool((trained[name][~mask] != dict(pruned.named_parameters())[name][~mask]).any())
    assert any("stayed zero" in note for note in account(recovered).notes)
    assert distance(recovered, teacher) < distance(pruned, teacher)


def test_cut_channels_are_trained_too(teacher: nn.Module) -> None:
    pruned = sizewise.prune_model(teacher, 0.5, example_inputs=PICTURES[:1], method="magnitude", multiple=1)
    recovered = sizewise.recover(pruned, teacher, BARE, epochs=8)
    assert distance(recovered, teacher) < 0.5 * distance(pruned, teacher)
    assert {n: p.shape for n, p in recovered.named_parameters()} == {n: p.shape for n, p in pruned.named_parameters()}


def test_shared_weights_stay_shared_and_frozen_ones_stay_as_they_are() -> None:
    teacher = made(Repeated)
    student = blurred(teacher, Repeated)
    student.head.weight.requires_grad_(False)
    x = [randn(i, 16, 8) for i in range(8)]
    recovered: Any = sizewise.recover(student, teacher, x, epochs=10, lr=0.01)
    assert recovered.again.weight is recovered.inner[0].weight
    assert torch.equal(recovered.head.weight, student.head.weight)
    assert not recovered.head.weight.requires_grad
    assert distance(recovered, teacher, x[0]) < 0.5 * distance(student, teacher, x[0])


def test_a_model_that_was_frozen_for_inference_trains_and_is_frozen_again(student: nn.Module, teacher: nn.Module) -> None:
    student.requires_grad_(False)
    recovered = sizewise.recover(student, teacher, BARE, epochs=4)
    assert distance(recovered, teacher) < distance(student, teacher)
    assert not any(p.requires_grad for p in recovered.parameters())


def test_in_place_the_very_module_learns(student: nn.Module, teacher: nn.Module) -> None:
    apart, before = sizewise.recover(student, teacher, BARE), [id(p) for p in student.parameters()]
    assert sizewise.recover(student, teacher, BARE, in_place=True) is student
    assert [id(p) for p in student.parameters()] == before
    assert same(state(student), state(apart))


@pytest.mark.parametrize("make", [TwoInputs, DictInput])
def test_every_form_of_input(make: Any) -> None:
    teacher = made(make)
    student = blurred(teacher, make)
    if make is TwoInputs:
        data: list[Any] = [((randn(i, 16, 6), randn(i + 9, 16, 3)), torch.zeros(16, dtype=torch.long)) for i in range(6)]
        x = Inputs(data[0][0])
    else:
        tokens = torch.randint(0, 20, (6, 16, 5), generator=torch.Generator().manual_seed(0))
        data = [{"input_ids": t, "attention_mask": torch.ones(16, 5, dtype=torch.long), "labels": torch.zeros(16).long()} for t in tokens]
        x = Inputs((), {key: value for key, value in data[0].items() if key != "labels"})
    recovered = sizewise.recover(student, teacher, data, epochs=20, lr=0.01, features=0.0)

    def scores(model: nn.Module) -> Tensor:
        out = x.call(model)
        return torch.log_softmax(out["logits"] if isinstance(out, dict) else out, 1)

    assert (scores(recovered) - scores(teacher)).abs().mean() < 0.3 * (scores(student) - scores(teacher)).abs().mean()


def test_with_validation_a_recovery_that_hurts_hands_the_start_back_and_says_so(student: nn.Module, teacher: nn.Module) -> None:
    recovered = sizewise.recover(student, teacher, BARE, epochs=1, lr=1e4, validation=BARE)
    assert same(state(recovered), state(student))
    assert account(recovered).touched == ()
    assert any("did not help" in note for note in account(recovered).notes)


def test_the_best_by_the_metric_is_kept(student: nn.Module, teacher: nn.Module) -> None:
    labelled = list(zip(BARE, teacher(PICTURES).argmax(1).split(32), strict=True))
    recovered = sizewise.recover(student, teacher, BARE, epochs=4, validation=labelled, metric="accuracy")
    scores = account(recovered).record["scores"]
    assert len(scores) == 5
    with torch.no_grad():
        got = float((recovered(PICTURES).argmax(1) == teacher(PICTURES).argmax(1)).float().mean())
    assert got == pytest.approx(max(scores))
    losses = sizewise.recover(student, teacher, BARE, epochs=4, validation=labelled, metric="loss")
    assert account(losses).record["scores"][-1] > account(losses).record["scores"][0], "less is better, so the sign is turned"
    assert len(account(sizewise.recover(student, teacher, BARE, validation=BARE, metric="cosine")).record["scores"]) == 5


def test_patience_ends_it_early(student: nn.Module, teacher: nn.Module) -> None:
    found = account(sizewise.recover(student, teacher, BARE, epochs=4, lr=3.0, validation=BARE, patience=2))
    assert found.record["stopped"]
    assert found.record["steps"] == 16


class Broken(list[Tensor]):
    """Fails after so many batches, as a machine that is switched off does."""

    def __init__(self, batches: list[Tensor], after: int) -> None:
        super().__init__(batches)
        self.left = after

    def __iter__(self) -> Iterator[Tensor]:
        for batch in super().__iter__():
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@pytest.mark.parametrize("after", [1, 8, 13])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    student: nn.Module, teacher: nn.Module, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    options: dict[str, Any] = {"epochs": 2, "validation": BARE[:2]}
    whole = sizewise.recover(student, teacher, BARE, **options)
    path = tmp_path / "recovery.safetensors"
    with pytest.raises(KeyboardInterrupt):
        sizewise.recover(student, teacher, Broken(BARE, after + 9), checkpoint=path, **options)  # nine are read before the training
    resumed = sizewise.recover(student, teacher, BARE, checkpoint=path, **options)
    assert same(state(resumed), state(whole))
    assert account(resumed).record == account(whole).record
    monkeypatch.setattr(loop._Run, "_step", None)
    again = sizewise.recover(student, teacher, BARE, checkpoint=path, **options)
    assert same(state(again), state(whole)), "a finished run is not repeated"


def test_a_shuffling_loader_goes_on_with_the_same_batches(
    student: nn.Module, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    stop = [10**9]

    class Noisy(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 256

        def __getitem__(self, index: int) -> Tensor:
            stop[0] -= 1
            if stop[0] < 0:
                raise KeyboardInterrupt
            return PICTURES[index] + 0.1 * torch.randn(1, 6, 6)

    loader = torch.utils.data.DataLoader(Noisy(), batch_size=32, shuffle=True)
    whole = sizewise.recover(student, teacher, loader, epochs=2)
    stop[0] = 32 * (9 + 12)  # nine batches are read before the training
    path = tmp_path / "recovery.safetensors"
    with pytest.raises(KeyboardInterrupt):
        sizewise.recover(student, teacher, loader, epochs=2, checkpoint=path)
    stop[0] = 10**9
    assert same(state(sizewise.recover(student, teacher, loader, epochs=2, checkpoint=path)), state(whole))


def test_a_checkpoint_of_another_training_or_of_nothing_is_refused(student: nn.Module, teacher: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "recovery.safetensors"
    sizewise.recover(student, teacher, BARE, epochs=0.2, checkpoint=path)
    kept = path.read_bytes()
    with pytest.raises(UsageError, match="of another training"):
        sizewise.recover(student, teacher, BARE, epochs=0.3, checkpoint=path)
    with pytest.raises(UsageError, match="of another training"):
        sizewise.recover(teacher, student, BARE, epochs=0.2, checkpoint=path)
    assert path.read_bytes() == kept
    path.write_bytes(kept[:100])
    with pytest.raises(UsageError, match="damaged"):
        sizewise.recover(student, teacher, BARE, epochs=0.2, checkpoint=path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 1, "minutes": 1}, "either epochs or a time"),
        ({"epochs": 0}, "more than 0"),
        ({"minutes": float("nan")}, "more than 0"),
        ({"lr": -1.0}, "learning rate"),
        ({"temperature": 0.0}, "temperature"),
        ({"features": -1.0}, "weight"),
        ({"patience": 0}, "patience"),
        ({"metric": "accuracy"}, "needs data"),
        ({"validation": iter(BARE)}, "only once"),
        ({"precision": "float16"}, "unknown precision"),
        ({"validation": BARE, "metric": "acuracy"}, "unknown metric"),
    ],
)
def test_what_cannot_be_meant_is_refused(student: nn.Module, teacher: nn.Module, options: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, UnknownName), match=says):
        sizewise.recover(student, teacher, BARE, **options)


def test_models_and_data_that_cannot_be_used(student: nn.Module, teacher: nn.Module) -> None:
    before = state(student)
    with pytest.raises(UsageError, match="same module"):
        sizewise.recover(student, student, BARE)
    with pytest.raises(PreconditionError, match="differ in shape"):
        sizewise.recover(student, TinyConv(classes=3).eval(), BARE)
    with pytest.raises(PreconditionError, match="not finite"):
        sizewise.recover(student, teacher, [BARE[0], BARE[1] * torch.nan], in_place=True)
    with pytest.raises(UsageError, match="only once"):
        sizewise.recover(student, teacher, iter(BARE))
    with pytest.raises(UsageError, match="no batch"):
        sizewise.recover(student, teacher, [])
    with pytest.raises(PreconditionError, match="failed on these inputs"):
        sizewise.recover(student, teacher, [torch.zeros(16, 3, 6, 6)])
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(PreconditionError, match=r"cannot be trained(.|\n)*quantize_model\(model, train="):
        sizewise.recover(graph, teacher, BARE)
    with pytest.raises(PreconditionError, match="no parameters"):
        sizewise.recover(nn.ReLU(), nn.Tanh(), BARE)
    assert same(state(student), before), "also where it was to be changed in place"


def test_dropout_does_not_disturb(teacher: nn.Module) -> None:
    """A student that is its teacher has nothing to learn, whatever its layers do in training."""
    noisy = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Dropout(0.5), nn.Linear(16, 4)).eval()
    twin = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Dropout(0.5), nn.Linear(16, 4)).eval()
    twin.load_state_dict(noisy.state_dict())
    assert account(sizewise.recover(twin, noisy, BARE)).record["loss_after"] == pytest.approx(0, abs=1e-9)


def test_features_of_pictures_of_another_size_are_compared(teacher: nn.Module) -> None:
    """A student that sees its teacher's pictures at half the size, from whose outputs alone it would learn less."""

    class Halved(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size, self.body = size, made()
            self.body.load_state_dict(teacher.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.body(nn.functional.interpolate(x, (self.size, self.size)))
            return scores

    large, small = Halved(6).eval(), Halved(4).eval()
    paths = matched_paths(small, large, Inputs((BARE[0],)))
    assert paths
    recovered = sizewise.recover(small, large, BARE, epochs=10)
    assert f"{len(paths)} features compared" in account(recovered).notes[1]
    assert distance(recovered, large) < distance(small, large)


def test_bfloat16_trains_float32_weights(student: nn.Module, teacher: nn.Module) -> None:
    recovered = sizewise.recover(student, teacher, BARE, epochs=4, precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in recovered.parameters())
    assert distance(recovered, teacher) < 0.6 * distance(student, teacher)


def test_progress_is_told(student: nn.Module, teacher: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    sizewise.recover(student, teacher, BARE, progress=True)
    told = capsys.readouterr().err
    assert "[4/4] recovered for 8 steps: loss" in told


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_rate_rises_for_a_twentieth_and_then_only_falls(first: float, second: float) -> None:
    early, late = sorted((first, second))
    rates = [learning_rate(1e-3, position, 100) for position in (early, late)]
    assert all(0 <= rate <= 1e-3 for rate in rates)
    assert learning_rate(1e-3, 0.05, 100) == pytest.approx(1e-3)
    assert learning_rate(1e-3, 1.0, 100) == pytest.approx(0, abs=1e-12)
    assert learning_rate(1e-3, early, 1) == pytest.approx(rates[0] * 0.1) or early < 0.05, "short trainings never reach the peak"
    assert rates == sorted(rates, reverse=early >= 0.05) or early < 0.05 < late


def test_stale_normalization_statistics_are_made_new_before_the_training(teacher: nn.Module) -> None:
    stale: Any = made()
    stale.load_state_dict(teacher.state_dict())
    stale.stem[1].running_mean += 3.0
    recovered: Any = sizewise.recover(stale, teacher, BARE, epochs=0.001)
    assert distance(recovered, teacher) < 0.3 * distance(stale, teacher), "after a single step"
    same_as_given: Any = sizewise.recover(teacher, stale, BARE, epochs=0.001)
    gap = same_as_given.inner[1].running_mean - teacher.get_buffer("inner.1.running_mean")
    assert float(gap.abs().max()) < 1e-3, "where they fit they stay, but for what one batch adds"


def test_statistics_that_were_fitted_with_the_weights_are_kept_as_far_from_those_of_the_data(teacher: nn.Module) -> None:
    """At a rate that changes no weight; following the data would bring the statistics to what they were before they were fitted."""
    fitted: Any = deepcopy(teacher)
    with torch.no_grad():
        fitted.stem[1].running_mean += 0.5 * fitted.stem[1].running_var.sqrt()
        fitted.stem[1].running_var *= 2.0
    recovered: Any = sizewise.recover(fitted, deepcopy(fitted), BARE, epochs=30, lr=1e-12, features=0.0)
    for name, most in (("running_mean", 0.02), ("running_var", 0.05)):
        stayed, was, data = (model.get_buffer(f"stem.1.{name}") for model in (recovered, fitted, teacher))
        assert bool(((stayed - was).abs() < most * (was - data).abs()).all()), name


def test_a_student_that_is_near_comes_nearer_for_all_its_statistics_were_fitted(teacher: nn.Module) -> None:
    near = blurred(teacher, share=0.02)
    unchanged = sizewise.recover(near, teacher, BARE, epochs=15, lr=1e-12, features=0.0, precision="float32")
    assert distance(unchanged, teacher) < 1.1 * distance(near, teacher)
    recovered = sizewise.recover(near, teacher, BARE, epochs=15, lr=0.01, features=0.0, precision="float32")
    assert distance(recovered, teacher) < 0.2 * distance(near, teacher)


def test_attention_is_compared_where_channels_are_fewer(teacher: nn.Module) -> None:
    narrow = TinyConv(width=8).eval()
    assert matched_paths(narrow, teacher, Inputs((BARE[0],))) == ("stem", "inner")
    assert matched_paths(teacher, teacher, Inputs((BARE[0],))) == ("stem", "inner")
    recovered = sizewise.recover(narrow, teacher, BARE, epochs=4, features=10.0)
    assert "2 features compared" in account(recovered).notes[1]


TWO = """
import sys
from pathlib import Path
import torch
from accelerate import PartialState
from safetensors.torch import save_file
import sizewise
from sizewise.testing import TinyConv
torch.manual_seed(0)
student, teacher = TinyConv().eval(), TinyConv().eval()
data = [torch.randn(16, 1, 6, 6) for _ in range(9)]
found = sizewise.recover(student, teacher, data, epochs=2, validation=data, checkpoint=sys.argv[1] + "/checkpoint")
state = PartialState()
assert (state.num_processes, found.recovery.record["steps"]) == (2, 8), found.recovery
save_file(found.state_dict(), sys.argv[1] + f"/{state.process_index}")
"""


@pytest.mark.slow
def test_two_processes_train_one_student(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        str(tmp_path / "two.py"),
        str(tmp_path),
    ]
    done = subprocess.run(command, env={**os.environ, "ACCELERATE_USE_CPU": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / name) for name in "01")
    assert same(first, second)


@given(st.integers(0, 2**31 - 1), st.sampled_from([(40, 3), (8, 3, 6), (4, 3, 5, 2)]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_renormalized_layers_put_out_what_they_do_in_inference_with_a_batchs_gradients(
    seed: int, shape: tuple[int, ...], affine: bool
) -> None:
    kinds = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)
    norm = kinds[len(shape) - 2](3, affine=affine).double()
    torch.nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    x, weights = randn(seed, *shape).double().requires_grad_(), randn(seed + 1, *shape).double()
    norm.eval()
    want = norm(x).detach()
    stood = norm.get_buffer("running_mean").clone()
    dims = [i for i in range(x.ndim) if i != 1]
    wide = [1, 3] + [1] * (x.ndim - 2)
    mean, deviation = x.mean(dims, keepdim=True), (x.var(dims, keepdim=True, correction=0) + norm.eps).sqrt()
    kept = (norm.get_buffer("running_var").view(wide) + norm.eps).sqrt()
    r, d = (deviation / kept).detach(), ((mean - stood.view(wide)) / kept).detach()
    (wanted,) = torch.autograd.grad((((x - mean) / deviation * r + d) * weights).sum(), x)
    with renormalized(norm):
        norm.train()
        out = norm(x)
        (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(gradient, wanted)
    torch.testing.assert_close(norm.get_buffer("running_mean"), 0.98 * stood + 0.02 * x.detach().mean(dims))
    norm.train()
    assert not torch.allclose(norm(x), want), "afterwards it is an ordinary one again"


def test_a_rate_that_is_too_high_is_lowered_and_said(teacher: nn.Module) -> None:
    near = blurred(teacher, share=0.02)
    # so near to the teacher that bfloat16, where the machine computes in it, sees no difference
    recovered = sizewise.recover(near, teacher, BARE, epochs=15, lr=0.3, features=0.0, precision="float32")
    found = account(recovered)
    assert found.record["lowered"] > 0
    assert found.record["lr"] == pytest.approx(0.3 / 4 ** found.record["lowered"])
    assert any("because it got worse" in note for note in found.notes)
    assert distance(recovered, teacher) < distance(near, teacher)


def test_what_began_anew_goes_on_to_the_same_bits_after_an_interruption(
    teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    options: dict[str, Any] = {"epochs": 9, "lr": 0.3, "features": 0.0}
    near = blurred(teacher, share=0.02)
    whole = sizewise.recover(near, teacher, BARE, **options)
    path = tmp_path / "recovery.safetensors"
    with pytest.raises(KeyboardInterrupt):
        sizewise.recover(near, teacher, Broken(BARE, 9 + 30), checkpoint=path, **options)
    resumed = sizewise.recover(near, teacher, BARE, checkpoint=path, **options)
    assert account(resumed).record["lowered"] > 1
    assert same(state(resumed), state(whole))
    assert account(resumed).record == account(whole).record


@pytest.mark.parametrize("seed", range(4))
def test_what_batches_differ_by_is_not_taken_for_a_rise_of_the_loss(teacher: nn.Module, student: nn.Module, seed: int) -> None:
    """A rate at which nothing changes, over many small batches in random order."""
    data = DataLoader(cast("Any", PICTURES), batch_size=4, shuffle=True)
    found = account(sizewise.recover(student, teacher, data, epochs=12, lr=1e-12, features=0.0, seed=seed))
    assert found.record["steps"] == 12 * 64
    assert found.record["lowered"] == 0


def test_with_validation_the_average_of_the_last_weights_is_kept(teacher: nn.Module) -> None:
    near, data = blurred(teacher, share=0.05), DataLoader(cast("Any", PICTURES), batch_size=8, shuffle=True)
    options: dict[str, Any] = {"epochs": 8, "lr": 0.003, "features": 0.0, "precision": "float32"}
    judged, last = (sizewise.recover(near, teacher, data, validation=validation, **options) for validation in (BARE, None))
    assert account(judged).record["best"] == 4, "at the end"
    assert distance(judged, teacher) < 0.6 * distance(last, teacher)


def test_it_begins_anew_a_few_times_at_most(teacher: nn.Module) -> None:
    """Both loss and validation become worse at all of these rates."""
    near = blurred(teacher, share=0.02)
    found = account(sizewise.recover(near, teacher, BARE, epochs=60, lr=1e4, features=0.0, validation=BARE))
    assert found.record["steps"] > 0
    assert 0 < found.record["lowered"] <= loop.MOST_LOWERED
    assert found.record["best"] == 0, "the model is as it was"
