"""Shipped device files and files of one's own."""

import dataclasses
import tomllib
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from sizewise import registry
from sizewise.devices import loader
from sizewise.devices.loader import load_device
from sizewise.errors import UnknownName, UsageError
from sizewise.types import Device, Rates, from_json, to_json

DECLARED = tuple(name for name in registry.device_names() if name != "local")
FAMILIES = {"conv", "conv1d", "pointwise", "depthwise", "matmul", "recurrent"}


def _rates(name: str) -> Rates:
    rates = load_device(name).rates
    assert rates is not None
    return rates


def test_the_devices_that_are_promised_are_there() -> None:
    assert set(DECLARED) == {
        "android_phone",
        "cloud_cpu_2vcpu",
        "cortex_m7",
        "jetson_orin_nano",
        "laptop_cpu",
        "nvidia_h100",
        "nvidia_t4",
        "raspberry_pi_4",
        "raspberry_pi_5",
    }


@pytest.mark.parametrize("name", DECLARED)
def test_every_declared_device_loads_with_numbers_and_sources(name: str) -> None:
    device = load_device(name)
    assert (device.name, device.how, device.machine) == (name, "predicted", {})
    assert device.threads >= 1
    assert device.ram_bytes is not None
    assert device.sources
    rates = _rates(name)
    assert set(rates.efficiency) == FAMILIES
    assert {"float32", "int8"} <= set(rates.peak_macs_per_s)


@pytest.mark.parametrize("name", DECLARED)
def test_every_citation_is_used_and_says_something(name: str) -> None:
    table = tomllib.loads(registry.device_file(name))
    sources = load_device(name).sources
    assert sorted(sources) == sorted(f"{key}: {citation}" for key, citation in table["sources"].items())
    assert all(len(source) > 30 and "://" not in source for source in sources)


@pytest.mark.parametrize("name", DECLARED)
def test_every_file_says_what_it_was_checked_against(name: str) -> None:
    assert "# Checked " in registry.device_file(name)


@pytest.mark.parametrize("name", DECLARED)
def test_numbers_of_one_device_are_plausible_together(name: str) -> None:
    rates = _rates(name)
    peak = rates.peak_macs_per_s
    assert peak["float32"] <= peak.get("float16", peak["int8"]) <= peak["int8"]
    assert rates.bandwidth_bytes_per_s < rates.cache_bandwidth_bytes_per_s
    assert rates.cache_bytes < (load_device(name).ram_bytes or 0)
    assert rates.efficiency["depthwise"] <= rates.efficiency["conv"]
    assert 1.5 <= rates.error_factor <= 4, "honest about what a data sheet can tell"
    assert 1e-7 < rates.operator_overhead_s < 1e-3
    assert 1e-7 < rates.step_overhead_s < 1e-3


def test_faster_devices_have_the_larger_numbers() -> None:
    order = [_rates(name) for name in ("cortex_m7", "raspberry_pi_4", "raspberry_pi_5", "nvidia_t4", "nvidia_h100")]
    for slower, faster in pairwise(order):
        assert slower.bandwidth_bytes_per_s < faster.bandwidth_bytes_per_s
        for dtype in ("float32", "int8"):
            for family in FAMILIES:
                reached = [r.peak_macs_per_s[dtype] * r.efficiency[family] for r in (slower, faster)]
                assert reached[0] < reached[1], (dtype, family)


def test_estimates_claim_less_than_checked_numbers() -> None:
    # the phone and the H100 have no published figure that fixes them
    assert _rates("android_phone").error_factor > _rates("raspberry_pi_4").error_factor
    assert _rates("nvidia_h100").error_factor > _rates("nvidia_t4").error_factor


def test_kinds_and_memories() -> None:
    kinds = {name: load_device(name).kind for name in DECLARED}
    assert [n for n, kind in kinds.items() if kind == "microcontroller"] == ["cortex_m7"]
    assert {n for n, kind in kinds.items() if kind == "gpu"} == {"jetson_orin_nano", "nvidia_h100", "nvidia_t4"}
    with_flash = [name for name in DECLARED if load_device(name).flash_bytes is not None]
    assert with_flash == ["cortex_m7"], "elsewhere weights are loaded into RAM"


def test_the_microcontroller_says_what_its_runtime_lacks() -> None:
    lacks = load_device("cortex_m7").unsupported
    assert {"gru", "rnn_tanh", "rnn_relu", "conv3d", "gelu"} <= set(lacks)
    assert not {"lstm", "embedding", "conv2d", "linear"} & set(lacks), "TensorFlow Lite Micro has these"
    assert all("TensorFlow Lite Micro" in reason for reason in lacks.values())


def test_local_is_this_machine_and_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "usable_threads", lambda: 3)
    device = load_device("local")
    assert (device.how, device.kind, device.rates, device.threads) == ("measured", "cpu", None, 3)
    assert device.ram_bytes == psutil.virtual_memory().total
    assert {"processor", "cores", "memory"} <= set(device.machine)
    assert device.sources == ("machine: measured on the machine itself at the time of the run",)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "my board.toml"
    path.write_text(registry.device_file("raspberry_pi_5"), encoding="utf-8")
    assert load_device(str(path)) == dataclasses.replace(load_device("raspberry_pi_5"), name="my board")


@pytest.mark.parametrize("name", registry.device_names())
def test_a_device_survives_json(name: str) -> None:
    device = load_device(name)
    assert from_json(Device, to_json(device)) == device


def test_a_mistake_in_ones_own_file_names_the_path_and_the_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(registry.device_file("raspberry_pi_5").replace("value = 8_000_000_000", "value = 0"), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_device(str(path))
    assert caught.value.where == f"{path}, numbers.ram_bytes"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read") as caught:
        load_device(str(tmp_path / "gone.toml"))
    assert "raspberry_pi_4" in str(caught.value.wanted)
    (tmp_path / "bytes.toml").write_bytes(b"title = '\xff'")
    with pytest.raises(UsageError, match="cannot be read"):
        load_device(str(tmp_path / "bytes.toml"))


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        load_device("raspberry_pi_6")
    assert caught.value.hint is not None
    assert "raspberry_pi" in caught.value.hint
