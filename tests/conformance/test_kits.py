"""Every technique and every runtime keeps the promises of the shipped conformance kits."""

from pathlib import Path
from typing import Any

import pytest

from sizewise import registry
from sizewise.testing import NullRuntime, check_runtime, check_technique

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "int8_static": [{}, {"weight_bits": 4}, {"ranges": "mse", "rounding": "nearest", "equalize": False}, {"weight_bytes": 2500}],
    "int8_dynamic": [{}],
    "weight_only": [{}, {"dtype": "int4"}, {"dtype": "float16"}],
    "recovery": [{"epochs": 1}],
    "low_rank": [{"rate": 0.25}, {"rate": 0.4, "target": "macs"}],
    "weight_sharing": [{}, {"bits": 4}, {"bits": 3, "values": "codebook"}],
    "channel_pruning": [{"rate": 0.25}, {"rate": 0.5}],
    "weight_pruning": [{}, {"pattern": "2:4", "method": "wanda"}, {"pattern": "4x1"}, {"rate": 0.8, "method": "global"}],
}
CASES = [(name, settings) for name in registry.names("techniques") for settings in SETTINGS[name]]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_technique(name: str, settings: dict[str, Any]) -> None:
    check_technique(name, settings)


@pytest.mark.parametrize("name", registry.names("runtimes"))
def test_runtime(name: str, tmp_path: Path) -> None:
    check_runtime(registry.get("runtimes", name)(), tmp_path)


def test_null_runtime(tmp_path: Path) -> None:
    check_runtime(NullRuntime(), tmp_path)
