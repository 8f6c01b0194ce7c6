from collections.abc import Callable
from dataclasses import replace

import pytest

from sizewise.report.devices_terminal import devices_summary
from sizewise.types import Device, Rates


def test_a_declared_device_shows_memory_speed_and_how_far_off_it_may_be(make_device: Callable[..., Device]) -> None:
    board = make_device(flash_bytes=2_000_000, unsupported={"gru": "no kernel", "gelu": "no kernel"})
    text = " ".join(devices_summary([board]).split())
    assert "board 8.00 GB 2.00 MB 76.8 11 4 predicted within a factor of 2.2" in text
    assert "Example board, 8 GB; lacks gru, gelu" in text


def test_this_machine_is_calibrated_on_first_use_and_measured_after(this_machine: Device, make_device: Callable[..., Device]) -> None:
    assert "2        calibrated on first use" in devices_summary([this_machine])
    rates = make_device().rates
    assert isinstance(rates, Rates)
    assert "2        measured here" in devices_summary([replace(this_machine, rates=rates)])


def test_a_large_speed_keeps_its_digits(make_device: Callable[..., Device]) -> None:
    rates = make_device().rates
    assert isinstance(rates, Rates)
    fast = make_device(rates=replace(rates, peak_macs_per_s={"float32": 247e12}, bandwidth_bytes_per_s=3e12))
    assert "247,000  3,000" in devices_summary([fast])


def test_devices_keep_their_order_and_share_their_columns(this_machine: Device, make_device: Callable[..., Device]) -> None:
    lines = devices_summary([make_device(), this_machine]).splitlines()
    assert [line.split()[0] for line in lines[1:5:2]] == ["board", "local"]
    assert len({line.index(" GB") for line in lines[1:5:2]}) == 1


@pytest.mark.parametrize("length", [1, 90, 300])
def test_no_line_is_wider_than_a_terminal(make_device: Callable[..., Device], length: int) -> None:
    name = "d" * length
    lines = devices_summary([make_device(name=name, title=name, unsupported={name: "no"}), make_device()]).splitlines()
    assert max(map(len, lines)) <= 100
