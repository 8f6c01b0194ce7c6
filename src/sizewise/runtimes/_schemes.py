"""Quantization schemes that several runtimes execute as integers."""

from sizewise.types import Scheme

__all__ = ["U8S8"]

# on x86, signed activations run slower than float; unsigned ones with int8 weights have the fast kernels
U8S8 = Scheme(
    name="u8s8",
    activation="uint8",
    activation_range=(0, 255),
    weight="int8",
    weight_range=(-127, 127),
    fused_activations=("relu", "relu6"),
    pair_limit=(2**15 - 1) // 255,
)
