"""Scenarios: the situation that a model is chosen for, read from a TOML file; the ready ones come with the package."""

import tomllib
from dataclasses import fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from sizewise import registry
from sizewise.advice import Scenario
from sizewise.errors import UnknownName, UsageError
from sizewise.types import Budget

__all__ = ["budget_of", "load_scenario", "scenario_names"]


@cache
def scenario_names() -> tuple[str, ...]:
    """Names of the ready scenarios, sorted."""
    files = (entry.name for entry in resources.files("sizewise").joinpath("scenarios").iterdir())
    return tuple(sorted(name[:-5] for name in files if name.endswith(".toml")))


def load_scenario(name: str) -> Scenario:
    """A ready scenario by its name ("mobile-vision"), or one of your own by its path ("mine.toml").

    Raises:
        UnknownName: neither; says the nearest.
        UsageError: the file cannot be read, or a field is missing, unknown or of the wrong kind.
    """
    path = Path(name)
    if name.endswith(".toml"):
        try:
            return _read(path.read_text(encoding="utf-8"), path.stem, name)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError("the scenario file cannot be read", where=name, got=str(error)) from error
    if name not in scenario_names():
        raise UnknownName("scenario", name, scenario_names())
    text = resources.files("sizewise").joinpath("scenarios", f"{name}.toml").read_text(encoding="utf-8")
    return _read(text, name, f"scenarios/{name}.toml")


def _read(text: str, name: str, where: str) -> Scenario:
    try:
        raw: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError("the scenario file is not TOML", where=where, got=str(error)) from error
    known = [field.name for field in fields(Scenario) if field.name != "name"]
    for key in raw:
        if key not in known:
            raise UnknownName("field of a scenario", key, known, where=where)
    try:
        scenario = msgspec.convert({**raw, "name": name}, Scenario)
    except msgspec.ValidationError as error:
        raise UsageError("the scenario file has a field missing or of the wrong kind", where=where, got=str(error)) from error
    try:
        budget_of(scenario, Budget())  # limits that cannot be read are the file's mistake, so they are found here
    except UsageError as error:
        error.where = where
        raise
    if not scenario.device.endswith(".toml") and scenario.device not in registry.device_names():
        raise UnknownName("device", scenario.device, registry.device_names(), where=f"{where}, device")
    if scenario.batch < 1:
        raise UsageError("batch must be at least 1", where=where, got=str(scenario.batch))
    return scenario


def budget_of(scenario: Scenario | None, budget: Budget) -> Budget:
    """The budget, with the scenario's limits where it has none.

    Raises:
        UsageError: a limit of the scenario that cannot be read.
    """
    if scenario is None:
        return budget
    theirs = Budget(scenario.latency, scenario.size, scenario.memory, scenario.max_drop)
    return Budget(
        latency=theirs.latency_s if budget.latency_s is None else budget.latency_s,
        size=theirs.size_bytes if budget.size_bytes is None else budget.size_bytes,
        memory=theirs.memory_bytes if budget.memory_bytes is None else budget.memory_bytes,
        max_drop=theirs.max_drop if budget.max_drop is None else budget.max_drop,
        min_quality=budget.min_quality,
    )
