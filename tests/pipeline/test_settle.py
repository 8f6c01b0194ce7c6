"""Trials that race, and what becomes of them at the end: stopped, beaten, scored in full after all; looks at the test split."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.devices.loader import load_device
from sizewise.evaluate.metrics import METRICS, Metric, find_metric
from sizewise.pipeline.conclude import conclude
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.scales import prepare_scales
from sizewise.pipeline.settle import matter_after_all
from sizewise.pipeline.setup import make_setup, read_data
from sizewise.pipeline.store import Store
from sizewise.pipeline.trial import make_bench, run_trial
from sizewise.protocols import Runtime, Silent
from sizewise.report.html import render_html
from sizewise.report.terminal import summary
from sizewise.testing import NullRuntime, tiny_task
from sizewise.types import Budget, Candidate, Plan, RunRecord, Step, from_json, to_json

WHOLE = Plan(scale="large")
PRUNED = Plan(scale="large", steps=(Step(technique="channel_pruning", settings={"rate": 0.5}),))
SMALL = Plan(scale="small")
SMALL_INT8 = Plan(scale="small", steps=(Step(technique="int8_static"),))
PLANS = (PRUNED, WHOLE, SMALL, SMALL_INT8)
# the pruned file takes 5.8 kB and loses under two points, the whole one takes 11 kB, the small scale loses almost everything
FITS_PRUNED = Budget(max_drop="5 %", size="8 kB")


@dataclass
class Counted:
    """A loader that counts how often it is read."""

    batches: Any
    readings: int = 0

    def __iter__(self) -> Iterator[Any]:
        self.readings += 1
        return iter(self.batches)


def hard(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Examples about which the model is least sure, with what it says: whatever differs a little from it says something else of many."""
    pictures = torch.randn(6400, 1, 6, 6, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        scores = model.eval()(pictures)
    margins = scores.topk(2).values.diff(dim=1).abs().flatten()
    chosen = margins.argsort()[:640]
    x, y = pictures[chosen], scores.argmax(1)[chosen]
    return [(x[at : at + 32], y[at : at + 32]) for at in range(0, 640, 32)]


def run(
    out: Path,
    budget: Budget,
    plans: tuple[Plan, ...] = PLANS,
    metric: str | Metric = "accuracy",
    *,
    harder: bool = False,
    runtime: Runtime | None = None,
) -> tuple[RunRecord, Counted]:
    """Try the plans that are not finished in `out` and conclude, with a harder test split perhaps; the record, and that split's loader."""
    task = tiny_task(640)
    test = Counted(hard(task.build("large")) if harder else task.test)
    task.test, task.metric = test, find_metric(metric)
    setup = make_setup(task, budget, runtime or NullRuntime(), load_device("local"), Store(out, resume=True), 0, Silent(), None)
    facts = {"fingerprint": "x", "data": read_data(setup)}
    prepared = prepare_scales(setup)
    bench = make_bench(setup, prepared["large"])
    candidates: list[Candidate] = []
    for plan in plans:
        candidate = setup.store.candidate(plan)
        if candidate is None:
            candidate = run_trial(prepared[plan.scale].module, plan, setup.store.clear(plan), bench, [c.id for c in candidates])
            setup.store.save_candidate(candidate)
        candidates.append(candidate)
    return conclude(setup, bench, prepared, "large", candidates, facts), test


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raced") / "out"


@pytest.fixture(scope="module")
def record(out: Path) -> RunRecord:
    return run(out, FITS_PRUNED)[0]


def test_what_cannot_be_chosen_is_scored_in_part_and_says_why(record: RunRecord) -> None:
    status = {c.plan.label if c.plan.scale == "large" else c.plan.scale + c.plan.label: c.status for c in record.candidates}
    assert status == {"channel_pruning(rate=0.5)": "measured", "float": "beaten", "smallfloat": "stopped", "smallint8_static": "stopped"}
    whole, small, lowered = (record.candidate(Store.identifier(plan)) for plan in (WHOLE, SMALL, SMALL_INT8))
    assert "fits the budget and is chosen first by its costs" in str(whole.reason)
    assert "dropped after 128 of 640 validation examples: the drop on all of them is at least" in str(small.reason)
    assert str(lowered.reason).startswith("not lowered: dropped after 128 of 640")
    for candidate in (whole, small):
        assert candidate.measured is None
        assert not candidate.on_frontier
        assert candidate.partly is not None
        assert candidate.partly.quality.score.n == candidate.evaluated == 128
        assert candidate.in_full == 640
    assert lowered.partly is None
    assert (lowered.evaluated, lowered.in_full) == (128, 640)
    assert lowered.unlowered is not None, "what the module lost is known"
    assert lowered.unlowered.drop is not None
    assert lowered.unlowered.drop.low > 0.05


def test_the_chosen_file_is_scored_in_full_and_the_record_counts(record: RunRecord, out: Path) -> None:
    assert record.winner.plan == PRUNED
    assert record.winner.measured is not None
    assert record.winner.measured.quality.score.n == 640
    assert (out / "trials" / record.chosen / "scores.npy").is_file()
    assert not (out / "trials" / Store.identifier(WHOLE) / "scores.npy").exists()
    assert record.examples_evaluated == sum(c.evaluated or 0 for c in record.candidates)
    assert record.examples_in_full == 5 * 640, "a module and a file of one plan, two files, one module"
    assert record.data["validation"]["order"] == "single examples shuffled, the most changeable first, from memory"
    assert from_json(RunRecord, to_json(record)) == record


def test_reports_say_that_it_was_stopped_early(record: RunRecord) -> None:
    words = f"Scored on {record.examples_evaluated:,} validation examples instead of 3,200"
    assert words in " ".join(summary(record).split())
    page = render_html(record)
    assert words in page
    assert "Beaten: it cannot be chosen before another" in page


def test_the_same_bytes_are_the_same_look_and_are_not_scored_again(record: RunRecord, out: Path) -> None:
    assert record.verdict.look == 1
    assert record.verdict.level == pytest.approx(0.04)
    again, test = run(out, FITS_PRUNED)
    assert again.chosen == record.chosen
    assert again.verdict.look == 1
    assert test.readings == 1, "to check that it is the same data"
    assert again.verdict.test_quality == record.verdict.test_quality


def test_a_beaten_file_is_scored_after_all_when_what_beat_it_does_not_fit_any_more(record: RunRecord, out: Path, tmp_path: Path) -> None:
    assert record.winner.plan == PRUNED
    out = shutil.copytree(out, tmp_path / "out")  # other tests look at that one
    finished = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("trials/*/candidate.json")}
    found, _ = run(out, Budget(max_drop="1 %"))
    assert found.winner.plan == WHOLE
    assert found.winner.status == "measured"
    assert found.winner.reason is None
    assert found.winner.evaluated == 640, "what was read before is not read again"
    assert found.winner.proof_chance is not None
    assert found.winner.proof_chance > 0.5
    assert found.verdict.look == 2, "another file"
    assert found.verdict.level == pytest.approx(0.008)
    changed = {name for name, when in finished.items() if (out / "trials" / name / "candidate.json").stat().st_mtime_ns != when}
    assert changed == {Store.identifier(WHOLE)}


def test_where_nothing_fits_the_nearest_is_scored_in_full_and_no_look_is_spent(tmp_path: Path) -> None:
    found, _ = run(tmp_path / "out", Budget(max_drop="5 %", size="4 kB"), (WHOLE, SMALL))
    small = found.candidate(Store.identifier(SMALL))
    assert not found.feasible
    assert small.status == "measured", "it keeps the size"
    assert small.evaluated == 640
    assert {r.limit: r.candidate for r in found.relaxations} == {"size": Store.identifier(WHOLE), "max_drop": small.id}
    assert found.verdict.look is None
    assert not (tmp_path / "out" / "trials" / "looks.json").exists()
    assert "not looked at, since nothing fits" in {row.limit: row.reason for row in found.verdict.limits}["max_drop"]


def test_a_run_whose_every_file_was_stopped_still_has_a_nearest(tmp_path: Path) -> None:
    found, _ = run(tmp_path / "out", Budget(max_drop="5 %"), (SMALL,))
    assert found.chosen == Store.identifier(SMALL)
    assert found.winner.measured is not None


def test_what_may_be_chosen_is_read_to_its_end_only_once_it_is(tmp_path: Path) -> None:
    milder = Plan(scale="large", steps=(Step(technique="channel_pruning", settings={"rate": 0.3}),))
    found, _ = run(tmp_path / "out", Budget(max_drop="5 %"), (WHOLE, milder, PRUNED))
    whole, milder_one, chosen = (found.candidate(Store.identifier(plan)) for plan in (WHOLE, milder, PRUNED))
    assert found.chosen == chosen.id
    assert chosen.measured is not None
    assert chosen.measured.quality.score.n == 640
    assert chosen.evaluated is not None
    assert chosen.in_full is not None
    assert 640 < chosen.evaluated < chosen.in_full, "the module in part, the file in two parts, no example twice"
    assert (tmp_path / "out" / "trials" / chosen.id / "scores.npy").is_file()
    page = " ".join(render_html(found).split())
    assert "at best" in page
    for waited in (whole, milder_one):
        assert waited.measured is not None
        read = waited.measured.quality.score.n
        assert 640 / 3 <= read < 640
        assert (waited.status, waited.unread, waited.reason) == ("measured", 640 - read, None)
        assert f"on {read} of 640 examples" in page
    again, _ = run(tmp_path / "out", Budget(max_drop="5 %"), (WHOLE, milder, PRUNED))
    assert [c.evaluated for c in again.candidates] == [c.evaluated for c in found.candidates], "what was read stays read"
    strict, _ = run(tmp_path / "out", Budget(max_drop="5 %"), (WHOLE, milder))
    assert strict.winner.plan == milder
    assert strict.winner.measured is not None
    assert strict.winner.measured.quality.score.n == 640


def test_nothing_is_scored_again_where_all_is_settled(record: RunRecord) -> None:
    assert matter_after_all(record.candidates, FITS_PRUNED) == []


def test_a_metric_without_bounds_is_scored_in_full_and_the_record_says_so(tmp_path: Path) -> None:
    own = Metric("own", METRICS["accuracy"].score)
    found, _ = run(tmp_path / "out", Budget(max_drop=0.05), (WHOLE, SMALL), own)
    assert [c.status for c in found.candidates] == ["measured", "measured"]
    assert found.examples_evaluated == found.examples_in_full
    assert any("nobody knows the best score of own" in warning for warning in found.warnings)
    assert "order" not in found.data["validation"]


def test_a_file_of_the_same_bytes_is_not_measured_again(tmp_path: Path) -> None:
    """What is cut, said in two ways: of a file that fits, and of one that is beaten."""

    def twice(rate: float) -> tuple[Plan, Plan]:
        said: tuple[dict[str, Any], ...] = ({"rate": rate}, {"rate": rate, "target": "macs"})
        one, other = (Plan(scale="large", steps=(Step(technique="channel_pruning", settings=settings),)) for settings in said)
        return one, other

    plans = (*twice(0.5), *twice(0.1))
    for tried in (plans[:1], plans):  # the first is read to its end
        run(tmp_path / "out", Budget(max_drop="5 %", size="10 kB"), tried, runtime=find_runtime("onnxruntime"))
    folder = tmp_path / "out" / "trials"
    told = [(folder / Store.identifier(plan) / "candidate.json").read_text() for plan in plans]  # before the best are timed once more
    first, again, beaten, beaten_again = (from_json(Candidate, text) for text in told)
    assert [c.status for c in (first, again, beaten, beaten_again)] == ["measured", "measured", "beaten", "beaten"]
    assert again.measured == first.measured
    assert again.proof_chance == first.proof_chance
    assert (again.evaluated, again.in_full) == (128, first.in_full), "the module, and the file not at all"
    assert again.artefact is not None
    assert again.artefact.notes == ("byte for byte the file of large, channel_pruning(rate=0.5), whose figures are told here",)
    assert (folder / again.id / "scores.npy").read_bytes() == (folder / first.id / "scores.npy").read_bytes()
    assert beaten_again.partly == beaten.partly is not None
    assert beaten_again.reason == f"byte for byte the file of large, channel_pruning(rate=0.1): {beaten.reason}"
    assert (beaten_again.evaluated or 0) < (beaten.evaluated or 0)


def test_where_the_first_look_proves_nothing_a_safer_file_is_looked_at(tmp_path: Path) -> None:
    """Validation holds the pruned file good, the test split does not."""
    found, test = run(tmp_path / "out", Budget(max_drop="5 %"), (WHOLE, PRUNED), harder=True)
    pruned, whole = (found.candidate(Store.identifier(plan)) for plan in (PRUNED, WHOLE))
    assert pruned.proof_chance is not None
    assert pruned.proof_chance > 0.9
    assert found.chosen == whole.id
    assert (found.verdict.judgement, found.verdict.look, found.feasible) == ("proved", 2, True)
    assert found.verdict.level == pytest.approx(0.008)
    (other,) = found.unproved
    assert (other.candidate, other.verdict.judgement, other.verdict.look) == (pruned.id, "refused", 1)
    assert test.readings == 1 + 3, "to know its content, then by the reference and both files, each once"
    assert found.speedup.value == pytest.approx(found.reference_torch_latency.value / found.winner.measured.latency.value, rel=0.5)  # type: ignore[union-attr]
    for said in (summary(found), render_html(found)):
        assert "channel_pruning(rate=0.5) was looked at on the test split, too (look 1)" in " ".join(said.split())
        assert "refused" in said
    again, test = run(tmp_path / "out", Budget(max_drop="5 %"), (WHOLE, PRUNED), harder=True)
    assert (again.chosen, again.verdict.look, again.unproved) == (found.chosen, 2, found.unproved), "what was looked at is known"
    assert test.readings == 1


def test_no_further_look_is_spent_on_what_will_hardly_be_proved(tmp_path: Path) -> None:
    """Nothing but the pruned file fits, and none is left that the test split might prove."""
    found, _ = run(tmp_path / "out", FITS_PRUNED, (WHOLE, PRUNED), harder=True)
    assert found.chosen == Store.identifier(PRUNED)
    assert (found.verdict.judgement, found.verdict.look, found.unproved, found.feasible) == ("refused", 1, (), False)
