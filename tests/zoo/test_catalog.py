"""The catalog: every entry opens and runs, settings are read and refused, published counts hold."""

import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sizewise.errors import UnknownName, UsageError
from sizewise.protocols import Inputs
from sizewise.zoo.bert import BertClassifier, BertEncoder
from sizewise.zoo.catalog import CATALOG, Entry, names, open_entry
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.resnet import ResNet
from sizewise.zoo.specs import Value, parse_spec, plain_defaults

SMALL_SIZES = {"vision": 32, "speech": 7, "text": 5}


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("entry", CATALOG.values(), ids=names())
def test_published_counts_hold(entry: Entry) -> None:
    with torch.device("meta"):
        model = entry.build()
    if entry.params is not None:
        assert _count(model) == entry.params
    assert entry.title
    assert entry.source


@pytest.mark.parametrize(
    ("name", "params"),
    [("wavenet_small", 30e3), ("wavenet_medium", 150e3), ("wavenet_large", 1e6), ("gru_medium", 41e3), ("lstm_medium", 54e3)],
)
def test_sizes_of_our_own_are_about_what_they_are_meant_to_be(name: str, params: float) -> None:
    assert _count(CATALOG[name].build()) == pytest.approx(params, rel=0.05)


def _first(out: Any) -> Tensor:
    first = out[0] if isinstance(out, tuple) else out
    assert isinstance(first, Tensor)
    return first


@pytest.mark.parametrize("entry", CATALOG.values(), ids=names())
def test_every_entry_takes_its_own_example_at_its_native_size(entry: Entry) -> None:
    with torch.device("meta"):
        model = entry.build().eval()
    real = entry.example(batch=2)
    args, kwargs = pytree.tree_map(lambda leaf: leaf.to("meta"), (real.args, dict(real.kwargs or {})))
    assert _first(Inputs(args, kwargs).call(model)).shape[0] == 2


@pytest.mark.parametrize("name", ["resnet20_cifar", "mobilenet_v3_small", "wavenet_small", "gru_small", "bert_tiny"])
def test_opened_models_run_and_repeat_themselves(name: str) -> None:
    size = SMALL_SIZES[CATALOG[name].domain]
    model, inputs, entry = open_entry(f"{name}:size={size}", batch=2)
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        out, again = _first(inputs.call(model)), _first(inputs.call(model))
    assert out.shape[0] == 2
    assert out.isfinite().all()
    assert torch.equal(out, again)
    assert (entry.name, entry.size) == (name, size)


def test_native_examples() -> None:
    shapes: Mapping[str, tuple[int, ...]] = {"resnet50": (1, 3, 224, 224), "resnet20_cifar": (1, 3, 32, 32), "gru_large": (1, 100, 40)}
    for name, shape in shapes.items():
        assert CATALOG[name].example().args[0].shape == shape
    tokens = CATALOG["bert_base"].example(3)
    assert tokens.args == ()
    assert {key: value.shape for key, value in (tokens.kwargs or {}).items()} == {"input_ids": (3, 128), "attention_mask": (3, 128)}


def test_settings_reach_the_model_and_its_inputs() -> None:
    model, inputs, entry = open_entry("mobilenet_v2: width=0.5, size=64, classes=7, in_channels=1", batch=3)
    assert isinstance(model, MobileNetV2)
    assert inputs.args[0].shape == (3, 1, 64, 64)
    assert inputs.call(model).shape == (3, 7)
    assert _count(model) == _count(MobileNetV2(0.5, 7, 1))
    assert (entry.params, entry.macs, entry.size) == (None, None, 64)
    assert entry.title == "MobileNetV2 (width=0.5, classes=7, in_channels=1, size=64)"


def test_settings_of_other_kinds() -> None:
    gru, frames, _ = open_entry("lstm_medium:bidirectional=TRUE,features=5,size=4,layers=2,dropout=0")
    assert frames.args[0].shape == (1, 4, 5)
    assert frames.call(gru).shape == (1, 10)
    assert gru.get_submodule("classifier").get_parameter("weight").shape == (10, 192)
    cifar, _, _ = open_entry("resnet20_cifar:depth=8,width=2")
    assert isinstance(cifar, ResNet)
    assert cifar.linear.in_features == 128


def test_bert_is_an_encoder_until_classes_are_asked_for() -> None:
    encoder, _, entry = open_entry("bert_tiny:size=4")
    assert isinstance(encoder, BertEncoder)
    assert (entry.params, entry.macs) == (4_385_920, None)
    model, tokens, entry = open_entry("bert_tiny:classes=3,hidden=96,heads=4,vocab=11,size=9")
    assert isinstance(model, BertClassifier)
    assert model.bert.encoder.layer[0].intermediate.dense.out_features == 384  # type: ignore[union-attr]
    assert tokens.call(model).shape == (1, 3)
    assert entry.params is None


def test_the_published_settings_typed_out_change_nothing() -> None:
    _, _, entry = open_entry("resnet18:width=1,size=224")
    assert entry == CATALOG["resnet18"]
    _, _, smaller = open_entry("resnet18:size=64")
    assert (smaller.params, smaller.macs) == (11_689_512, None)


def test_weights_are_the_same_every_time_and_nobody_elses_dice_are_touched() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, inputs, _ = open_entry("wavenet_small")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    second, same, _ = open_entry("wavenet_small")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert torch.equal(inputs.args[0], same.args[0])


@pytest.mark.parametrize(
    ("spec", "hint"),
    [("mobilnet_v2", "mobilenet_v2"), ("resnet_18", "resnet18"), ("mobilenet_v2:widht=0.5", "width"), ("bert_tiny:layer=3", "layers")],
)
def test_unknown_names_are_met_with_the_nearest(spec: str, hint: str) -> None:
    with pytest.raises(UnknownName) as caught:
        open_entry(spec)
    assert caught.value.hint == f"did you mean {hint!r}?"


@pytest.mark.parametrize("spec", ["", ":", ":width=1", *(f"resnet18:{text}" for text in ("", "width", "width=", "=1", "width=1,,size=2"))])
def test_what_is_no_spec_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="not a "):
        open_entry(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18:width=1,width=2", "width is given twice"),
        ("resnet18:width=wide", "a number above 0"),
        ("resnet18:width=1/2", "not a value"),
        ("resnet18:width=0", "a number above 0"),
        ("resnet18:width=-1", "a number above 0"),
        ("resnet18:width=nan", "a number above 0"),
        ("resnet18:width=inf", "a number above 0"),
        ("resnet18:width=true", "a number above 0"),
        ("resnet18:classes=2.5", "a whole number of at least 1"),
        ("resnet18:size=0", "a whole number of at least 1"),
        ("bert_tiny:classes=-1", "a whole number of at least 0"),
        ("mobilenet_v2:dropout=1", "from 0 to below 1"),
        ("gru_small:bidirectional=1", "true or false"),
        ("resnet18:depth=19", "18, 34, 50"),
        ("bert_tiny:heads=3", "heads=3"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_entry(spec)


def test_a_batch_holds_an_example() -> None:
    with pytest.raises(UsageError, match="at least one example"):
        open_entry("gru_small", batch=0)


WORDS = st.from_regex(r"[a-z]{3,9}", fullmatch=True).filter(lambda word: word not in ("nan", "inf", "infinity", "true", "false"))
VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), WORDS)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), VALUES, max_size=4))
@settings(max_examples=60, deadline=None)
def test_settings_survive_being_typed(values: dict[str, Value]) -> None:
    typed = ",".join(f"{key}={value}" for key, value in values.items())
    name, read = parse_spec(f"model:{typed}" if typed else "model")
    assert name == "model"
    assert read == values
    assert [type(value) for value in read.values()] == [type(value) for value in values.values()]


def test_only_plain_parameters_can_be_typed() -> None:
    assert "setting" not in plain_defaults(MobileNetV2)
    assert "kind" not in plain_defaults(CATALOG["gru_small"].build), "the name says it"
    assert "torchvision" not in sys.modules


def test_the_catalog_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        CATALOG["mine"] = CATALOG["resnet18"]  # type: ignore[index]
