"""Resizable inputs: names, what becomes of the inputs, what is refused, and the way of a resized model to its file and back."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sizewise
from sizewise.devices.loader import load_device
from sizewise.errors import PreconditionError, UnknownName, UsageError
from sizewise.graph.trace import trace
from sizewise.pipeline.apply import apply_plan
from sizewise.pipeline.train import train_scale
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Inputs
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.tasks.resize import Resized, read_levels
from sizewise.tasks.task import Task, untrained
from sizewise.testing import DictInput, NullRuntime, TinyConv, TwoInputs
from sizewise.types import Plan, Step

PICTURES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)
IDS = torch.arange(1, 19).reshape(2, 9)


def _task(resize: Any, **changes: Any) -> Task:
    arguments: dict[str, Any] = {"models": {"m": TinyConv()}, "example_inputs": PICTURES[:1], "validation": [(PICTURES, LABELS)]}
    return Task(**{**arguments, "resize": resize, **changes})


def _smaller(x: Tensor, size: int) -> Tensor:
    (level,) = read_levels((size,), Inputs((x[:1],)))
    out: Tensor = level.change(Inputs((x,))).args[0]
    return out


def corner(x: Tensor) -> Tensor:
    return x[:, :, :3, :3]


# ---- names and candidates


def test_every_model_is_a_candidate_at_its_own_size_first_and_then_at_every_level() -> None:
    task = _task((4, 6), models={"a": TinyConv(), "b": TinyConv()})
    assert task.scales == ("a", "b", "a@4", "b@4", "a@6", "b@6")
    assert list(task.models) == ["a", "b"]
    assert [(level.label, level.size) for level in task.levels] == [("4", 4), ("6", 6)]
    assert task.level("a") is None
    assert task.level("a@4") is task.levels[0]


@pytest.mark.parametrize("resize", [None, (), [], (8,), (8, 8)])
def test_without_another_size_there_is_nothing_more(resize: Any) -> None:
    assert _task(resize).scales == ("m",)


def test_own_size_and_repetitions_add_nothing() -> None:
    assert _task((4, 8, np.int64(4), 4)).scales == ("m", "m@4")
    assert _task(range(2, 9, 2)).scales == ("m", "m@2", "m@4", "m@6")


def test_functions_name_the_candidates() -> None:
    assert _task(corner).scales == ("m", "m@corner")
    assert _task({"left": lambda x: x[..., :4], "corner": corner}).scales == ("m", "m@left", "m@corner")
    assert _task(nn.AvgPool2d(2)).scales == ("m", "m@AvgPool2d")


def test_the_reference_may_be_any_candidate() -> None:
    assert _task((4,), reference="m@4").reference == "m@4"
    with pytest.raises(UnknownName, match="reference: unknown model 'm@5'") as caught:
        _task((4,), reference="m@5")
    assert caught.value.hint == "did you mean 'm@4'?"


def test_a_candidate_is_the_model_behind_the_change() -> None:
    model = TinyConv().eval()
    task = _task((4,), models={"m": model})
    resized = task.build("m@4")
    assert task.build("m") is model
    assert isinstance(resized, Resized)
    assert resized.model is model
    with torch.no_grad():
        assert torch.equal(resized(PICTURES), model(F.avg_pool2d(PICTURES, 2)))


def test_untrained_candidates_keep_their_recipe_and_seed() -> None:
    task = _task((4,), models={"raw": untrained(TinyConv, epochs=3), "done": TinyConv()})
    assert [task.is_untrained(name) for name in task.scales] == [True, False, True, False]
    assert task.recipe("raw@4") is task.recipe("raw")
    with pytest.raises(PreconditionError, match=r"models\['done@4'\]: this candidate is given as trained"):
        task.recipe("done@4")
    states = [task.build(name, 7).state_dict() for name in ("raw", "raw@4")]
    assert all(torch.equal(value, states[1][f"model.{name}"]) for name, value in states[0].items())


def test_names_that_meet_are_refused() -> None:
    with pytest.raises(UsageError, match="resize: two candidates have the same name") as caught:
        _task((4,), models={"m": TinyConv(), "m@4": TinyConv()})
    assert caught.value.got == "m@4"


def test_models_that_are_replaced_later_are_resized_too() -> None:
    task = _task((4,))
    task.models = {"other": TinyConv()}
    assert task.scales == ("other", "other@4")


# ---- pictures


def test_whole_ratios_are_means_of_windows() -> None:
    slow = torch.stack([PICTURES[:, :, i : i + 2, j : j + 2].mean((2, 3)) for i in range(0, 8, 2) for j in range(0, 8, 2)], -1)
    assert torch.allclose(_smaller(PICTURES, 4), slow.reshape(4, 1, 4, 4), atol=1e-6)
    assert torch.allclose(_smaller(PICTURES, 1), PICTURES.mean((2, 3), keepdim=True), atol=1e-6)


def test_other_ratios_are_interpolated() -> None:
    want = F.interpolate(PICTURES, size=(5, 5), mode="bilinear", align_corners=False)
    assert torch.equal(_smaller(PICTURES, 5), want)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_a_slope_stays_a_slope_and_every_pixel_counts(size: int) -> None:
    slope = torch.arange(11.0).expand(1, 1, 8, 11)
    out = _smaller(slope, size)
    width = round(11 * size / 8)
    assert out.shape == (1, 1, size, width)
    steps = out[0, 0, 0].diff()
    assert torch.allclose(steps, torch.full_like(steps, 11 / width), atol=0.15)
    assert float(out.mean()) == pytest.approx(5.0, abs=0.1), "the middle stays in the middle"
    if size <= 3:  # from here on interpolation alone would skip pixels
        pixels = slope.clone().requires_grad_(True)
        (touched,) = torch.autograd.grad(_smaller(pixels, size).sum(), pixels)
        assert bool((touched > 0).all())


@pytest.mark.parametrize(
    ("shape", "size", "want"), [((8, 12), 4, (4, 6)), ((12, 8), 4, (6, 4)), ((8, 9), 4, (4, 4)), ((5, 20), 3, (3, 12))]
)
def test_the_shorter_side_is_the_size_and_the_aspect_stays(shape: tuple[int, int], size: int, want: tuple[int, int]) -> None:
    assert _smaller(torch.randn(2, 3, *shape), size).shape == (2, 3, *want)


def test_pictures_that_are_already_that_small_stay() -> None:
    (level,) = read_levels((6,), Inputs((PICTURES,)))
    small = torch.randn(2, 1, 5, 7)
    assert level.change(Inputs((small,))).args[0] is small


def test_pictures_of_bytes_stay_bytes() -> None:
    pixels = torch.tensor([[[[0, 1], [2, 255]]]], dtype=torch.uint8)
    assert torch.equal(_smaller(pixels, 1), torch.tensor([[[[64]]]], dtype=torch.uint8))


def test_every_picture_is_made_smaller_and_other_inputs_stay() -> None:
    facts = torch.randn(4, 5)
    (level,) = read_levels((4,), Inputs((facts, PICTURES), {"second": PICTURES, "flag": True}))
    out = level.change(Inputs((facts, PICTURES), {"second": PICTURES, "flag": True}))
    assert out.args[0] is facts
    assert out.kwargs is not None
    assert out.kwargs["flag"] is True
    assert out.args[1].shape == out.kwargs["second"].shape == (4, 1, 4, 4)


def test_macs_fall_with_the_square_of_the_side() -> None:
    task = _task((4,))
    own, half = (static_cost(task.build(name), task.example) for name in task.scales)
    assert own.macs / half.macs == pytest.approx(4, rel=0.01)
    assert half.params == own.params
    assert not half.uncounted


# ---- sequences


def test_tokens_are_cut_in_every_input_of_two_dimensions() -> None:
    task = _task((4,), models={"m": DictInput()}, example_inputs={"input_ids": IDS, "attention_mask": (IDS > 2).float()})
    out = task.levels[0].change(task.example)
    assert out.kwargs is not None
    assert torch.equal(out.kwargs["input_ids"], IDS[:, :4])
    assert out.kwargs["attention_mask"].shape == (2, 4)
    model = task.build("m@4")
    assert torch.equal(task.example.call(model)["logits"], out.call(task.build("m"))["logits"])


def test_frames_are_averaged_over_time_alone() -> None:
    frames = torch.randn(2, 12, 3)
    assert torch.allclose(_smaller(frames, 4), frames.reshape(2, 4, 3, 3).mean(2), atol=1e-6)
    want = F.interpolate(frames.transpose(1, 2), size=9, mode="linear", align_corners=False).transpose(1, 2)
    assert torch.allclose(_smaller(frames, 9), want, atol=1e-6)
    short = frames[:, :3]
    (level,) = read_levels((4,), Inputs((frames,)))
    assert level.change(Inputs((short,))).args[0] is short


# ---- functions


def test_a_function_gets_the_tensor_where_it_is_alone_and_inputs_otherwise() -> None:
    seen: list[Any] = []

    def spy(given: Any) -> Any:
        seen.append(given)
        return given

    assert _task(spy).levels[0].change(Inputs((PICTURES,))).args[0] is PICTURES
    assert isinstance(seen[0], Tensor), "the example"
    assert seen[1] is PICTURES
    two = Inputs((torch.randn(2, 6), torch.randn(2, 3)))
    task = _task(spy, models={"m": TwoInputs()}, example_inputs=two)
    assert seen[-1] is two
    assert task.levels[0].size is None


# ---- what is refused


@pytest.mark.parametrize("resize", [4, "4", 4.0, PICTURES, {4, 6}, object()])
def test_other_declarations_are_refused(resize: Any) -> None:
    with pytest.raises(UsageError, match="resize: not a way to resize") as caught:
        _task(resize)
    assert "sequence of sizes" in str(caught.value.wanted)
    assert caught.value.hint == ("resize=(4,)" if type(resize) is int else None)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (9, "larger than the shorter side"),
        (0, "at least 1"),
        (-4, "at least 1"),
        ("4", "whole number"),
        (4.0, "whole number"),
        (True, "whole"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_what_can(size: Any, says: str) -> None:
    with pytest.raises(UsageError, match=f"^resize: .*{says}") as caught:
        _task((4, size))
    assert caught.value.got == (str(size) if says.startswith(("larger", "at least")) else repr(size))
    assert caught.value.wanted == "1 to 8"


@pytest.mark.parametrize(
    ("example", "says"),
    [(torch.randn(2, 5), r"float32 \[2, 5\]"), (torch.zeros(2, dtype=torch.long), r"int64 \[2\]"), (torch.randn(1, 3, 4, 8, 8), "4, 8, 8")],
)
def test_inputs_without_a_size_are_shown(example: Tensor, says: str) -> None:
    with pytest.raises(UsageError, match=rf"resize: these inputs have no size that is known\n.*{says}") as caught:
        _task((4,), example_inputs=example)
    assert "function" in str(caught.value.hint)


def test_a_mask_beside_frames_is_refused() -> None:
    with pytest.raises(UsageError, match="goes with the frames") as caught:
        _task((4,), example_inputs={"frames": torch.randn(2, 12, 3), "mask": torch.ones(2, 12)})
    assert caught.value.got == "[2, 12]"


def test_a_function_that_fails_is_named() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no such filter")

    with pytest.raises(PreconditionError, match=r"resize\['tiny'\]: the function failed on the example inputs") as caught:
        _task({"tiny": broken})
    assert caught.value.got == "RuntimeError: no such filter"


@pytest.mark.parametrize(("function", "got"), [(lambda x: None, "NoneType"), (lambda x: (x,), "tuple")])
def test_a_function_that_returns_something_else_is_named(function: Any, got: str) -> None:
    with pytest.raises(PreconditionError, match=r"resize\['f'\]: the function did not return inputs") as caught:
        _task({"f": function})
    assert caught.value.got == got


def test_a_function_of_several_inputs_must_return_inputs() -> None:
    two = (torch.randn(2, 6), torch.randn(2, 3))
    with pytest.raises(PreconditionError, match="did not return inputs") as caught:
        _task({"f": lambda inputs: inputs.args}, models={"m": TwoInputs()}, example_inputs=two)
    assert "sizewise" in str(caught.value.wanted)


def test_the_batch_must_stay() -> None:
    with pytest.raises(PreconditionError, match="changed how many examples there are") as caught:
        _task({"twice": lambda x: torch.cat([x, x])})
    assert (caught.value.got, caught.value.wanted) == ("2", "1")


def test_what_is_no_function_and_what_has_no_name() -> None:
    with pytest.raises(UsageError, match=r"resize\['f'\]: not a function"):
        _task({"f": 4})
    for label in ("", 4):
        with pytest.raises(UsageError, match="resize: labels are texts") as caught:
            _task({label: corner})
        assert caught.value.got == repr(label)
    with pytest.raises(UsageError, match="no name") as nameless:
        _task(lambda x: x[..., :4, :4])
    assert nameless.value.hint == "resize={label: function}"


def test_an_exported_graph_cannot_be_resized() -> None:
    graph = trace(TinyConv().eval(), Inputs((PICTURES,))).program.module()
    task = _task((4,), models={"graph": graph})
    assert task.build("graph") is graph
    with pytest.raises(PreconditionError, match=r"models\['graph@4'\]: an exported graph"):
        task.build("graph@4")


# ---- the way to the file


def test_the_export_keeps_input_names_and_a_free_batch() -> None:
    task = _task((4, 5))
    for name in task.scales:
        traced = trace(task.build(name).eval(), task.example)
        assert traced.batch == "dynamic"
        assert traced.program.graph_signature.user_inputs == ("x",)
    tokens = _task((4,), models={"m": DictInput()}, example_inputs={"input_ids": IDS[:1], "attention_mask": IDS[:1]})
    traced = trace(tokens.build("m@4").eval(), tokens.example)
    assert traced.batch == "dynamic"
    assert traced.program.graph_signature.user_inputs == ("input_ids", "attention_mask")


def test_a_copy_is_independent() -> None:
    first = _task((4,)).build("m@4")
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.get_parameter("model.head.bias").add_(1)
    assert torch.allclose(second(PICTURES) - first(PICTURES), torch.ones(1), atol=1e-5)


@pytest.mark.parametrize("size", [4, 5])
def test_pruned_and_quantized_files_take_the_whole_pictures_in_any_batch(size: int, tmp_path: Path) -> None:
    task = _task((size,), models={"m": TinyConv(width=32).eval()})
    plan = Plan(scale=f"m@{size}", steps=(Step(technique="channel_pruning", settings={"rate": 0.5}), Step(technique="int8_static")))
    shrunk, _, _ = apply_plan(task.build(plan.scale), plan, Context(task.example, [Inputs((PICTURES,))], OnnxRuntime.scheme))
    artefact = OnnxRuntime().lower(shrunk, task.example, tmp_path / "model.onnx")
    assert (artefact.inputs, artefact.batch) == (("x",), "dynamic")
    file = OnnxRuntime().load(tmp_path / "model.onnx", threads=1)
    with torch.no_grad():
        want = shrunk(PICTURES)
    assert float((file(Inputs((PICTURES,)))[0] - want).abs().mean()) <= 0.05 * float(want.abs().mean())


def test_untrained_candidates_are_trained_at_their_own_size() -> None:
    seen: list[tuple[int, ...]] = []

    class Spy(TinyConv):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return super().forward(x)

    task = _task((4,), models={"raw": untrained(Spy, epochs=2)}, train=[(PICTURES, LABELS)])
    fresh = task.build("raw@4", 0).state_dict()
    module = train_scale(task, "raw@4", 0)
    assert set(seen) == {(4, 1, 4, 4)}
    assert not module.training
    assert any(not torch.equal(fresh[name], value) for name, value in module.state_dict().items())


# ---- the whole job


class FixedSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits


@pytest.fixture(autouse=True)
def _whole_models_only(brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sizewise.search.levers.PRUNING_RATES", ())


def _job(resize: Any = (4, 5), models: Any = None, labels_at: int = 8, **changes: Any) -> Task:
    """A model and labels that are what it says of the pictures at one size."""
    pictures = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        large = TinyConv()
    for _ in range(20):  # normalization statistics that fit the data, so that there is more than one label
        large(pictures)
    large.eval()
    with torch.no_grad():
        labels = large(F.avg_pool2d(pictures, 8 // labels_at)).argmax(1)
    parts = [(pictures[i : i + 32], labels[i : i + 32]) for i in range(0, 96, 32)]
    given = {"conv": large} if models is None else {"conv": large, **models}
    arguments: dict[str, Any] = {
        "calibration": parts[:1],
        "validation": parts[1:2],
        "test": parts[2:],
        "reference": "conv",
        "name": "sized",
    }
    return Task(given, pictures[:1], resize=resize, **{**arguments, **changes})


def _fit(task: Task, out: Path, trials: int = 8, **options: Any) -> sizewise.Result:
    return sizewise.fit(task, sizewise.Budget(size="1 MB"), NullRuntime(), out=out, trials=trials, **options)


class Count:
    """A progress display that counts."""

    total = done = 0

    def start(self, total: int, work: float | None = None) -> None:
        self.total = total

    def working(self, what: str) -> None: ...

    def note(self, line: str) -> None: ...

    def advance(self, line: str, units: int = 1, work: float | None = None) -> None:
        self.done += units


@pytest.fixture(scope="module")
def sized(brief: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[sizewise.Result, Count]:
    """A model of any size and one of a single size, each at three sizes, and how far the progress went. Pruned too."""
    count = Count()
    return _fit(_job(models={"fixed": FixedSize()}), tmp_path_factory.mktemp("sized") / "out", progress=count), count


def test_every_size_is_prepared_shrunk_and_loads_back(sized: tuple[sizewise.Result, Count]) -> None:
    found, _ = sized
    assert [scale.name for scale in found.record.scales] == ["conv", "fixed", "conv@4", "conv@5"]
    macs = {scale.name: scale.cost.macs for scale in found.record.scales}
    assert macs["conv"] > macs["conv@5"] > macs["conv@4"]
    measured = [candidate for candidate in found.record.candidates if candidate.measured]
    labels = {(c.plan.scale, c.plan.label) for c in measured}
    assert any(scale == "conv@4" and label.startswith("int8_static") for scale, label in labels), "with whichever bits the search tried"
    x = Inputs((torch.randn(3, 1, 8, 8),))
    for candidate in measured:
        folder = found.path / "trials" / candidate.id
        module = sizewise.load(folder, _job(models={"fixed": FixedSize()}))
        with torch.no_grad():
            assert torch.equal(x.call(module), NullRuntime().load(folder / "model.null", threads=1)(x)[0])


def test_a_model_of_one_size_fails_at_the_others_and_the_rest_is_done(sized: tuple[sizewise.Result, Count]) -> None:
    found, count = sized
    by_scale: dict[str, set[str]] = {}
    for candidate in found.record.candidates:
        by_scale.setdefault(candidate.plan.scale, set()).add(candidate.status)
        if candidate.plan.scale.startswith("fixed@"):
            assert f"models[{candidate.plan.scale!r}]: the model failed on the example inputs" in str(candidate.reason)
    assert by_scale["fixed@4"] == by_scale["fixed@5"] == {"failed"}
    assert "fixed" in {scale.name for scale in found.record.scales}
    assert "measured" in by_scale["conv@4"]
    assert "fixed@4" in (found.path / "report.html").read_text()
    assert count.done == count.total > 0, "progress reaches its end although scales fail"


def test_a_resized_candidate_loads_back_from_its_folder(tmp_path: Path) -> None:
    task = _job((4,), labels_at=4, reference="conv@4")
    found = _fit(task, tmp_path / "out")
    assert found.record.reference == "conv@4"
    own = next(c for c in found.record.candidates if c.plan.scale == "conv@4" and c.plan.label == "float")
    assert own.measured is not None
    assert own.measured.quality.score.value == 1.0, "labels are what the model says of the smaller pictures"
    folder = found.path / "trials" / own.id
    module = sizewise.load(folder, task)
    x = Inputs((torch.randn(3, 1, 8, 8),))
    with torch.no_grad():
        assert torch.equal(x.call(module), NullRuntime().load(folder / "model.null", threads=1)(x)[0])
    with pytest.raises(UnknownName, match="unknown model 'conv@4'"):
        sizewise.load(folder, _job(None))


def test_what_fails_at_its_own_size_still_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match=r"models\['bad'\]"):
        _fit(_job(models={"bad": nn.Linear(3, 4)}), tmp_path / "a")
    with pytest.raises(PreconditionError, match=r"models\['fixed@4'\]"):
        _fit(_job(models={"fixed": FixedSize()}, reference="fixed@4"), tmp_path / "b")


def test_other_sizes_are_another_run(tmp_path: Path) -> None:
    _fit(_job((4,)), tmp_path / "out")
    for resize in ((5,), (4, 5), {"4": partial(F.avg_pool2d, kernel_size=2)}):
        with pytest.raises(UsageError, match="another run"):
            _fit(_job(resize), tmp_path / "out", resume=True)
    assert _fit(_job((4,)), tmp_path / "out", resume=True).record.feasible


def test_scores_against_a_reference_models_outputs_take_the_whole_inputs(tmp_path: Path) -> None:
    unlabelled = [torch.randn(16, 1, 8, 8)]
    found = _fit(_job((4,), validation=unlabelled, test=unlabelled, metric="cosine", reference=None), tmp_path / "out")
    assert found.record.reference == "conv"
    scores = {scale.name: scale.quality.score.value for scale in found.record.scales}
    assert scores["conv"] == pytest.approx(1.0)
    assert scores["conv@4"] < 1.0


def test_a_device_that_is_elsewhere_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    assert load_device("nvidia_t4").how == "predicted"
    with pytest.raises(UsageError, match="device: fit measures the file") as caught:
        _fit(_job((4,)), tmp_path / "out", device="nvidia_t4")
    assert caught.value.got == "nvidia_t4, whose figures are predicted"
    assert "sizewise profile" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
