"""Scenarios: the ready ones hold together; mistakes in one's own are named with their place; whose limits count."""

from pathlib import Path

import pytest

from sizewise import registry
from sizewise.advice import Scenario
from sizewise.errors import SizewiseError, UnknownName, UsageError
from sizewise.select.scenario import budget_of, load_scenario, scenario_names
from sizewise.types import Budget, from_json, to_json

GOOD = """
title = "Mine"
domain = "vision"
device = "cortex_m7"
latency = "50 ms"
candidates = ["resnet20_cifar"]
"""


def own(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_there_are_five_ready_scenarios() -> None:
    assert scenario_names() == ("batch-scoring", "embedded-speech", "keyword-spotting", "mobile-vision", "text-classification")


@pytest.mark.parametrize("name", scenario_names())
def test_a_ready_scenario_names_devices_and_candidates_that_exist(name: str) -> None:
    from sizewise.zoo.catalog import CATALOG
    from sizewise.zoo.specs import check_settings, parse_spec, plain_defaults

    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.device in registry.device_names()
    assert len(set(scenario.candidates)) == len(scenario.candidates) >= 2
    for spec in scenario.candidates:
        model, chosen = parse_spec(spec)
        entry = CATALOG[model]
        assert entry.domain == scenario.domain
        check_settings(chosen, {**plain_defaults(entry.build), "size": entry.size}, where=spec)
    assert scenario.title
    assert scenario.notes
    limits = budget_of(scenario, Budget())
    assert limits.latency_s is not None
    assert limits.max_drop is not None
    assert from_json(Scenario, to_json(scenario)) == scenario


def test_the_modes_are_all_covered_by_the_ready_scenarios() -> None:
    assert {load_scenario(name).mode for name in scenario_names()} == {"single", "stream", "batch"}


def test_ones_own_file_is_read_and_named_by_its_stem(tmp_path: Path) -> None:
    scenario = load_scenario(own(tmp_path, GOOD))
    assert (scenario.name, scenario.title, scenario.device) == ("mine", "Mine", "cortex_m7")
    assert (scenario.mode, scenario.batch, scenario.private, scenario.examples) == ("single", 1, False, None)
    assert scenario.candidates == ("resnet20_cifar",)


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="mobile-vison") as caught:
        load_scenario("mobile-vison")
    assert caught.value.hint == "did you mean 'mobile-vision'?"


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (GOOD + 'latancy = "50 ms"\n', UnknownName, "did you mean 'latency'"),
        (GOOD + 'name = "other"\n', UnknownName, "name"),
        (GOOD + 'batch = "many"\n', UsageError, "$.batch"),
        (GOOD + "batch = 0\n", UsageError, "batch must be at least 1"),
        (GOOD + "examples = 1.5\n", UsageError, "$.examples"),
        (GOOD + 'mode = "sometimes"\n', UsageError, "sometimes"),
        (GOOD.replace('"vision"', '"smell"'), UsageError, "smell"),
        (GOOD.replace('title = "Mine"', ""), UsageError, "title"),
        (GOOD.replace('"50 ms"', '"50 mss"'), UsageError, "mss"),
        (GOOD.replace('"50 ms"', '"0 ms"'), UsageError, "more than zero"),
        (GOOD.replace('"50 ms"', "50"), UsageError, "$.latency"),
        (GOOD + 'max_drop = "much"\n', UsageError, "max_drop"),
        (GOOD.replace("cortex_m7", "cortex_m77"), UnknownName, "did you mean 'cortex_m7'"),
        ("title = ", UsageError, "not TOML"),
        (GOOD + "title = 'twice'\n", UsageError, "not TOML"),
        ("", UsageError, "missing"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(text: str, kind: type[SizewiseError], says: str, tmp_path: Path) -> None:
    path = own(tmp_path, text)
    with pytest.raises(kind) as caught:
        load_scenario(path)
    assert says in str(caught.value)
    assert caught.value.where is not None
    assert path in caught.value.where
    assert caught.value.exit_code == 2


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read") as caught:
        load_scenario(str(tmp_path / "missing.toml"))
    assert caught.value.where == str(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        load_scenario(str(tmp_path / "binary.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        load_scenario(str(tmp_path / "folder.toml"))


SITUATION = Scenario(name="s", title="S", domain="text", device="local", latency="50 ms", size="5 MB", memory="1 GB", max_drop="1 %")


def test_limits_of_the_budget_count_before_the_scenarios() -> None:
    given = Budget(latency="1 s", size="1 kB", memory="2 kB", max_drop="3 %", min_quality="90 %")
    assert budget_of(SITUATION, given) == given


def test_the_scenarios_limits_count_where_the_budget_has_none() -> None:
    assert budget_of(SITUATION, Budget()) == Budget("50 ms", "5 MB", "1 GB", "1 %")
    mixed = budget_of(SITUATION, Budget(size="1 kB", min_quality="90 %"))
    assert mixed == Budget("50 ms", "1 kB", "1 GB", "1 %", "90 %")


def test_a_drop_of_zero_in_the_budget_is_a_limit_of_its_own() -> None:
    assert budget_of(SITUATION, Budget(max_drop=0)).max_drop == 0.0


def test_without_a_scenario_the_budget_stays() -> None:
    assert budget_of(None, Budget(size="1 kB")) == Budget(size="1 kB")
