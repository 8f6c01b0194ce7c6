"""Published sizes of the reference families."""

import pytest
import torch

from sizewise.profile.static import profile_model
from sizewise.protocols import Inputs
from sizewise.zoo.mobilenet import MobileNetV2, round_channels
from sizewise.zoo.resnet import ResNet, resnet_cifar


@pytest.mark.parametrize(("depth", "params", "macs"), [(20, 0.27e6, 40.8e6), (56, 0.85e6, 125.7e6)])
def test_cifar_resnets_have_the_published_size(depth: int, params: float, macs: float) -> None:
    cost = profile_model(resnet_cifar(depth), Inputs((torch.randn(1, 3, 32, 32),)))
    assert cost.params == pytest.approx(params, rel=0.01)
    assert cost.macs == pytest.approx(macs, rel=0.01)


def test_cifar_resnets_have_the_published_names() -> None:
    names = set(resnet_cifar(20).state_dict())
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"} <= names
    assert not any("shortcut" in name for name in names), "option A has no parameters"


def test_mobilenet_v2_is_the_published_one() -> None:
    cost = profile_model(MobileNetV2(), Inputs((torch.randn(1, 3, 224, 224),)))
    assert cost.params == 3_504_872
    assert cost.macs == pytest.approx(0.30e9, rel=0.01)


def test_width_scales_channels_in_steps() -> None:
    assert [round_channels(c) for c in (1, 8, 11, 12, 24 * 0.5, 96 * 1.4)] == [8, 8, 16, 16, 16, 136]
    small, large = (sum(p.numel() for p in MobileNetV2(w).parameters()) for w in (0.5, 1.0))
    assert small < 0.6 * large


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        resnet_cifar(21)
    with pytest.raises(ValueError, match="same stages"):
        ResNet((1, 1), (8,))
