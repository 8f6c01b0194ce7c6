"""The zoo that pruning is held against: small networks of every common design, with random weights and made-up data.

Whatever a fresh network sets to one or zero, such as the weights of normalizations, is moved, so that no error hides there, and signals
keep their size through all layers, as in trained networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tests.conformance import nets_attention as attention
from tests.conformance import nets_pictures as pictures
from tests.conformance import nets_sequences as sequences
from tests.conformance import nets_transformers as transformers
from torch import Tensor, nn

from sizewise.data.batches import as_inputs
from sizewise.zoo.catalog import bert
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.mobilenet_v3 import mobilenet_v3_small
from sizewise.zoo.recurrent import RecurrentClassifier
from sizewise.zoo.resnet import ResNet, resnet_cifar
from sizewise.zoo.resnet_imagenet import resnet_imagenet
from sizewise.zoo.wavenet import WaveNet

__all__ = ["ARCHITECTURES", "Architecture", "Case", "make"]

Inputs = Callable[[int, torch.Generator], Any]


@dataclass(frozen=True)
class Architecture:
    """One network of the zoo.

    Attributes:
        build: makes the module.
        inputs: makes a batch of so many examples: a tensor, a tuple or a dict.
        fast: run on every change; the others are slow tests.
        unprunable: words of the reason why no channel of it can go, and why no single weight; empty where some can.
        no_file: words of the reason why torch cannot write the whole network as a file either; empty where it can.
        library: a class of `transformers`.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    fast: bool = False
    unprunable: tuple[str, str] = ("", "")
    no_file: str = ""
    library: bool = False


@dataclass(frozen=True)
class Case:
    """A built network with data: a batch of two as the example, and 48 examples of calibration."""

    model: nn.Module
    example: Any
    calibration: list[Any]


def make(name: str) -> Case:
    """Build one architecture; the same every time. The global random generator is left as it was."""
    found = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = found.build().eval()
    if found.library:
        _amplify(model, generator)
    _move_vectors(model, generator)
    data = [found.inputs(16, generator) for _ in range(3)]
    _settle(model, data, generator)
    return Case(model, found.inputs(2, generator), [_as_batch(batch) for batch in data])


def _as_batch(inputs: Any) -> Any:
    return (inputs, None) if isinstance(inputs, tuple) else inputs


def _amplify(model: nn.Module, generator: torch.Generator) -> None:
    """Weights drawn so that signals keep their size: under the library's, 0.02, they die out in a small network."""
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)


def _move_vectors(model: nn.Module, generator: torch.Generator) -> None:
    """Biases and normalizations' weights, away from the zeros and ones that fresh networks have."""
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))


def _settle(model: nn.Module, data: Sequence[Any], generator: torch.Generator) -> None:
    """Statistics of batch normalization that fit the data about as well as those of a trained network fit other data."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for batch in data if norms else ():
            as_inputs(batch).call(model)
        for norm in norms:
            norm.eval()
            norm.momentum = 0.1
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            mean.add_(0.1 * variance.sqrt() * torch.randn(mean.shape, generator=generator))
            variance.mul_(0.8 + 0.4 * torch.rand(variance.shape, generator=generator))


def _floats(*shape: int) -> Inputs:
    def inputs(batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return inputs


def _tokens(length: int, generator: torch.Generator, batch: int) -> Tensor:
    return torch.randint(2, attention.VOCABULARY, (batch, length), generator=generator)


def _sentence(batch: int, generator: torch.Generator) -> Tensor:
    return _tokens(12, generator, batch)


def _two_sentences(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _tokens(9, generator, batch), _tokens(7, generator, batch)


def _two_pictures(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _PICTURE(batch, generator), _PICTURE(batch, generator)


def _masked(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    ids = _sentence(batch, generator)
    return {"input_ids": ids, "attention_mask": (ids > 5).long() | (torch.arange(12) < 4).long()}


def _graph(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 9, 8, generator=generator), torch.rand(batch, 9, 9, generator=generator)


def _columns(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    user, item = (torch.randint(0, count, (batch,), generator=generator) for count in (30, 20))
    return {"user": user, "item": item, "numbers": torch.randn(batch, 6, generator=generator)}


def _library(name: str, inputs: Inputs) -> Architecture:
    def named(batch: int, generator: torch.Generator) -> Any:
        found = inputs(batch, generator)
        return found if isinstance(found, dict) else {_MAIN_INPUT.get(name, "pixel_values"): found}

    foreign = name == "GPT2LMHeadModel"  # whose layers are the library's own instead of torch's
    unprunable = ("no group of channels can be cut", "no layer can be pruned") if foreign else ("", "")
    return Architecture(partial(transformers.build, name), named, unprunable=unprunable, no_file=_NO_FILE.get(name, ""), library=True)


_NO_FILE = dict.fromkeys(("T5EncoderModel", "SwinForImageClassification"), "Cannot view a tensor")  # torch's exporter, whatever is cut
_MAIN_INPUT = {"Wav2Vec2ForSequenceClassification": "input_values"}
_PICTURE, _FRAMES, _STEPS, _ROW = _floats(3, 16, 16), _floats(40, 20), _floats(9, 12), _floats(20)

_PICTURES = {
    "vgg": Architecture(pictures.vgg, _PICTURE, fast=True),
    "alexnet": Architecture(pictures.alexnet, _floats(3, 32, 32)),
    "network_in_network": Architecture(pictures.network_in_network, _PICTURE),
    "resnet_identity": Architecture(partial(pictures.resnet, "conv"), _PICTURE),
    "resnet_padded": Architecture(partial(pictures.resnet, "pad"), _PICTURE, fast=True),
    "resnet_bottleneck": Architecture(partial(pictures.bottleneck, 1), _PICTURE),
    "resnext": Architecture(partial(pictures.bottleneck, 8), _PICTURE),
    "resnet_preactivation": Architecture(pictures.preactivation, _PICTURE),
    "densenet": Architecture(pictures.densenet, _PICTURE, fast=True),
    "inception": Architecture(pictures.inception, _PICTURE),
    "squeezenet": Architecture(pictures.squeezenet, _PICTURE),
    "unet_transposed": Architecture(partial(pictures.UNet, "transposed"), _PICTURE),
    "unet_bilinear": Architecture(partial(pictures.UNet, "bilinear"), _PICTURE),
    "mobilenet_v1": Architecture(pictures.mobilenet_v1, _PICTURE),
    "efficientnet": Architecture(pictures.efficientnet, _PICTURE),
    "shufflenet": Architecture(pictures.shufflenet, _PICTURE),
    "ghostnet": Architecture(pictures.ghostnet, _PICTURE),
    "convnext": Architecture(pictures.convnext, _PICTURE),
    "repvgg": Architecture(pictures.repvgg, _PICTURE),
    "feature_pyramid": Architecture(pictures.Pyramid, _PICTURE),
    "group_normalized": Architecture(pictures.group_normalized, _PICTURE),
    "style_transfer": Architecture(pictures.style_transfer, _PICTURE),
    "parametric_relu": Architecture(pictures.parametric_relu, _PICTURE),
    "autoencoder": Architecture(pictures.autoencoder, _PICTURE),
    "super_resolution": Architecture(pictures.super_resolution, _PICTURE),
    "deep_pixel_shuffle": Architecture(pictures.deep_pixel_shuffle, _PICTURE),
    "res2net": Architecture(pictures.res2net, _PICTURE),
    "cbam": Architecture(pictures.cbam, _PICTURE),
    "deeplab": Architecture(pictures.Dilated, _PICTURE),
    "hrnet": Architecture(pictures.Parallel, _PICTURE),
    "siamese": Architecture(pictures.Siamese, _two_pictures, fast=True),
    "recurrent_convolution": Architecture(pictures.recurrent_convolution, _PICTURE),
    "mixer": Architecture(pictures.Mixer, _PICTURE),
    "convolution_3d": Architecture(pictures.volumes, _floats(2, 4, 8, 8)),
    "mlp": Architecture(pictures.mlp, _ROW),
}
_SEQUENCES = {
    "convolution_1d": Architecture(sequences.conv_1d, _FRAMES),
    "temporal_convolution": Architecture(sequences.TemporalConvolution, _FRAMES),
    "weight_normalized": Architecture(partial(sequences.TemporalConvolution, normed=True), _FRAMES, unprunable=("cannot be removed", "")),
    "gru": Architecture(partial(sequences.Recurrent, nn.GRU), _STEPS),
    "gru_two_layers": Architecture(partial(sequences.Recurrent, nn.GRU, layers=2), _STEPS),
    "lstm_bidirectional": Architecture(partial(sequences.Recurrent, nn.LSTM, bidirectional=True), _STEPS),
    "lstm_two_bidirectional": Architecture(partial(sequences.Recurrent, nn.LSTM, layers=2, bidirectional=True), _STEPS),
    "rnn_time_first": Architecture(partial(sequences.Recurrent, nn.RNN, batch_first=False), _STEPS),
    "lstm_last_state": Architecture(sequences.LastState, _STEPS),
    "lstm_embedded": Architecture(sequences.EmbeddedLstm, _sentence, fast=True),
    "gru_cell": Architecture(sequences.CellLoop, _STEPS),
    "convolutional_recurrent": Architecture(sequences.ConvRecurrent, _floats(1, 8, 24)),
    "sequence_to_sequence": Architecture(sequences.SequenceToSequence, _two_sentences),
    "tied_language_model": Architecture(sequences.TiedLanguageModel, _sentence),
    "two_towers": Architecture(sequences.TwoTowers, _columns, fast=True),
    "pointnet": Architecture(sequences.SetNetwork, _floats(3, 20)),
    "graph_network": Architecture(sequences.GraphNetwork, _graph),
    "radiance": Architecture(sequences.Radiance, _floats(3)),
    "experts": Architecture(sequences.Experts, _ROW),
}
_ATTENTION = {
    "vit_counted_heads": Architecture(partial(attention.VisionTransformer, attention.CountedHeads), _PICTURE),
    "vit_inferred_heads": Architecture(partial(attention.VisionTransformer, attention.InferredHeads), _PICTURE, fast=True),
    "vit_fused_heads": Architecture(partial(attention.VisionTransformer, attention.FusedHeads), _PICTURE),
    "vit_stacked_heads": Architecture(partial(attention.VisionTransformer, attention.StackedHeads), _PICTURE),
    "vit_einsum_heads": Architecture(partial(attention.VisionTransformer, attention.EinsumHeads), _PICTURE),
    "vit_torch_heads": Architecture(partial(attention.VisionTransformer, attention.TorchHeads), _PICTURE),
    "torch_encoder": Architecture(attention.TorchEncoder, _sentence),
    "torch_transformer": Architecture(attention.TorchTransformer, _two_sentences),
    "decoder_grouped_queries": Architecture(attention.Decoder, _sentence),
    "conformer": Architecture(attention.Conformer, _FRAMES),
}
_ZOO = {
    "zoo_resnet_cifar": Architecture(partial(resnet_cifar, 8), _PICTURE),
    "zoo_resnet_projected": Architecture(partial(ResNet, (1, 1, 1)), _PICTURE),
    "zoo_resnet_imagenet": Architecture(partial(resnet_imagenet, 18, width=0.25, classes=10), _floats(3, 32, 32)),
    "zoo_resnet50": Architecture(partial(resnet_imagenet, 50, width=0.125, classes=10), _floats(3, 32, 32)),
    "zoo_mobilenet_v2": Architecture(partial(MobileNetV2, width=0.25, classes=10), _floats(3, 32, 32)),
    "zoo_mobilenet_v3": Architecture(partial(mobilenet_v3_small, width=0.25, classes=10), _floats(3, 32, 32)),
    "zoo_wavenet": Architecture(partial(WaveNet, channels=24, skip_channels=24, blocks=3, stacks=1), _floats(20, 40)),
    "zoo_gru": Architecture(partial(RecurrentClassifier, "gru", features=12, hidden=32), _STEPS),
    "zoo_lstm": Architecture(partial(RecurrentClassifier, "lstm", features=12, hidden=24, layers=2, bidirectional=True), _STEPS),
    "zoo_bert": Architecture(partial(bert, layers=2, hidden=32, heads=4, vocab=40, positions=16, classes=5), _masked),
}
_TEXT = (
    "BertForSequenceClassification",
    "RobertaForTokenClassification",
    "DistilBertForSequenceClassification",
    "AlbertForSequenceClassification",
    "ElectraForSequenceClassification",
    "GPT2LMHeadModel",
    "OPTForCausalLM",
    "LlamaForCausalLM",
    "T5EncoderModel",
)
_LARGE = ("MobileViTForImageClassification", "SegformerForSemanticSegmentation", "ConvNextForImageClassification")


def _library_inputs(name: str) -> Inputs:
    if name in _TEXT:
        return _masked
    if name in _MAIN_INPUT:
        return _floats(400)
    return _floats(3, 64, 64) if name in _LARGE else _floats(3, 32, 32)


ARCHITECTURES: Mapping[str, Architecture] = {
    **_PICTURES,
    **_SEQUENCES,
    **_ATTENTION,
    **_ZOO,
    **{name: _library(name, _library_inputs(name)) for name in transformers.CONFIGURATIONS},
}
