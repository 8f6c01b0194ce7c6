"""What a cost says, in words: the figures, the device and the most expensive layers, the same in every report."""

from dataclasses import dataclass
from typing import Literal

from sizewise.report import _format as fmt
from sizewise.types import Cost, Device, Interval, LayerCost, ModelProfile
from sizewise.units import format_bytes, format_count, format_seconds

__all__ = [
    "By",
    "TopLayers",
    "accuracy_of",
    "families",
    "figures",
    "latency",
    "latency_remark",
    "layer_latency",
    "layer_name",
    "misfit",
    "peak",
    "place",
    "short_path",
    "top_layers",
    "uncounted",
]

By = Literal["latency", "macs"]
_WHAT: dict[By, str] = {"latency": "of the time", "macs": "of the MACs"}


@dataclass(frozen=True)
class TopLayers:
    """The most expensive layers of a model.

    Attributes:
        by: what they are ordered by.
        rows: each with its share of the whole, largest first.
        rest: how many layers are left out.
        rest_share: of the whole, all of them together.
    """

    by: By
    rows: tuple[tuple[LayerCost, float], ...]
    rest: int
    rest_share: float

    @property
    def what(self) -> str:
        """What the shares are shares of."""
        return _WHAT[self.by]

    @property
    def rest_line(self) -> str:
        """ "61 more layers: 12 % of the time"; "" when nothing is left out."""
        more = fmt.plural(self.rest, "more layer")
        return f"{more}: {fmt.portion(self.rest_share)} {self.what}" if self.rest else ""


def top_layers(cost: Cost, count: int = 12, by: By | None = None) -> TopLayers:
    """The `count` most expensive layers, by latency where it is known layer by layer and `by` does not say otherwise."""
    by = by or ("latency" if cost.latency_s and any(layer.latency_s for layer in cost.layers) else "macs")
    whole = (cost.latency_s.value if cost.latency_s else 0.0) if by == "latency" else float(cost.macs)
    shares = [(layer, _spent(layer, by) / whole if whole else 0.0) for layer in cost.layers]
    ranked = sorted(shares, key=lambda pair: (-pair[1], -pair[0].macs))
    rest = ranked[count:]
    return TopLayers(by, tuple(ranked[:count]), len(rest), sum(share for _, share in rest))


def _spent(layer: LayerCost, by: By) -> float:
    if by == "macs":
        return layer.macs
    return layer.latency_s.value if layer.latency_s else 0.0


def families(cost: Cost, by: By) -> str:
    """ "conv 71 %, depthwise 20 %, memory 9 %": each family's part of what the layers take, largest first."""
    spent: dict[str, float] = {}
    for layer in cost.layers:
        spent[layer.family] = spent.get(layer.family, 0.0) + _spent(layer, by)
    whole = sum(spent.values())
    ranked = sorted(spent.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {fmt.portion(value / whole)}" for name, value in ranked if value)


def layer_name(layer: LayerCost) -> str:
    """Its path; the model itself has none."""
    return layer.path or "(the model)"


def short_path(path: str, width: int) -> str:
    """A module path with its outer names cut to a letter and their number, as far as needed: "e.l.11.attention.self.query"."""
    names = path.split(".")
    for index, name in enumerate(names[:-1]):
        if len(".".join(names)) <= width:
            break
        letters = name.rstrip("0123456789")
        names[index] = letters[:1] + name[len(letters) :]
    return ".".join(names)


def layer_latency(layer: LayerCost) -> str:
    """Its part of a pass; a layer without time of its own was folded into another one."""
    if layer.latency_s is None:
        return ""
    return format_seconds(layer.latency_s.value) if layer.latency_s.value else "folded"


def accuracy_of(device: Device) -> str:
    """ "measured here", "predicted within a factor of 2.0", "calibrated on first use"."""
    if device.rates is None:
        return "calibrated on first use" if device.how == "measured" else "no rates declared"
    return "measured here" if device.how == "measured" else f"predicted within a factor of {device.rates.error_factor:.1f}"


def place(device: Device, runtime: str) -> str:
    """ "onnxruntime on this machine (Example CPU), 2 threads", or which device it is predicted for."""
    threads = fmt.plural(device.threads, "thread")
    processor = device.machine.get("processor")
    if device.how == "measured":
        return f"{runtime} on {device.title}{f' ({processor})' if processor else ''}, {threads}"
    return f"predicted for {device.title}, {threads}{_within(device)}"


def _within(device: Device) -> str:
    return f", within a factor of {device.rates.error_factor:.1f}" if device.rates else ""


def misfit(profile: ModelProfile, device: Device) -> str:
    """ "cannot run on X: ...", or "" when nothing is known to be in the way."""
    return f"cannot run on {device.title}: {'; '.join(profile.misfits)}" if profile.misfits else ""


def latency(figure: Interval | None) -> str:
    """With its interval; says when it is predicted."""
    return fmt.interval(figure, format_seconds) if figure else "not known"


def peak(cost: Cost) -> str:
    """Peak memory of activations."""
    return "not known" if cost.peak_bytes is None else format_bytes(cost.peak_bytes)


def uncounted(cost: Cost) -> str:
    """ "add 3, relu 7": operators that no handler knows, and how often each ran."""
    return ", ".join(f"{name} {count}" for name, count in sorted(cost.uncounted.items()))


def figures(profile: ModelProfile, device: Device) -> tuple[tuple[str, str, str], ...]:
    """Name, figure and remark of what one pass costs."""
    rows = [
        ("parameters", format_count(profile.params), "shared ones counted once"),
        ("MACs", format_count(profile.macs), "one MAC is a multiply-accumulate, two FLOPs"),
        ("other work", format_count(profile.elementwise), "scalar operations outside the MACs"),
        ("weights", format_bytes(profile.weight_bytes), "parameters and buffers as stored"),
        ("activations", format_bytes(profile.activation_bytes), "written in one pass"),
        ("peak memory", peak(profile), "most activations alive at one time, without weights"),
        ("intensity", f"{profile.intensity:.3g} MAC/B", "MACs per byte that operators read and write"),
    ]
    return (*rows, ("latency", latency(profile.latency_s), latency_remark(profile, device)))


def latency_remark(profile: ModelProfile, device: Device) -> str:
    """How the latency is known, and the roofline's prediction beside a measured one."""
    if profile.latency_s is None:
        return "neither measured nor predicted"
    if profile.latency_s.how != "measured":
        return f"by the roofline{_within(device)}"
    beside = profile.predicted_s
    if beside is None:
        return "median of one warm call"
    bounds = f"{format_seconds(beside.low)} to {format_seconds(beside.high)}"
    return f"median of one warm call; the roofline predicts {format_seconds(beside.value)} ({bounds})"
