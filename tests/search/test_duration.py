"""How long trials take."""

from sizewise.search.duration import expected_seconds
from sizewise.types import Candidate, Change, Plan, Step


def test_how_long_a_trial_takes_is_told_by_its_like_and_by_the_length_of_its_training() -> None:
    pruned, int8 = Step(technique="channel_pruning", settings={"rate": 0.5}), Step(technique="int8_static")
    brief, whole = (Step(technique="recovery", settings={"epochs": epochs}) for epochs in (0.5, 2))

    def tried(scale: str, **seconds: float) -> Candidate:
        """Of which the second step took so many."""
        steps = (pruned, brief, int8) if seconds["trained"] else (int8,)
        changes = tuple(Change(seconds=seconds["trained"] if step is brief else 1.0) for step in steps)
        plan = Plan(scale=scale, steps=steps)
        return Candidate(id=plan.id, plan=plan, status="measured", seconds=seconds["whole"], changes=changes)

    done = [tried("a", whole=10, trained=0), tried("a", whole=100, trained=60), tried("b", whole=30, trained=10)]
    harder = Step(technique="channel_pruning", settings={"rate": 0.6})
    assert expected_seconds(done, Plan(scale="a", steps=(harder, brief, int8))) == 100
    assert expected_seconds(done, Plan(scale="a", steps=(harder, whole, int8))) == 40 + 4 * 60
    assert expected_seconds(done, Plan(scale="c", steps=(harder, brief, int8))) == 65, "another scale's, where its own are unknown"
    assert expected_seconds(done, Plan(scale="a", steps=(harder, int8))) == 40, "what does more tells it, too, less its training"
    assert expected_seconds(done, Plan(scale="a", steps=(whole,))) == 40 + 4 * 60
    assert expected_seconds(done, Plan(scale="a", steps=(Step(technique="low_rank"), int8))) == 0, "nothing like it was tried"
    assert expected_seconds(done, Plan(scale="a")) == 0
