"""In which levers two plans differ."""

import pytest

from sizewise.search.contrast import Levers, change, difference, levers_of, milder
from sizewise.types import Plan, Step

SCALES = ("large", "small", "large@24", "small@24", "v2@home")
INT8, INT4, DYNAMIC = (
    Step(technique="int8_static"),
    Step(technique="int8_static", settings={"weight_bits": 4}),
    Step(technique="int8_dynamic"),
)
BLOCKS = Step(technique="channel_pruning", settings={"rate": 0.3, "parts": "blocks"})
RECOVERY = Step(technique="recovery", settings={"epochs": 1})


def prune(rate: float) -> Step:
    return Step(technique="channel_pruning", settings={"rate": rate})


def levers(scale: str, *steps: Step) -> Levers:
    return levers_of(Plan(scale=scale, steps=steps), SCALES)


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        (levers("large"), levers("large"), ()),
        (levers("large"), levers("small"), ("scale",)),
        (levers("large"), levers("small@24"), ("scale", "resolution")),
        (levers("large@24"), levers("large"), ("resolution",)),
        (levers("large"), levers("v2@home"), ("scale",)),
        (levers("large", INT8), levers("large", DYNAMIC), ("precision",)),
        (levers("large", prune(0.2), INT8), levers("large", prune(0.5), INT4), ("channel_pruning", "precision")),
        (levers("large", prune(0.2)), levers("large", INT8), ("precision", "channel_pruning")),
        (levers("large", prune(0.2)), levers("large", BLOCKS, prune(0.2)), ("depth",)),
        (levers("large"), levers("large", BLOCKS, RECOVERY), ("depth",)),
    ],
)
def test_levers_that_differ_are_named(one: Levers, other: Levers, names: tuple[str, ...]) -> None:
    assert difference(one, other) == names


def test_what_rebuilds_a_step_is_no_difference() -> None:
    applied = Step(technique="int8_static", record={"ranges": [1, 2]})
    assert not difference(levers("large", INT8), levers("large", applied))


def test_healing_goes_with_what_was_shrunk() -> None:
    bare, pruned, healed = levers("large", INT8), levers("large", prune(0.5), INT8), levers("large", prune(0.5), RECOVERY, INT8)
    assert difference(bare, healed) == difference(healed, bare) == ("channel_pruning",)
    assert difference(pruned, healed) == ("recovery",)
    assert difference(bare, levers("large", RECOVERY, INT8)) == ("recovery",), "by itself it is a lever"


def test_a_technique_named_twice_is_two_levers() -> None:
    assert difference(levers("large", RECOVERY), levers("large", RECOVERY, RECOVERY)) == ("recovery again",)


def test_changes_read_as_seen_from_the_first() -> None:
    one, other = levers("large", prune(0.2), INT8), levers("small@24", prune(0.5), INT4)
    assert change(one, other, "scale") == "scale small instead of large"
    assert change(one, other, "resolution") == "with resolution 24"
    assert change(other, one, "resolution") == "without resolution 24"
    assert change(one, other, "channel_pruning") == "channel_pruning(rate=0.5) instead of (rate=0.2)"
    assert change(one, other, "precision") == "int8_static(weight_bits=4) instead of int8_static"
    assert change(levers("large", DYNAMIC), one, "precision") == "int8_static instead of int8_dynamic"


def test_a_lower_rate_of_the_same_technique_is_on_the_way() -> None:
    a, b = (levers("large", prune(rate), INT8) for rate in (0.2, 0.5))
    assert milder(a["channel_pruning"], b["channel_pruning"])
    assert not milder(b["channel_pruning"], a["channel_pruning"])
    assert not milder(a["channel_pruning"], a["channel_pruning"])
    assert milder(a["precision"], levers("large", INT4)["precision"])
    assert not milder(a["precision"], levers("large", DYNAMIC)["precision"])
    assert not milder(a["scale"], levers("small")["scale"])
    assert not milder(None, a["scale"])
