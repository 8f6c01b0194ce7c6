"""How many layers, and which."""

from hypothesis import given
from hypothesis import strategies as st

from sizewise.data.layer_choice import fewest, narrowest


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_fewest_is_found_with_few_questions(most: int, first: int) -> None:
    asked: list[int] = []

    def holds(count: int) -> bool:
        asked.append(count)
        return count >= first

    found = fewest(most, holds)
    assert found == (first if first <= most else None)
    assert len(asked) == len(set(asked)) <= 2 * max(1, most.bit_length()) + 1


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.tuples(st.floats(0, 1), st.integers(1, 100)), min_size=1),
    st.integers(0, 500),
)
def test_the_layers_chosen_save_enough_and_none_is_chosen_for_nothing(layers: dict[str, tuple[float, int]], wanted: int) -> None:
    errors = {name: error for name, (error, _) in layers.items()}
    saved = {name: size for name, (_, size) in layers.items()}
    chosen = narrowest(errors, saved, wanted)
    total = sum(saved[name] for name in chosen)
    if sum(saved.values()) <= wanted:
        assert chosen == frozenset(layers) or wanted == 0
    else:
        assert total >= wanted
    assert all(total - saved[name] < wanted for name in chosen)


def test_what_costs_little_error_per_byte_goes_first() -> None:
    assert narrowest({"a": 0.5, "b": 0.1, "c": 0.1}, {"a": 100, "b": 10, "c": 100}, 50) == {"c"}
