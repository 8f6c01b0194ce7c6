"""Looks at the test split are counted before they are taken, once for the same bytes."""

from pathlib import Path

import numpy as np
import pytest

from sizewise.errors import UsageError
from sizewise.pipeline.looks import Looks
from sizewise.pipeline.store import Store


def test_every_new_file_is_a_look_and_the_same_bytes_are_none(tmp_path: Path) -> None:
    looks = Looks(Store(tmp_path / "run", resume=False), "split")
    assert looks.next_level == pytest.approx(0.04)
    first, second = looks.take("aa"), looks.take("bb")
    assert (first.number, second.number) == (1, 2)
    assert [first.level, second.level] == pytest.approx([0.04, 0.008])
    again = Looks(Store(tmp_path / "run", resume=True), "split")
    assert again.take("aa") == first
    assert again.next_level == pytest.approx(0.0016)
    assert Looks(Store(tmp_path / "run", resume=True), "other data").take("bb").number == 1


def test_a_look_counts_though_the_run_was_killed_while_looking(tmp_path: Path) -> None:
    def killed() -> np.ndarray:
        raise KeyboardInterrupt

    looks = Looks(Store(tmp_path / "run", resume=False), "split")
    looks.take("aa")
    with pytest.raises(KeyboardInterrupt):
        looks.scores("aa", killed)
    assert Looks(Store(tmp_path / "run", resume=True), "split").take("bb").number == 2


def test_scores_are_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.array([1.0, 0.0])

    for _ in range(2):
        looks = Looks(Store(tmp_path / "run", resume=True), "split")
        assert looks.scores("aa", compute).tolist() == [1.0, 0.0]
    assert len(calls) == 1
    looks.scores("bb", compute)
    Looks(Store(tmp_path / "run", resume=True), "other data").scores("aa", compute)
    assert len(calls) == 3


def test_a_damaged_count_is_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    looks = Looks(Store(tmp_path / "run", resume=False), "split")
    looks.take("aa")
    looks.path.write_text('{"splits": 3}')
    with pytest.raises(UsageError, match=r"looks\.json"):
        looks.take("bb")
