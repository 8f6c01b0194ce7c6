"""Classes of the `transformers` library, built from small configurations with random weights; nothing is downloaded.

The library takes seconds to import, so that happens only when one of them is built.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

_TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "num_labels": 5,
}
_DECODER = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "use_cache": False,
}
_PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
_STAGES = {"num_labels": 5, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
_AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [24, 24, 24],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "num_labels": 5,
}

CONFIGURATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "BertForSequenceClassification": ("BertConfig", _TEXT),
    "RobertaForTokenClassification": ("RobertaConfig", _TEXT),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig",
        {"vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 32, "num_labels": 5},
    ),
    "AlbertForSequenceClassification": ("AlbertConfig", {**_TEXT, "embedding_size": 16}),
    "ElectraForSequenceClassification": ("ElectraConfig", {**_TEXT, "embedding_size": 16}),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}),
    "OPTForCausalLM": (
        "OPTConfig",
        {**{k: v for k, v in _DECODER.items() if k != "intermediate_size"}, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 1},
    ),
    "LlamaForCausalLM": ("LlamaConfig", {**_DECODER, "num_key_value_heads": 2}),
    "T5EncoderModel": ("T5Config", {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
    "ViTForImageClassification": ("ViTConfig", _PATCHES),
    "DeiTForImageClassification": ("DeiTConfig", _PATCHES),
    "SwinForImageClassification": (
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4, "num_labels": 5},
    ),
    "ConvNextForImageClassification": ("ConvNextConfig", _STAGES),
    "MobileViTForImageClassification": (
        "MobileViTConfig",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 16, 24, 24, 32, 32, 48],
            "num_attention_heads": 4,
            "num_labels": 5,
        },
    ),
    "ResNetForImageClassification": ("ResNetConfig", {**_STAGES, "embedding_size": 16, "layer_type": "bottleneck"}),
    "RegNetForImageClassification": ("RegNetConfig", {**_STAGES, "embedding_size": 16, "groups_width": 8}),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.25, "image_size": 32, "num_labels": 5}),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {
            "hidden_sizes": [16, 16, 32, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 32,
            "num_labels": 5,
        },
    ),
    "PoolFormerForImageClassification": ("PoolFormerConfig", {**_STAGES}),
    "Wav2Vec2ForSequenceClassification": ("Wav2Vec2Config", _AUDIO),
}


def build(name: str) -> nn.Module:
    """A model by the name of its class."""
    library: Any = importlib.import_module("transformers")
    config, settings = CONFIGURATIONS[name]
    model: nn.Module = getattr(library, name)(getattr(library, config)(**settings))
    return model
