"""Which part of a file runs as integers, and why a quantized file is not faster, in words."""

from collections.abc import Collection, Mapping

from sizewise.report import _format as fmt
from sizewise.types import Executed
from sizewise.units import format_seconds

__all__ = ["executed_sentence", "shows_integers", "why_not_faster"]

FASTER = 0.95  # of the float file's time; what is within the noise of it is not faster
MOST = 0.9  # a share of MACs or of time from which on the rest is no cause
SHORT_S = 10e-6  # per kernel: about what starting some of them takes; arithmetic is not what such a call waits for
FEW = 0.1  # a share of time that is worth a line
_NAMED = 4
_X86 = ("x86_64", "amd64", "x86", "i386", "i686")
_RECURRENT = ("GRU", "LSTM", "RNN")


def shows_integers(found: Executed) -> bool:
    """Whether there is something to say: the file holds integers at all."""
    return bool(found.integer_ops or found.conversions)


def executed_sentence(found: Executed) -> str:
    """ "97 % of MACs run as integers (52 of 54 layers); float: 2 Conv.", and what lies between the integer layers."""
    layers, integers = sum(found.integer_ops.values()) + sum(found.float_ops.values()), sum(found.integer_ops.values())
    if not layers:
        return "No layer of the file multiplies anything that is counted" + _uncounted(found)
    parts = [f"{_share(found.share)} of MACs run as integers ({integers} of {fmt.plural(layers, 'layer')})"]
    parts += [f"float: {_listed(found.float_ops)}"] if found.float_ops and integers else []
    parts += [f"float between integer layers: {_listed(found.between)}"] if found.between else []
    parts += [f"stored weights turned into floats at every call: {found.weight_conversions}"] if found.weight_conversions else []
    return "; ".join(parts) + _uncounted(found)


def why_not_faster(plain: Executed, plain_s: float, quantized: Executed, quantized_s: float) -> tuple[str, ...]:
    """What keeps a quantized file from being faster than the float one that it was made from.

    Args:
        plain: what runs of the float file.
        plain_s: its latency in seconds.
        quantized: what runs of the quantized file, on the same machine with as many threads.
        quantized_s: its latency in seconds.

    Returns:
        causes with their figures, those that stand in the way of others first; none where the quantized file is faster.
    """
    if quantized_s < FASTER * plain_s:
        return ()
    causes = (
        *_mostly_float(quantized),
        *_signed(quantized),
        *_unfused(quantized),
        *_conversions(quantized),
        *_weights(quantized),
        *_slow_kernels(plain, quantized),
        *_short(plain, plain_s, quantized, quantized_s),
    )
    return causes or ("the profile of its kernels shows no cause",)


# ---- causes


def _mostly_float(found: Executed) -> list[str]:
    if found.share >= MOST or not found.float_ops:
        return []
    recurrent = [name for name in _RECURRENT if name in found.float_ops]
    reason = f"; in this form of file there is no integer kernel for {' or '.join(recurrent)}" if recurrent else ""
    return [f"{_share(1 - found.share)} of MACs stay in float ({_listed(found.float_ops)}){reason}"]


def _signed(found: Executed) -> list[str]:
    if found.machine.lower() not in _X86:
        return []
    if found.signed:
        layers = fmt.plural(found.signed, "integer layer")
        return [f"{layers} read signed activations (int8); on x86 the fast kernels are those for unsigned ones (uint8)"]
    if found.signed_activations:
        many = fmt.plural(found.signed_activations, "activation")
        return [
            f"{many} of the file are signed (int8): on x86 the runtime makes them unsigned where it can, and elsewhere layers stay in float"
        ]
    return []


def _unfused(found: Executed) -> list[str]:
    if not found.between:
        return []
    many = fmt.plural(sum(found.between.values()), "operator")
    return [f"{many} between integer layers are not fused and run in float: {_listed(found.between)}{_of_time(found, found.between)}"]


def _conversions(found: Executed) -> list[str]:
    many = sum(found.conversions.values()) - found.weight_conversions
    if many <= 2 and _time_share(found, found.conversions) < FEW:
        return []  # what comes in and what goes out has to be converted
    return [f"{fmt.plural(many, 'conversion')} between floats and integers{_of_time(found, found.conversions)}"] if many > 0 else []


def _weights(found: Executed) -> list[str]:
    if not found.weight_conversions:
        return []
    tensors = fmt.plural(found.weight_conversions, "weight tensor")
    return [f"{tensors} stored as integers, but turned into floats again at every call"]


def _slow_kernels(plain: Executed, quantized: Executed) -> list[str]:
    """Integer kernels that take as long as the float ones for the same MACs, where most of the MACs can be compared."""
    if quantized.share < 0.5:
        return []
    before = _time(plain, plain.float_ops) * quantized.share
    after = _time(quantized, quantized.integer_ops)
    if not before or not after or after < MOST * before:
        return []
    text = f"the integer kernels take {format_seconds(after)} for what takes the float ones {format_seconds(before)}"
    layers = sum(quantized.integer_ops.values())
    apart = f"; {quantized.depthwise} of {layers} convolve every channel by itself, where integers gain little"
    return [text + (apart if quantized.depthwise else "")]


def _short(plain: Executed, plain_s: float, quantized: Executed, quantized_s: float) -> list[str]:
    """Calls in which starting kernels outweighs what they compute."""
    if not plain.kernels or plain_s > SHORT_S * plain.kernels:
        return []
    was = f"{format_seconds(plain_s)} for {fmt.plural(plain.kernels, 'kernel')}"
    now = f"{format_seconds(quantized_s)} for {fmt.plural(quantized.kernels, 'kernel')}"
    return [f"a call of the float file takes {was}, of this one {now}: starting kernels outweighs the arithmetic"]


# ---- words


def _time(found: Executed, operators: Collection[str]) -> float:
    return sum(found.seconds.get(name, 0.0) for name in operators)


def _time_share(found: Executed, operators: Collection[str]) -> float:
    total = sum(found.seconds.values())
    return _time(found, operators) / total if total else 0.0


def _of_time(found: Executed, operators: Collection[str]) -> str:
    share = _time_share(found, operators)
    return f" ({fmt.portion(share)} of the kernels' time)" if share else ""


def _share(value: float) -> str:
    """A portion that is 100 % only when nothing is left over, and 0 % only when there is nothing."""
    return "over 99 %" if 0.995 <= value < 1 else fmt.portion(value)


def _listed(operators: Mapping[str, int]) -> str:
    """ "12 MatMul, 1 Conv", the most frequent first."""
    rows = sorted(operators.items(), key=lambda pair: (-pair[1], pair[0]))
    left = sum(count for _, count in rows[_NAMED:])
    return ", ".join([f"{count:,} {name}" for name, count in rows[:_NAMED]] + ([f"{left} more"] if left else []))


def _uncounted(found: Executed) -> str:
    return f". Not counted: {_listed(found.uncounted)}." if found.uncounted else "."
