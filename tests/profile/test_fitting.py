"""What keeps a model from a device, in sentences."""

import pytest
import torch
from torch import nn

from sizewise.devices.loader import load_device
from sizewise.profile.fitting import memory_misfits, misfits
from sizewise.profile.static import analyse
from sizewise.protocols import Inputs
from sizewise.types import Device


def device(**facts: object) -> Device:
    return Device(name="d", title="A device", how="predicted", threads=1, **facts)  # type: ignore[arg-type]


def found(model: nn.Module, shape: tuple[int, ...], where: Device) -> tuple[str, ...]:
    analysis = analyse(model, Inputs((torch.zeros(shape),)))
    return misfits(analysis.cost, analysis.operators, where)


LINEAR = nn.Linear(1000, 100, bias=False)  # 400 kB of weights, 4.4 kB of activations


def test_a_model_that_fits_has_no_misfits() -> None:
    assert found(LINEAR, (1, 1000), device(ram_bytes=10**6)) == ()
    assert found(LINEAR, (1, 1000), device()) == ()


def test_weights_are_loaded_into_ram_where_there_is_no_flash() -> None:
    assert found(LINEAR, (1, 1000), device(ram_bytes=400_000)) == ("weights and activations of 404 kB do not fit 400 kB of RAM",)
    assert found(LINEAR, (1, 1000), device(ram_bytes=404_400)) == ()


def test_weights_stay_in_flash_where_there_is_some() -> None:
    assert found(LINEAR, (1, 1000), device(ram_bytes=4400, flash_bytes=400_000)) == ()
    assert found(LINEAR, (1, 1000), device(ram_bytes=4400, flash_bytes=399_999)) == ("weights of 400 kB do not fit 400 kB of flash",)
    assert found(LINEAR, (1, 1000), device(ram_bytes=4399, flash_bytes=400_000)) == ("activations of 4.40 kB do not fit 4.40 kB of RAM",)


def test_every_misfit_is_named() -> None:
    both = found(LINEAR, (8, 1000), device(ram_bytes=20_000, flash_bytes=100_000))
    assert both == ("weights of 400 kB do not fit 100 kB of flash", "activations of 35.2 kB do not fit 20.0 kB of RAM")


def test_unknown_memory_of_activations_is_not_held_against_the_model() -> None:
    assert memory_misfits(1000, None, device(ram_bytes=1000)) == ()
    assert memory_misfits(1001, None, device(ram_bytes=1000)) != ()
    assert memory_misfits(1000, None, device(ram_bytes=1, flash_bytes=1000)) == ()


@pytest.mark.parametrize("inplace", [True, False])
def test_operators_that_the_device_lacks_are_named_once_with_the_reason(inplace: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.SiLU(inplace), nn.Linear(4, 4), nn.SiLU(inplace), nn.Softmax(1))
    lacking = device(unsupported={"silu": "no exponential", "gelu": "not used"})
    assert found(model, (1, 4), lacking) == ("operator silu is not there: no exponential",)


def test_a_recurrent_layer_on_a_microcontroller() -> None:
    sentences = found(nn.GRU(8, 8), (5, 1, 8), load_device("cortex_m7"))
    assert len(sentences) == 1
    assert sentences[0].startswith("operator gru is not there: ")


def test_a_small_convolution_fits_a_microcontroller() -> None:
    assert found(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), (1, 1, 16, 16), load_device("cortex_m7")) == ()
