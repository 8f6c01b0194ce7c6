"""MobileNetV3: published sizes, torchvision's names, the rules of its last stage."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sizewise.zoo.mobilenet_v3 import LARGE, Block, GatedResidual, MobileNetV3, SqueezeExcite, mobilenet_v3_large, mobilenet_v3_small


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("build", "params"), [(mobilenet_v3_large, 5_483_032), (mobilenet_v3_small, 2_542_856)])
def test_published_sizes(build: Callable[[], MobileNetV3], params: int) -> None:
    with torch.device("meta"):
        assert _count(build()) == params


LARGE_SHAPES = {
    "features.0.0.weight": (16, 3, 3, 3),
    "features.0.1.running_mean": (16,),
    "features.1.block.0.0.weight": (16, 1, 3, 3),
    "features.1.block.1.0.weight": (16, 16, 1, 1),
    "features.4.block.0.0.weight": (72, 24, 1, 1),
    "features.4.block.1.0.weight": (72, 1, 5, 5),
    "features.4.block.2.fc1.weight": (24, 72, 1, 1),
    "features.4.block.2.fc2.bias": (72,),
    "features.4.block.3.0.weight": (40, 72, 1, 1),
    "features.4.block.3.1.num_batches_tracked": (),
    "features.13.block.2.fc1.weight": (168, 672, 1, 1),
    "features.15.block.3.1.weight": (160,),
    "features.16.0.weight": (960, 160, 1, 1),
    "classifier.0.weight": (1280, 960),
    "classifier.3.weight": (1000, 1280),
}
SMALL_SHAPES = {
    "features.1.block.0.0.weight": (16, 1, 3, 3),
    "features.1.block.1.fc1.weight": (8, 16, 1, 1),
    "features.1.block.2.0.weight": (16, 16, 1, 1),
    "features.9.block.1.0.weight": (288, 1, 5, 5),
    "features.12.0.weight": (576, 96, 1, 1),
    "classifier.0.weight": (1024, 576),
    "classifier.3.bias": (1000,),
}


@pytest.mark.parametrize(
    ("build", "shapes", "convs", "gates"),
    [(mobilenet_v3_large, LARGE_SHAPES, 46, 8), (mobilenet_v3_small, SMALL_SHAPES, 34, 9)],
)
def test_names_are_torchvisions(build: Callable[[], MobileNetV3], shapes: dict[str, tuple[int, ...]], convs: int, gates: int) -> None:
    with torch.device("meta"):
        state = build().state_dict()
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    # a normalized convolution has six entries, a gate two layers with bias, the classifier as well
    assert len(state) == 6 * convs + 4 * gates + 4


def test_normalizations_and_activations_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = mobilenet_v3_large()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(n.eps, n.momentum) for n in norms} == {(1e-3, 0.01)}
    assert sum(isinstance(m, nn.Hardswish) for m in model.modules()) == 1 + 2 * 9 + 1 + 1
    assert sum(isinstance(m, nn.Hardsigmoid) for m in model.modules()) == 8


@pytest.mark.parametrize(("width", "stem", "widest", "last"), [(0.5, 8, 480, 640), (0.75, 16, 720, 960), (1.4, 24, 1344, 1792)])
def test_the_last_stage_follows_the_width(width: float, stem: int, widest: int, last: int) -> None:
    with torch.device("meta"):
        state = mobilenet_v3_large(width).state_dict()
    assert state["features.0.0.weight"].shape[0] == stem
    assert tuple(state["classifier.0.weight"].shape) == (last, widest)


def test_a_gate_scales_every_channel() -> None:
    gate = SqueezeExcite(6, 2)
    x = torch.randn(3, 6, 4, 5)
    mean = x.mean((2, 3))
    hidden = (mean @ gate.fc1.weight[:, :, 0, 0].T + gate.fc1.bias).relu()  # type: ignore[operator]
    scale = F.hardsigmoid(hidden @ gate.fc2.weight[:, :, 0, 0].T + gate.fc2.bias)  # type: ignore[operator]
    torch.testing.assert_close(gate(x), x * scale[:, :, None, None])


@pytest.mark.parametrize(("out", "stride", "residual"), [(8, 1, True), (8, 2, False), (16, 1, False)])
def test_a_block_adds_its_input_only_where_the_shape_stays(out: int, stride: int, residual: bool) -> None:
    block = GatedResidual(8, 24, out, Block(5, 24, out, True, True, stride)).eval()
    projection = block.block[-1]
    assert isinstance(projection, nn.Sequential)
    norm = projection[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    x = torch.randn(2, 8, 7, 7)
    got = block(x)
    assert got.shape == (2, out, -(-7 // stride), -(-7 // stride))
    assert torch.equal(got, x if residual else torch.zeros_like(got))


def test_any_depth_and_every_parameter_is_used() -> None:
    model = MobileNetV3(LARGE[:5], last=32, width=0.5, classes=3, in_channels=1)
    out = model(torch.randn(2, 1, 32, 32))
    out.square().sum().backward()
    assert out.shape == (2, 3)
    assert all(p.grad is not None for p in model.parameters())
