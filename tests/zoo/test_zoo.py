"""Published sizes of the reference families."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.errors import UnknownName
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs
from sizewise.zoo.mobilenet import InvertedResidual, MobileNetV2, round_channels
from sizewise.zoo.resnet import BasicBlock, ResNet, ZeroPadShortcut, resnet_cifar


@pytest.mark.parametrize(("depth", "params", "macs"), [(20, 0.27e6, 40.8e6), (56, 0.85e6, 125.7e6)])
def test_cifar_resnets_have_the_published_size(depth: int, params: float, macs: float) -> None:
    cost = static_cost(resnet_cifar(depth), Inputs((torch.randn(1, 3, 32, 32),)))
    assert cost.params == pytest.approx(params, rel=0.01)
    assert cost.macs == pytest.approx(macs, rel=0.01)


def test_cifar_resnets_have_the_published_names() -> None:
    names = set(resnet_cifar(20).state_dict())
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"} <= names
    assert not any("shortcut" in name for name in names), "option A has no parameters"


def test_mobilenet_v2_is_the_published_one() -> None:
    cost = static_cost(MobileNetV2(), Inputs((torch.randn(1, 3, 224, 224),)))
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


@pytest.mark.parametrize(("depth", "params"), [(20, 269_722), (56, 853_018)])
def test_cifar_resnets_have_the_exact_count_of_option_a(depth: int, params: int) -> None:
    # stem, 2n convolutions per stage with two-vector normalizations, linear; no parameter in a shortcut
    n = (depth - 2) // 6
    count = 3 * 16 * 9 + 2 * 16
    for before, width in ((16, 16), (16, 32), (32, 64)):
        count += (before + (2 * n - 1) * width) * width * 9 + 2 * n * 2 * width
    count += 64 * 10 + 10
    assert count == params
    assert sum(p.numel() for p in resnet_cifar(depth).parameters()) == params


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_stages_halve_the_picture_and_take_their_widths(shortcut: Literal["A", "B"]) -> None:
    model = ResNet((1, 2), (4, 6), classes=3, in_channels=2, shortcut=shortcut).eval()
    shapes: list[torch.Size] = []
    for index in (1, 2):
        model.get_submodule(f"layer{index}").register_forward_hook(lambda _m, _i, out: shapes.append(out.shape))
    assert model(torch.randn(2, 2, 9, 7)).shape == (2, 3)
    assert shapes == [(2, 4, 9, 7), (2, 6, 5, 4)]
    assert len(model.get_submodule("layer2")) == 2  # type: ignore[arg-type]


@given(st.integers(1, 4), st.integers(0, 5), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_option_a_subsamples_and_pads_with_zeros_on_both_sides(channels: int, extra: int, stride: int, height: int, width: int) -> None:
    x = torch.randn(2, channels, height, width)
    out = ZeroPadShortcut(channels, channels + extra, stride)(x)
    kept = x[:, :, ::stride, ::stride]
    assert out.shape == (2, channels + extra, *kept.shape[2:])
    before = extra // 2
    assert torch.equal(out[:, before : before + channels], kept)
    assert not out[:, :before].any()
    assert not out[:, before + channels :].any()


def test_a_basic_block_adds_its_input() -> None:
    block = BasicBlock(4, 4, 1, "A").eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize(("out", "stride", "residual"), [(8, 1, True), (8, 2, False), (12, 1, False)])
def test_an_inverted_residual_adds_its_input_only_where_the_shape_stays(out: int, stride: int, residual: bool) -> None:
    block = InvertedResidual(8, out, stride, expansion=3).eval()
    assert isinstance(block.conv[-1], torch.nn.BatchNorm2d)
    torch.nn.init.zeros_(block.conv[-1].weight)
    x = torch.randn(2, 8, 6, 6)
    got = block(x)
    assert got.shape == (2, out, 6 // stride, 6 // stride)
    assert torch.equal(got, x if residual else torch.zeros_like(got))


def test_mobilenet_v2_has_torchvisions_names() -> None:
    with torch.device("meta"):
        state = MobileNetV2().state_dict()
    shapes = {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.0.1.running_mean": (32,),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.2.conv.2.weight": (24, 96, 1, 1),
        "features.17.conv.3.weight": (320,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert len(state) == 52 * 6 + 2  # 52 convolutions, each with a normalization's five entries; one linear layer


def test_the_last_layer_grows_with_the_width_and_never_shrinks() -> None:
    with torch.device("meta"):
        small, large = (MobileNetV2(width).state_dict()["classifier.1.weight"].shape[1] for width in (0.35, 1.4))
    assert (small, large) == (1280, 1792)


@given(st.floats(1, 2000), st.sampled_from([1, 4, 8, 16]))
@settings(max_examples=50, deadline=None)
def test_rounded_channels_are_near_multiples_never_far_below(channels: float, divisor: int) -> None:
    rounded = round_channels(channels, divisor)
    assert rounded % divisor == 0
    assert rounded >= max(divisor, 0.9 * channels)
    assert rounded - channels <= divisor
    if channels >= divisor and round(channels / divisor) * divisor >= 0.9 * channels:
        assert abs(rounded - channels) <= divisor / 2


def test_every_parameter_of_the_families_is_used() -> None:
    for model, shape in ((ResNet((1, 1), (4, 6), 3, 2), (2, 2, 8, 8)), (MobileNetV2(0.25, classes=3), (2, 3, 32, 32))):
        model(torch.randn(shape)).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("depth", [2, 7, 21, -4])
def test_a_depth_that_cannot_be_is_shown(depth: int) -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        resnet_cifar(depth)


def test_width_multiplies_every_stage() -> None:
    weights = [resnet_cifar(8, width=w).state_dict()["layer3.0.conv2.weight"].shape[0] for w in (0.5, 1, 2)]
    assert weights == [32, 64, 128]


def test_an_unknown_shortcut_is_refused() -> None:
    with pytest.raises(UnknownName, match="'C'"):
        ResNet((1, 1), (4, 6), shortcut="C")  # type: ignore[arg-type]
