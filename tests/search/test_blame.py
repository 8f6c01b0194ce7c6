"""Plans that failed say what cannot be done, and no more than that."""

from collections.abc import Mapping
from dataclasses import replace

from tests.search.spaces import measured, small_space

from sizewise.search.blame import impossible, uses
from sizewise.search.space import Point
from sizewise.types import Candidate

SPACE = small_space()


def point(scale: str, pruned: str = "off", low_rank: str = "off", precision: str = "off") -> Point:
    found = SPACE.canonical(scale, (pruned, low_rank, "off", precision))
    assert found is not None
    return found


def failed(at: Point, technique: str | None = None) -> Candidate:
    plan = SPACE.plan(at)
    steps = [step.technique for step in plan.steps]
    return Candidate(id=plan.id, plan=plan, status="failed", reason="no", failed_step=steps.index(technique) if technique else None)


def excluded(done: Mapping[Point, Candidate], of: Point) -> bool:
    return any(uses(SPACE, of, parts) for parts in impossible(SPACE, done))


def failing(*points: Point, technique: str | None = None) -> dict[Point, Candidate]:
    return {at: failed(at, technique) for at in points}


def test_a_step_that_fails_on_the_whole_model_is_out_at_once_and_what_is_harsher_too() -> None:
    done = failing(point("large", low_rank="0.2", precision="int8"), technique="low_rank")
    assert excluded(done, point("large", low_rank="0.2"))
    assert excluded(done, point("large", low_rank="0.4"))
    assert excluded(done, point("large", pruned="0.3", low_rank="0.4"))
    assert not excluded(done, point("large", pruned="0.5", precision="int8"))
    assert not excluded(done, point("small", low_rank="0.2"))


def test_a_step_that_fails_after_pruning_is_out_there_first_and_everywhere_after_a_second_time() -> None:
    done = failing(point("large", pruned="0.5", low_rank="0.4"), technique="low_rank")
    assert excluded(done, point("large", pruned="0.6", low_rank="0.4"))
    assert not excluded(done, point("large", pruned="0.4", low_rank="0.4"))
    assert not excluded(done, point("large", low_rank="0.4"))
    done |= failing(point("large", pruned="0.4", low_rank="0.2"), technique="low_rank")
    assert excluded(done, point("large", low_rank="0.4"))
    assert not excluded(done, point("large", low_rank="0.2"))
    assert not excluded(done, point("large", pruned="0.5", precision="int8"))


def test_a_step_that_says_how_far_it_could_have_gone_rules_out_what_is_beyond_that() -> None:
    at = point("large", pruned="0.5", low_rank="0.4")
    told = {at: replace(failed(at, "low_rank"), failed_reach=0.15)}
    assert excluded(told, point("large", pruned="0.5", low_rank="0.2")), "more than it could have had"
    assert not excluded(told, point("large", pruned="0.4", low_rank="0.2"))
    assert excluded(told, point("large", low_rank="0.4")), "far more, which pruning before it hardly explains"
    assert not excluded(told, point("large", low_rank="0.2"))
    less = {at: replace(failed(at, "low_rank"), failed_reach=0.02)}
    assert excluded(less, point("large", low_rank="0.2"))
    assert not excluded(less, point("large", pruned="0.5"))
    assert not excluded(less, point("small", pruned="0.5", low_rank="0.4"))


def test_pruning_is_not_blamed_for_what_fails_after_it() -> None:
    plans = [point("large", rate, "0.4", "int8") for rate in ("0.5", "0.4", "0.3")]
    done = failing(*plans, technique="low_rank")
    assert not any(excluded(done, point("large", rate, precision="int8")) for rate in ("0.3", "0.5", "0.8"))


def test_where_no_step_is_known_only_plans_with_all_its_parts_are_out() -> None:
    done = failing(point("large", "0.5", "0.4", "int8"), point("large", "0.6", "0.4", "int8"))
    assert excluded(done, point("large", "0.5", "0.4", "int8"))
    assert not excluded(done, point("large", "0.5", "0.4"))
    assert not excluded(done, point("large", "0.5", precision="int8"))


def test_where_all_other_parts_are_known_to_work_the_last_one_is_out() -> None:
    done = failing(point("large", "0.5", precision="int8"))
    works = point("large", precision="int8")
    done[works] = measured(SPACE, works)
    assert excluded(done, point("large", "0.5"))
    assert excluded(done, point("large", "0.7", "0.2"))
    assert not excluded(done, point("large", "0.4"))


def test_where_every_part_works_elsewhere_they_do_not_work_together() -> None:
    done = failing(point("large", "0.5", precision="int8"))
    for other in (point("large", "0.5"), point("large", precision="int8")):
        done[other] = measured(SPACE, other)
    assert excluded(done, point("large", "0.5", precision="int8"))
    assert not excluded(done, point("large", "0.4", precision="int8"))
    assert not excluded(done, point("large", "0.5", precision="mixed"))


def test_a_scale_that_fails_as_it_is_says_nothing_of_others() -> None:
    done = failing(point("large"))
    assert not excluded(done, point("small", "0.5"))
