"""ImageNet ResNets: published sizes, torchvision's names, scaling."""

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import UsageError
from sizewise.zoo.resnet_imagenet import BasicBlock, Bottleneck, ImageNetResNet, resnet_imagenet


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "params"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)])
def test_published_sizes(depth: int, params: int) -> None:
    with torch.device("meta"):
        assert _count(resnet_imagenet(depth)) == params


def _norm(name: str) -> set[str]:
    return {f"{name}.{field}" for field in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


def _torchvision_names(blocks: tuple[int, ...], convs: int, first_downsamples: bool) -> set[str]:
    names = {"conv1.weight", "fc.weight", "fc.bias"} | _norm("bn1")
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for conv in range(1, convs + 1):
                names |= {f"{prefix}.conv{conv}.weight"} | _norm(f"{prefix}.bn{conv}")
            if block == 0 and (stage > 1 or first_downsamples):
                names |= {f"{prefix}.downsample.0.weight"} | _norm(f"{prefix}.downsample.1")
    return names


@pytest.mark.parametrize(
    ("depth", "blocks", "convs"), [(18, (2, 2, 2, 2), 2), (34, (3, 4, 6, 3), 2), (50, (3, 4, 6, 3), 3), (101, (3, 4, 23, 3), 3)]
)
def test_names_are_torchvisions(depth: int, blocks: tuple[int, ...], convs: int) -> None:
    with torch.device("meta"):
        assert set(resnet_imagenet(depth).state_dict()) == _torchvision_names(blocks, convs, first_downsamples=convs == 3)


def test_a_bottleneck_strides_in_its_3x3_convolution() -> None:
    block = Bottleneck(16, 4, stride=2)
    assert [layer.stride for layer in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]
    assert block(torch.randn(2, 16, 9, 7)).shape == (2, 16, 5, 4)


@pytest.mark.parametrize("block", [BasicBlock(8, 8), Bottleneck(8, 2)])
def test_a_block_whose_shape_stays_adds_its_input(block: BasicBlock | Bottleneck) -> None:
    last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
    nn.init.zeros_(last.weight)
    x = torch.randn(2, 8, 5, 5)
    assert block.downsample is None
    assert torch.equal(block.eval()(x), x.relu())


def test_stages_halve_the_picture_and_double_the_channels() -> None:
    model = resnet_imagenet(18, width=0.125, classes=5, in_channels=1).eval()
    shapes: list[torch.Size] = []

    def note(_module: nn.Module, _args: object, out: Tensor) -> None:
        shapes.append(out.shape[1:])

    for stage in (model.conv1, model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(note)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    assert shapes == [(8, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_any_depth_and_width(bottleneck: bool) -> None:
    model = ImageNetResNet((1, 2, 1, 1), bottleneck, width=0.1, classes=3)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [1, 2, 1, 1]
    assert [model.get_parameter(f"layer{stage}.0.conv1.weight").shape[0] for stage in (1, 2, 3, 4)] == [6, 13, 26, 51]


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="18, 34, 50"):
        resnet_imagenet(20)
    with pytest.raises(UsageError, match="four stages"):
        ImageNetResNet((2, 2, 2))
