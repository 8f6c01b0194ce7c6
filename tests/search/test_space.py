"""Every plan once, in the order that traits give; what only can be worse."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise import registry
from sizewise.search.levers import low_rank_lever, precision_lever, pruning_lever, recovery_lever
from sizewise.search.space import OFF, Lever, Point, Space, harsher, ordered_steps
from sizewise.types import Plan, Step, Trait

INT8 = Step(technique="int8_static")
RECOVERY = Step(technique="recovery", settings={"epochs": 1})
TAUGHT = Step(technique="recovery", settings={"epochs": 1, "teacher": "reference"})
WHOLE = Trait.FLOAT | Trait.MODULE
TRAITS = {name: registry.get("techniques", name) for name in ("channel_pruning", "low_rank", "recovery", "int8_static")}


def levers(*, taught: bool = False, recovery: Step | None = None, quantized: bool = True) -> tuple[Lever, ...]:
    return (
        pruning_lever("macs", recovers=recovery is not None),
        low_rank_lever("params", recovers=recovery is not None),
        recovery_lever(({"source": recovery} if recovery else {}) | ({"reference": TAUGHT} if taught else {})),
        precision_lever({"int8": (INT8, "static8")} if quantized else {}),
    )


SPACE = Space({"large": levers(recovery=RECOVERY), "small": levers(recovery=RECOVERY, taught=True)}, TRAITS, seed=3)


def test_no_two_points_mean_the_same_plan_and_every_plan_finds_its_point() -> None:
    plans = [SPACE.plan(point) for point in SPACE.points]
    assert len({plan.id for plan in plans}) == len(plans)
    assert all(SPACE.find(SPACE.plan(point)) == point for point in SPACE.points)
    assert all(plan.seed == 3 for plan in plans)
    assert SPACE.find(Plan(scale="large", steps=(INT8, INT8), seed=3)) is None
    assert SPACE.find(Plan(scale="large", steps=(INT8,), seed=4)) is None, "another seed is another plan"


def test_every_short_training_has_its_whole_one() -> None:
    own = (pruning_lever("macs", recovers=True), recovery_lever({"source": TAUGHT}, {"source": RECOVERY}), precision_lever({}))
    space = Space({"large": own}, TRAITS, seed=0)
    for point in space.points:
        whole = space.longer(point)
        assert (whole is not None) == (RECOVERY in space.plan(point).steps)
        assert (space.shorter(point) is not None) == (TAUGHT in space.plan(point).steps)
        if whole is not None:
            assert space.plan(whole).steps == (space.plan(point).steps[0], TAUGHT)
            assert space.shorter(whole) == point


def test_what_takes_more_away_and_is_the_same_otherwise_is_as_strong() -> None:
    mild, harsh = (SPACE.canonical("large", (rate, OFF, "source", "int8")) for rate in ("0.3", "0.5"))
    assert mild is not None
    assert harsh is not None
    assert [SPACE.as_strong(harsh, mild), SPACE.as_strong(mild, mild), SPACE.as_strong(mild, harsh)] == [True, True, False]
    others = [("large", ("0.5", OFF, "source", OFF)), ("small", harsh.levels), ("large", ("0.1", "0.4", "source", "int8"))]
    assert not any(SPACE.as_strong(other, mild) for scale, levels in others if (other := SPACE.canonical(scale, levels)) is not None)


rates = st.sampled_from([OFF, *(f"{0.05 * n:g}" for n in range(1, 20))])


@given(
    st.sampled_from(["large", "small"]), rates, rates, st.sampled_from([OFF, "source", "reference"]), st.sampled_from([OFF, "int8", "int2"])
)
@settings(max_examples=200, deadline=None)
def test_any_parameters_have_one_canonical_point(scale: str, pruning: str, low_rank: str, recovery: str, precision: str) -> None:
    point = SPACE.canonical(scale, (pruning, low_rank, recovery, precision))
    assert point is not None
    assert point in SPACE.points
    assert SPACE.canonical(point.scale, point.levels) == point, "canonical points stay"


def test_recovery_follows_whatever_shrinks_and_nothing_else_but_where_the_reference_teaches() -> None:
    for point in SPACE.points:
        names = [step.technique for step in SPACE.plan(point).steps]
        shrunk = {"channel_pruning", "low_rank"} & set(names)
        assert ("recovery" in names) == bool(shrunk or "reference" in point.levels)
        assert names == sorted(names, key=["channel_pruning", "low_rank", "recovery", "int8_static"].index)
    assert SPACE.canonical("large", ("0.4", OFF, OFF, OFF)) == SPACE.canonical("large", ("0.4", OFF, "source", OFF))
    assert SPACE.canonical("large", (OFF, OFF, "source", OFF)) == SPACE.canonical("large", (OFF, OFF, OFF, OFF))
    assert SPACE.canonical("small", (OFF, OFF, "reference", OFF)) != SPACE.canonical("small", (OFF, OFF, OFF, OFF))
    assert SPACE.canonical("large", (OFF, OFF, "reference", OFF)) == SPACE.canonical("large", (OFF, OFF, OFF, OFF)), "it is the reference"


def test_a_rate_that_is_not_on_the_grid_is_the_nearest_of_two_the_milder() -> None:
    assert SPACE.canonical("large", ("0.05", OFF, OFF, OFF)) == SPACE.canonical("large", (OFF, OFF, OFF, OFF))
    assert SPACE.canonical("large", ("0.42", OFF, OFF, OFF)) == SPACE.canonical("large", ("0.4", OFF, OFF, OFF))
    assert SPACE.canonical("large", ("0.99", OFF, OFF, OFF)) == SPACE.canonical("large", ("0.8", OFF, OFF, OFF))


def test_without_recovery_or_integers_the_space_does_not_have_them() -> None:
    space = Space({"a": levers(quantized=False)}, TRAITS, seed=0)
    assert {step.technique for point in space.points for step in space.plan(point).steps} == {"channel_pruning", "low_rank"}


@dataclass(frozen=True)
class Fake:
    needs: Trait = Trait.FLOAT
    removes: Trait = Trait.NONE
    gives: Trait = Trait.NONE


def test_traits_alone_order_steps() -> None:
    fakes = {
        "cut": Fake(needs=WHOLE),
        "codes": Fake(removes=WHOLE, gives=Trait.QUANTIZED),
        "pack": Fake(needs=Trait.QUANTIZED),
        "other": Fake(needs=WHOLE),
    }

    def order(*names: str) -> list[str] | None:
        found = ordered_steps([Step(technique=name) for name in names], fakes)
        return None if found is None else [step.technique for step in found]

    assert order("pack", "codes", "cut") == ["cut", "codes", "pack"]
    assert order("other", "cut") == ["other", "cut"], "steps that do not care keep their order"
    assert order("codes", "codes") is None, "the first takes what the second needs"
    assert order("pack") is None, "nothing gives it what it needs"
    assert order() == []


def test_steps_that_do_not_go_together_are_not_in_the_space() -> None:
    twice = precision_lever({"int8": (INT8, "static8")})
    space = Space({"a": (precision_lever({"int8": (INT8, "static8")}), Lever(name="again", levels=twice.levels))}, TRAITS, seed=0)
    assert {space.plan(point).label for point in space.points} == {"float", "int8_static"}
    assert space.canonical("a", ("int8", "int8")) is None


def plan(*steps: Step, scale: str = "a") -> Plan:
    return Plan(scale=scale, steps=steps)


def pruned(rate: float, **others: object) -> Step:
    return Step(technique="channel_pruning", settings={"rate": rate, **others})


def test_harsher_plans_do_all_the_milder_does_and_more() -> None:
    assert harsher(plan(pruned(0.25), INT8), plan(pruned(0.25)))
    assert harsher(plan(pruned(0.5)), plan(pruned(0.25)))
    assert harsher(plan(pruned(0.5), INT8), plan(INT8))
    assert not harsher(plan(pruned(0.25)), plan(pruned(0.5)))
    assert not harsher(plan(INT8), plan(pruned(0.25)))
    assert not harsher(plan(pruned(0.5), scale="b"), plan(pruned(0.25)))


def test_settings_besides_the_rate_must_be_the_same_to_compare() -> None:
    mixed = Step(technique="int8_static", settings={"max_drop": 0.01})
    assert not harsher(plan(mixed), plan(INT8)), "layers that stay float make it milder"
    assert not harsher(plan(pruned(0.5, target="latency")), plan(pruned(0.25)))
    assert harsher(plan(pruned(0.5, target="latency")), plan(pruned(0.25, target="latency")))


def test_a_recovery_makes_a_pruned_plan_no_harsher_than_one_without() -> None:
    longer = Step(technique="recovery", settings={"epochs": 9})
    quarter, half = pruned(0.25), pruned(0.5)
    assert not harsher(plan(half, RECOVERY), plan(quarter))
    assert not harsher(plan(half, longer), plan(quarter, RECOVERY))
    assert harsher(plan(half, RECOVERY), plan(quarter, RECOVERY))
    assert harsher(plan(half, RECOVERY, INT8), plan(INT8)), "nothing was pruned there that it could heal"
    assert harsher(plan(half, RECOVERY, INT8), plan(half, RECOVERY))
    assert not harsher(plan(TAUGHT, INT8), plan(INT8)), "the reference may teach it what it never knew"
    assert harsher(plan(half, TAUGHT, INT8), plan(TAUGHT, INT8))
    told = Step(technique="recovery", settings={"epochs": 1, "labels": 10.0})
    assert not harsher(plan(half, told, INT8), plan(INT8)), "targets may teach it what no model of the task knows"


@pytest.mark.parametrize("point", SPACE.points[:4])
def test_points_have_a_level_per_lever(point: Point) -> None:
    assert len(SPACE.levels(point)) == len(SPACE.names) == 4
