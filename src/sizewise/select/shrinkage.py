"""What shrinking would make of a scale: the best factors that were measured on similar layers, weighted by where its cost is.

A stated factor, not a measurement of the scale: `fit` measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sizewise.advice import Shrunk
from sizewise.types import Interval, LayerCost, ModelProfile

__all__ = ["SEEN", "Seen", "shrunk"]


@dataclass(frozen=True)
class Seen:
    """Factors on latency, stored bytes and activations, and where they were seen."""

    latency: float
    size: float
    activations: float
    source: str


_SERVER = "ONNX Runtime 1.32, batch 1, 2 threads of a server CPU with VNNI"
SEEN: dict[str, Seen] = {
    "conv": Seen(0.28, 0.26, 0.25, f"ResNet-50 in static int8: 12.4 ms of 40 to 52 in float, {_SERVER}"),
    "conv1d": Seen(0.32, 0.27, 0.25, f"WaveNet of 30 layers x 128 in static int8: 0.72 ms of 2.3 in float, {_SERVER}"),
    "pointwise": Seen(0.55, 0.27, 0.25, f"MobileNetV2 in static int8: 2.2 ms of 4.0 in float, {_SERVER}"),
    "depthwise": Seen(0.55, 0.27, 0.25, f"MobileNetV2 in static int8: 2.2 ms of 4.0 in float, {_SERVER}"),
    "matmul": Seen(0.44, 0.27, 1.0, f"BERT of 6 layers x 384 in dynamic int8: 8.4 ms of 19 in float, {_SERVER}"),
    "recurrent": Seen(1.0, 1.0, 1.0, f"GRU of 2 x 256: the runtime's quantizer leaves it float, {_SERVER}"),
    "memory": Seen(1.0, 1.0, 1.0, "layers without MACs stay as they are"),
}


def shrunk(profile: ModelProfile) -> Shrunk | None:
    """The profile after the best shrinking seen; None where its layers or latency are not known."""
    whole = profile.latency_s
    if whole is None or not profile.layers:
        return None
    latency = _weighted(profile.layers, [layer.latency_s.value if layer.latency_s else 0.0 for layer in profile.layers], "latency")
    size = _weighted(profile.layers, [float(layer.weight_bytes) for layer in profile.layers], "size")
    families = dict.fromkeys(layer.family for layer in profile.layers if layer.family != "memory")
    low, high = whole.low * latency, whole.high * latency
    return Shrunk(
        latency_s=Interval(value=whole.value * latency, low=low, high=high, n=0, how="predicted", confidence=whole.confidence),
        size_bytes=round(profile.weight_bytes * size),
        latency_factor=latency,
        size_factor=size,
        sources=tuple(f"{family}: {SEEN[family].source}" for family in families),
        peak_bytes=_peak(profile),
    )


def _peak(profile: ModelProfile) -> int | None:
    """Most activations at one time; layers without MACs are as narrow as the narrowest family that the model has."""
    if profile.peak_bytes is None:
        return None
    narrow = min((SEEN[layer.family].activations for layer in profile.layers if layer.macs), default=1.0)
    return round(max(layer.peak_bytes * (SEEN[layer.family].activations if layer.macs else narrow) for layer in profile.layers))


def _weighted(layers: Sequence[LayerCost], weights: Sequence[float], what: str) -> float:
    total = sum(weights)
    if not total:
        return 1.0
    return sum(weight * float(getattr(SEEN[layer.family], what)) for layer, weight in zip(layers, weights, strict=True)) / total
