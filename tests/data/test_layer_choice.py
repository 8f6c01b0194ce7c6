"""How many layers, and which."""

from itertools import chain, combinations

from hypothesis import given
from hypothesis import strategies as st

from sizewise.data.layer_choice import affordable, fewest, narrowest


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


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.tuples(st.floats(0, 1), st.floats(-0.5, 1)), max_size=8),
    st.floats(-1, 3),
)
def test_what_is_afforded_is_paid_for_and_takes_half_of_what_any_choice_could(
    layers: dict[str, tuple[float, float]], allowance: float
) -> None:
    errors = {name: error for name, (error, _) in layers.items()}
    prices = {name: price for name, (_, price) in layers.items()}
    chosen = affordable(errors, prices, allowance)
    free = {name for name in layers if prices[name] <= 0}
    assert free <= chosen
    paid = sum(prices[name] for name in chosen)
    assert chosen == free or paid <= allowance + 1e-9
    choices = chain.from_iterable(combinations(sorted(layers.keys() - free), size) for size in range(len(layers) + 1))
    room = allowance - sum(prices[name] for name in free)
    best = max((sum(errors[n] for n in one) for one in choices if sum(prices[n] for n in one) <= room), default=0.0)
    assert sum(errors[name] for name in chosen - free) >= 0.5 * best - 1e-9


def test_the_worst_layers_per_price_are_afforded_and_what_does_not_fit_is_passed_over() -> None:
    assert affordable({"a": 4.0, "b": 3.0, "c": 0.1}, {"a": 1.0, "b": 5.0, "c": 0.5}, 2.0) == {"a", "c"}
    assert affordable({"a": 1.0, "b": 9.0}, {"a": 0.1, "b": 2.0}, 2.0) == {"b"}, (
        "alone it is worth more than all that are worth more per price"
    )
    assert affordable({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": -0.1}, -5.0) == {"b"}
