"""`compress_model`: the size is kept, the better way wins, the file comes back; `run_ways` and the command line to the same end."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sizewise
from sizewise.data.model_size import float_bytes
from sizewise.errors import PreconditionError, UnknownName, UsageError
from sizewise.pipeline import compress, one_plan
from sizewise.pipeline.compress import compression_ways
from sizewise.pipeline.one_plan import run_ways
from sizewise.protocols import Inputs
from sizewise.report.html import render_html
from sizewise.report.terminal import summary
from sizewise.storage.swz import open_swz
from sizewise.testing import NullRuntime, tiny_task
from sizewise.types import Step


class Blocks(nn.Module):
    """Two convolutions with normalizations and a head: 23 thousand weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.second, self.head = nn.Conv2d(32, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    torch.manual_seed(0)
    model = Blocks()
    for _ in range(3):
        model(pictures(9))  # so that the statistics are not those that a model begins with
    return model.eval()


def pictures(seed: int, count: int = 64) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


CALIBRATION = list(torch.split(pictures(1, 192), 32))


def change(model: nn.Module, whole: nn.Module) -> float:
    x = pictures(2)
    with torch.no_grad():
        wanted = whole(x)
        return float((model(x) - wanted).square().mean() / wanted.var(0).mean())


def test_the_file_keeps_the_rate_and_comes_back(blocks: Blocks, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in blocks.state_dict().items()}
    small = sizewise.compress_model(blocks, 0.15, calibration=CALIBRATION, methods=["sharing"])
    sizewise.save_compressed(small, tmp_path / "weights.swz")
    assert (tmp_path / "weights.swz").stat().st_size <= 0.15 * float_bytes(blocks)
    assert change(small, blocks) < 0.02
    back = sizewise.load_compressed(tmp_path / "weights.swz", blocks, CALIBRATION[0])
    with torch.no_grad():
        assert torch.equal(back(CALIBRATION[0]), small(CALIBRATION[0]))
    assert all(torch.equal(value, before[name]) for name, value in blocks.state_dict().items())


@pytest.mark.parametrize("methods", ["auto", ["pruning"], ["low_rank", "sharing"]])
def test_at_rate_1_nothing_is_lost(blocks: Blocks, methods: Any, tmp_path: Path) -> None:
    small = sizewise.compress_model(blocks, 1.0, calibration=CALIBRATION, methods=methods)
    assert all(torch.equal(value, blocks.state_dict()[name]) for name, value in small.state_dict().items())
    sizewise.save_compressed(small, tmp_path / "weights.swz")
    assert (tmp_path / "weights.swz").stat().st_size <= float_bytes(blocks)


class Memory(nn.Module):
    """A recurrent layer whose matrices are nearly of rank 4, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(16, 64, batch_first=True), nn.Linear(64, 6)
        with torch.no_grad():
            for value in (value for value in self.gru.parameters() if value.ndim == 2):
                value.copy_(0.1 * torch.randn(len(value), 4) @ torch.randn(4, value.shape[1]) + 0.01 * torch.randn(value.shape))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.gru(x)[0][:, -1])
        return logits


@pytest.mark.slow
def test_recurrent_matrices_are_coded_as_products_where_that_is_nearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "SMALL", 0.0)
    torch.manual_seed(0)
    model, data = Memory().eval(), list(torch.randn(192, 9, 16).chunk(6))
    small = sizewise.compress_model(model, 0.05, calibration=data, methods=["low_rank", "sharing"])
    saved = {one.method: one for one in small.compression.contributions}  # type: ignore[union-attr]
    assert {"low rank", "shared values", "entropy coding"} == saved.keys()
    assert saved["low rank"].bytes_without > 1.3 * saved["low rank"].size_bytes
    sizewise.save_compressed(small, tmp_path / "weights.swz")
    assert (tmp_path / "weights.swz").stat().st_size <= 0.05 * float_bytes(model)
    assert open_swz(tmp_path / "weights.swz").kind("gru.weight_hh_l0") == "product"
    back = sizewise.load_compressed(tmp_path / "weights.swz", model, data[0])
    with torch.no_grad():
        assert torch.equal(back(data[0]), small(data[0]))


def test_the_rate_that_is_named_can_be_reached_where_small_layers_take_most(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(7, 7), nn.LayerNorm(7))], nn.Linear(7, 16)).eval()
    data = list(torch.randn(128, 7).chunk(4))
    with pytest.raises(PreconditionError, match=r"rate of about \d\.\d+") as caught:
        sizewise.compress_model(model, 0.1, calibration=data, methods=["sharing"])
    found = re.search(r"rate of about (\d\.\d+)", str(caught.value))
    assert found is not None
    rate = float(found[1])
    assert 0.3 < rate < 1
    small = sizewise.compress_model(model, rate, calibration=data, methods=["sharing"])
    sizewise.save_compressed(small, tmp_path / "weights.swz")
    assert (tmp_path / "weights.swz").stat().st_size <= rate * float_bytes(model)


def test_tied_weights_are_tied_again_behind_a_small_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Tied().eval(), list(torch.randint(0, 60, (96, 5)).chunk(6))
    small = sizewise.compress_model(model, 0.2, calibration=ids, methods=["sharing"])
    sizewise.save_compressed(small, tmp_path / "weights.swz")
    back: Any = sizewise.load_compressed(tmp_path / "weights.swz", Tied(), ids[0])
    assert back.head.weight is back.table.weight
    with torch.no_grad():
        assert torch.equal(back(ids[0]), small(ids[0]))


class Tied(nn.Module):
    """An embedding that is the output layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(60, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 60, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.middle(self.table(ids))))
        return logits


def test_a_smaller_file_changes_more(blocks: Blocks) -> None:
    changes = [change(sizewise.compress_model(blocks, rate, calibration=CALIBRATION, methods=["sharing"]), blocks) for rate in (0.25, 0.1)]
    assert changes[0] < changes[1]


def test_the_way_that_changes_outputs_least_wins_and_all_are_told(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "SMALL", 0.0)
    small = sizewise.compress_model(blocks, 0.1, calibration=CALIBRATION, methods=["sharing", "pruning"])
    told: Any = small.compression
    figures = {
        note.split(",")[0].split(" of that")[0]: float(found[1]) for note in told.notes if (found := re.search(r"by ([\d.e+-]+) %", note))
    }
    assert {"sharing", "pruning 25 %"} <= set(figures)
    best = min(figures, key=lambda way: figures[way])
    assert (best == "sharing") == all("MACs removed" not in note and "parameters removed" not in note for note in told.notes)


def test_one_method_alone_leaves_fewer_float_weights(blocks: Blocks, tmp_path: Path) -> None:
    small = sizewise.compress_model(blocks, 0.5, calibration=CALIBRATION, methods=["pruning"])
    assert float_bytes(small) <= 0.52 * float_bytes(blocks)
    sizewise.save_compressed(small, tmp_path / "weights.swz")
    assert (tmp_path / "weights.swz").stat().st_size <= 0.5 * float_bytes(blocks)


def test_training_comes_between_pruning_and_sharing(blocks: Blocks) -> None:
    small = sizewise.compress_model(
        blocks, 0.1, calibration=CALIBRATION, train=CALIBRATION, recovery="1epoch", methods=["pruning", "sharing"]
    )
    told: Any = small.compression
    assert any("recovery" in note for note in told.notes)


def test_shared_weights_are_not_trained_away(blocks: Blocks) -> None:
    small = sizewise.compress_model(blocks, 0.2, calibration=CALIBRATION, methods=["sharing"])
    with pytest.raises(PreconditionError, match=r"compress_model\(model, train="):
        sizewise.recover(small, blocks, CALIBRATION)


def test_the_same_twice(blocks: Blocks) -> None:
    one, two = (sizewise.compress_model(blocks, 0.1, calibration=CALIBRATION, methods=["sharing"], seed=3) for _ in range(2))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5])
def test_a_rate_is_between_0_and_1(blocks: Blocks, rate: float) -> None:
    with pytest.raises(UsageError, match="compression_rate"):
        sizewise.compress_model(blocks, rate, calibration=CALIBRATION)


def test_what_cannot_be_meant(blocks: Blocks) -> None:
    with pytest.raises(UnknownName, match="sharing"):
        sizewise.compress_model(blocks, 0.1, calibration=CALIBRATION, methods=["shraing"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="end with sharing"):
        sizewise.compress_model(blocks, 0.1, calibration=CALIBRATION, methods=["pruning", "low_rank"])
    with pytest.raises(UnknownName):
        sizewise.compress_model(blocks, 0.1, calibration=CALIBRATION, skip=["frist"])


def test_a_rate_that_cannot_be_reached_says_which_can(blocks: Blocks) -> None:
    with pytest.raises(PreconditionError, match=r"a rate of about 0\.0\d+"):
        sizewise.compress_model(blocks, 0.002, calibration=CALIBRATION, methods=["sharing"])


def test_weights_that_are_not_numbers(blocks: Blocks) -> None:
    broken = sizewise.compress_model(blocks, 0.5, calibration=CALIBRATION, methods=["sharing"])
    with torch.no_grad():
        broken.get_parameter("head.weight")[0, 0] = torch.nan
    with pytest.raises(PreconditionError, match=r"head\.weight"):
        sizewise.compress_model(broken, 0.1, example_inputs=CALIBRATION[0])


def test_ways_begin_mildly() -> None:
    ways = compression_ways(0.1, "auto", "1epoch", ["head"])
    assert ways[0] == [(Step(technique="weight_sharing", settings={"rate": 0.1, "skip": ["head"]}),)]
    for family in ways[1:]:
        shares = [steps[0].settings["rate"] for steps in family]
        assert shares == sorted(shares)
        assert all([step.technique for step in steps[1:]] == ["recovery", "weight_sharing"] for steps in family)


def test_ways_of_a_task_the_best_on_validation_is_bundled_with_its_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_plan, "NOTHING", -1.0)
    task, share = tiny_task(), Step(technique="weight_sharing", settings={"rate": 0.5})
    cut = Step(technique="channel_pruning", settings={"rate": 0.5, "target": "params"})
    result = run_ways(task, [[(share,)], [(cut, share)]], runtime=NullRuntime(), out=tmp_path / "out")
    record = result.record
    tried = [c for c in record.candidates if c.plan.steps]
    assert len(tried) == 2
    scores = {c.id: c.measured.quality.score.value for c in tried if c.measured}
    assert scores[record.chosen] == max(scores.values())
    stored = record.winner.stored
    assert stored is not None
    assert stored.size_bytes == (result.path / "weights.swz").stat().st_size
    assert sum(tensor.size_bytes for tensor in stored.tensors) <= stored.size_bytes
    assert not (result.path / "weights.safetensors").exists()
    module, x = sizewise.load(result.path, task), Inputs((torch.randn(3, 1, 6, 6),))
    with torch.no_grad():
        assert torch.equal(x.call(module), NullRuntime().load(result.path / "model.null", threads=1)(x)[0])
    assert "weights.swz" in summary(record)
    assert "Stored weights" in render_html(record)
    saved = [one for change in record.winner.changes for one in change.contributions]
    assert {"shared values", "entropy coding"} <= {one.method for one in saved}
    assert ("pruning" in {one.method for one in saved}) == (len(record.winner.plan.steps) == 2)
    assert all(one.size_bytes == stored.size_bytes for one in saved)
    assert all(one.method in summary(record) and one.method in render_html(record) for one in saved)


def test_what_pruning_saves_of_a_task_is_kept_for_a_run_that_goes_on(tmp_path: Path) -> None:
    cut = Step(technique="channel_pruning", settings={"rate": 0.5, "target": "params"})
    ways = [[(cut, Step(technique="weight_sharing", settings={"rate": 0.6}))]]
    first = run_ways(tiny_task(), ways, runtime=NullRuntime(), out=tmp_path / "out").record.winner
    again = run_ways(tiny_task(), ways, runtime=NullRuntime(), out=tmp_path / "out", resume=True).record.winner
    assert next(one.method for change in first.changes for one in change.contributions) == "pruning"
    assert first.changes == again.changes


def test_a_family_ends_where_it_gets_no_better_and_a_way_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worth = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(one_plan, "_worth", lambda candidate, bench: next(worth, 0.0) if candidate.plan.steps else 1.0)
    shares = [(Step(technique="weight_sharing", settings={"rate": rate}),) for rate in (0.6, 0.5, 0.4)]
    impossible = (Step(technique="weight_sharing", settings={"size": 1}),)
    result = run_ways(tiny_task(), [[impossible], shares], runtime=NullRuntime(), out=tmp_path / "out")
    status = [c.status for c in result.record.candidates if c.plan.steps]
    assert status == ["failed", "measured", "measured"]
    assert "so few bytes" in summary(result.record)


def test_nothing_else_is_tried_where_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_plan, "_worth", lambda candidate, bench: 0.95)
    ways = [[(Step(technique="weight_sharing", settings={"rate": rate}),)] for rate in (0.6, 0.5)]
    result = run_ways(tiny_task(), ways, runtime=NullRuntime(), out=tmp_path / "out")
    assert len([c for c in result.record.candidates if c.plan.steps]) == 1


def test_where_every_way_fails_the_first_says_why(tmp_path: Path) -> None:
    impossible = (Step(technique="weight_sharing", settings={"size": 1}),)
    with pytest.raises(PreconditionError, match="so few bytes"):
        run_ways(tiny_task(), [[impossible]], runtime=NullRuntime(), out=tmp_path / "out")
