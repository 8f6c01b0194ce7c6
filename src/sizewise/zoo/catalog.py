"""The reference families under the names that the command line knows, each with its inputs and its published size.

Weights are random: the catalog is for what depends on the architecture alone (cost, latency, memory, export).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from sizewise.errors import UnknownName, UsageError
from sizewise.protocols import Inputs
from sizewise.zoo.bert import BertClassifier, BertEncoder
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from sizewise.zoo.recurrent import RecurrentClassifier
from sizewise.zoo.resnet import resnet_cifar
from sizewise.zoo.resnet_imagenet import resnet_imagenet
from sizewise.zoo.specs import Value, check_settings, parse_spec, plain_defaults
from sizewise.zoo.wavenet import WaveNet

__all__ = ["CATALOG", "Domain", "Entry", "names", "open_entry"]

Domain = Literal["vision", "speech", "text"]
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the catalog.

    Attributes:
        name: what people type.
        title: what people read.
        domain: "vision" (pictures), "speech" (frames of features) or "text" (tokens).
        build: makes the module; every setting has a default.
        example: makes inputs from `batch` (1 by default) and `size`, with the same content every time.
        size: native side of the square picture in pixels, or length of the sequence in frames or tokens.
        params: published number of parameters, exact; where the source rounds, the number that its table adds up to. None
            where nothing is published, and for other settings than the published ones.
        macs: published multiply-accumulates of one example at the native size, as the source rounds them; None as above.
        source: of the architecture and of the figures.
    """

    name: str
    title: str
    domain: Domain
    build: Callable[..., nn.Module]
    example: Callable[..., Inputs]
    size: int
    params: int | None = None
    macs: int | None = None
    source: str


def _pictures(native: int) -> Callable[..., Inputs]:
    def example(batch: int = 1, size: int = native, in_channels: int = 3) -> Inputs:
        return Inputs((torch.randn(batch, in_channels, size, size, generator=_generator()),))

    return example


def _frames(native: int) -> Callable[..., Inputs]:
    def example(batch: int = 1, size: int = native, features: int = 40) -> Inputs:
        return Inputs((torch.randn(batch, size, features, generator=_generator()),))

    return example


def _tokens(native: int) -> Callable[..., Inputs]:
    def example(batch: int = 1, size: int = native, vocab: int = 30522) -> Inputs:
        ids = torch.randint(0, vocab, (batch, size), generator=_generator())
        return Inputs((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    return example


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def bert(
    layers: int = 12,
    hidden: int = 768,
    heads: int = 0,
    intermediate: int = 0,
    vocab: int = 30522,
    positions: int = 512,
    token_types: int = 2,
    dropout: float = 0.1,
    classes: int = 0,
) -> nn.Module:
    """BERT by its two published dials, layers and hidden size.

    Args:
        layers: of the encoder.
        hidden: numbers per token.
        heads: of attention; 0: one per 64 of the hidden size, at least one.
        intermediate: numbers per token between the two linear layers; 0: four times the hidden size.
        vocab: tokens in the vocabulary.
        positions: longest sequence, in tokens.
        token_types: segments that tokens may belong to.
        dropout: share of activations and attention weights dropped while training.
        classes: 0: the encoder with its pooler; otherwise a classifier with as many outputs.

    Raises:
        UsageError: the heads do not divide the hidden size.
    """
    heads, intermediate = heads or max(1, hidden // 64), intermediate or 4 * hidden
    encoder = BertEncoder(vocab, hidden, layers, heads, intermediate, positions, token_types, dropout)
    return BertClassifier(encoder, classes, dropout) if classes else encoder


_HE = "He et al., CVPR 2016"
_TORCHVISION = "; counts as torchvision states them"
_TURC = "Devlin et al., NAACL 2019; sizes of Turc et al., 2019 (arXiv:1908.08962), counted without the heads of pre-training"
_OORD = "van den Oord et al., 2016 (arXiv:1609.03499); sizes are Sizewise's own"
_CHO = "Cho et al., EMNLP 2014; sizes are Sizewise's own"
_HOCHREITER = "Hochreiter and Schmidhuber, 1997; sizes are Sizewise's own"


def _vision(name: str, title: str, build: Callable[..., nn.Module], size: int, params: int, macs: int, source: str) -> Entry:
    return Entry(
        name=name, title=title, domain="vision", build=build, example=_pictures(size), size=size, params=params, macs=macs, source=source
    )


def _speech(name: str, title: str, build: Callable[..., nn.Module], source: str) -> Entry:
    return Entry(name=name, title=title, domain="speech", build=build, example=_frames(100), size=100, source=source)


def _text(name: str, title: str, build: Callable[..., nn.Module], params: int, macs: int | None = None, source: str = _TURC) -> Entry:
    example = _tokens(128)
    return Entry(name=name, title=title, domain="text", build=build, example=example, size=128, params=params, macs=macs, source=source)


def _resnet(depth: int, params: int, macs: int) -> Entry:
    build, source = partial(resnet_imagenet, depth=depth), _HE + _TORCHVISION
    return _vision(f"resnet{depth}", f"ResNet-{depth}", build, 224, params, macs, source)


def _cifar(depth: int, params: int, macs: int) -> Entry:
    source = f"{_HE}, section 4.2, shortcuts of option A; MACs as reimplementations state them"
    return _vision(f"resnet{depth}_cifar", f"ResNet-{depth} for CIFAR", partial(resnet_cifar, depth=depth), 32, params, macs, source)


_V2 = "Sandler et al., CVPR 2018" + _TORCHVISION
_V3 = "Howard et al., ICCV 2019" + _TORCHVISION
_ENTRIES = (
    _resnet(18, 11_689_512, 1_814_000_000),
    _resnet(34, 21_797_672, 3_664_000_000),
    _resnet(50, 25_557_032, 4_089_000_000),
    _cifar(20, 269_722, 40_800_000),
    _cifar(56, 853_018, 125_700_000),
    _vision("mobilenet_v2", "MobileNetV2", MobileNetV2, 224, 3_504_872, 301_000_000, _V2),
    _vision("mobilenet_v3_large", "MobileNetV3-Large", mobilenet_v3_large, 224, 5_483_032, 217_000_000, _V3),
    _vision("mobilenet_v3_small", "MobileNetV3-Small", mobilenet_v3_small, 224, 2_542_856, 57_000_000, _V3),
    _speech("wavenet_small", "WaveNet, 8 layers of 24", partial(WaveNet, channels=24, skip_channels=24, blocks=4), _OORD),
    _speech("wavenet_medium", "WaveNet, 10 layers of 48", partial(WaveNet, channels=48, skip_channels=48, blocks=5), _OORD),
    _speech("wavenet_large", "WaveNet, 12 layers of 112", partial(WaveNet, channels=112, skip_channels=160, blocks=6), _OORD),
    _speech("gru_small", "GRU, 1 layer of 32", partial(RecurrentClassifier, "gru", hidden=32), _CHO),
    _speech("gru_medium", "GRU, 1 layer of 96", partial(RecurrentClassifier, "gru", hidden=96), _CHO),
    _speech("gru_large", "GRU, 2 layers of 192", partial(RecurrentClassifier, "gru", hidden=192, layers=2), _CHO),
    _speech("lstm_medium", "LSTM, 1 layer of 96", partial(RecurrentClassifier, "lstm", hidden=96), _HOCHREITER),
    _text("bert_tiny", "BERT-Tiny, 2 layers of 128", partial(bert, layers=2, hidden=128), 4_385_920),
    _text("bert_mini", "BERT-Mini, 4 layers of 256", partial(bert, layers=4, hidden=256), 11_170_560),
    _text("bert_small", "BERT-Small, 4 layers of 512", partial(bert, layers=4, hidden=512), 28_763_648),
    _text(
        "bert_base",
        "BERT-base, 12 layers of 768",
        partial(bert, layers=12, hidden=768),
        109_482_240,
        11_250_000_000,
        "Devlin et al., NAACL 2019; MACs: half the FLOPs that Sun et al., MobileBERT, ACL 2020, state for it",
    ),
)

CATALOG: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every entry by its name."""


def names() -> tuple[str, ...]:
    """The names of the catalog, families together, small before large."""
    return tuple(CATALOG)


def open_entry(spec: str, batch: int = 1) -> tuple[nn.Module, Inputs, Entry]:
    """Build the model that `spec` names, with random weights that are the same every time.

    The global random generator is left as it was.

    Args:
        spec: a name, such as `mobilenet_v2`, or a name with settings, such as `mobilenet_v2:width=0.5,size=160`. `size` is the side
            of the picture in pixels, or the length of the sequence in frames or tokens; the other settings are parameters of the
            entry's `build`.
        batch: examples in the inputs.

    Returns:
        the module in inference mode; inputs that fit it; the entry, with the size that was asked for, a title that says what was
        changed, and without the published figures that no longer hold.

    Raises:
        UnknownName: no such model or setting; says the nearest.
        UsageError: `spec` is malformed, or a value cannot be meant.
    """
    if batch < 1:
        raise UsageError("a batch holds at least one example", got=str(batch))
    name, settings = parse_spec(spec)
    if name not in CATALOG:
        raise UnknownName("model", name, CATALOG)
    entry = CATALOG[name]
    defaults = plain_defaults(entry.build)
    check_settings(settings, {**defaults, "size": entry.size}, where=name)
    size = int(settings.pop("size", entry.size))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)  # not torch.manual_seed, which also seeds every GPU
        model = entry.build(**settings).eval()
    shared = {key: value for key, value in settings.items() if key in plain_defaults(entry.example)}
    return model, entry.example(batch, size, **shared), _as_opened(entry, size, {k: v for k, v in settings.items() if v != defaults[k]})


def _as_opened(entry: Entry, size: int, changed: Mapping[str, Value]) -> Entry:
    shown = {**changed, "size": size} if size != entry.size else changed
    title = f"{entry.title} ({', '.join(f'{k}={v}' for k, v in shown.items())})" if shown else entry.title
    return replace(entry, title=title, size=size, params=None if changed else entry.params, macs=None if shown else entry.macs)
