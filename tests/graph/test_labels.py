"""Labels against a slow reference: sets of sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sizewise.graph.labels import Labels

COUNT = 12
pairs = st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1)), max_size=8)
steps = st.lists(st.one_of(pairs, st.integers(0, COUNT - 1)), max_size=8)


class Slow:
    """Every set written out, with the reason that froze it."""

    def __init__(self) -> None:
        self.sets: list[set[int]] = [{label} for label in range(COUNT)]
        self.reasons: dict[int, str] = {}

    def of(self, label: int) -> set[int]:
        return next(each for each in self.sets if label in each)

    def join(self, a: int, b: int) -> None:
        one, two = self.of(a), self.of(b)
        if one is not two:
            self.sets = [each for each in self.sets if each is not one and each is not two] + [one | two]

    def frozen(self, label: int) -> bool:
        return any(other in self.reasons for other in self.of(label))


@given(steps=steps)
def test_what_was_joined_has_one_root_and_freezes_together(steps: list[list[tuple[int, int]] | int]) -> None:
    labels, slow = Labels(), Slow()
    everything = labels.fresh(COUNT)
    for number, step in enumerate(steps):
        if isinstance(step, int):
            labels.freeze(everything[step : step + 1], f"reason {number}")
            slow.reasons.setdefault(step, f"reason {number}")
        elif step:
            a, b = (np.array(side, dtype=np.int64) for side in zip(*step, strict=True))
            labels.join(a, b)
            for one, two in step:
                slow.join(one, two)
    roots = labels.roots(everything).tolist()
    for label in range(COUNT):
        assert {other for other in range(COUNT) if roots[other] == roots[label]} == slow.of(label)
        why = labels.reason(roots[label])
        assert (why is not None) == slow.frozen(label)
        assert why is None or why in {slow.reasons[other] for other in slow.of(label) if other in slow.reasons}


def test_the_first_reason_counts() -> None:
    labels = Labels()
    both = labels.fresh(2)
    labels.freeze(both[:1], "first")
    labels.freeze(both, "second")
    assert [labels.reason(root) for root in labels.roots(both).tolist()] == ["first", "second"]


def test_new_labels_belong_to_nobody() -> None:
    labels = Labels()
    old = labels.fresh(3)
    labels.join(old, old[::-1].copy())
    labels.freeze(old, "stays")
    new = labels.fresh(3)
    assert not set(new.tolist()) & set(old.tolist())
    assert labels.roots(new).tolist() == new.tolist()
    assert all(labels.reason(root) is None for root in new.tolist())
