"""What one operator computes: MACs by torch's own formulas and by handlers for what torch's table lacks.

Conventions: one MAC is one multiply-accumulate, two of torch's FLOPs. Biases, normalization, activations, additions,
softmax and pooling are not MACs (as in published counts) but scalar operations, counted in `elementwise`: one for every
element a pointwise operator writes or a reduction reads, one for every element that a bias is added to, `_PER_ELEMENT` for
what takes several passes. Operators that move, index or rename data compute nothing. Whatever is in none of these groups is
named.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sizewise.graph.trace import quiet

__all__ = ["WorkCounter", "is_recurrent", "moves_only", "recurrent_steps", "unfused"]

_FREE_NAMES = """
view reshape _reshape_alias _unsafe_view flatten unflatten expand expand_as permute transpose t movedim squeeze unsqueeze slice select
narrow chunk split split_with_sizes unsafe_split unsafe_chunk unbind detach alias clone contiguous to type_as copy _to_copy empty
empty_like empty_strided new_empty zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full scalar_tensor arange
linspace eye tril_indices triu_indices lift_fresh lift_fresh_copy as_strided cat concat stack dropout feature_dropout alpha_dropout
native_dropout pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
replication_pad3d index index_select gather take embedding roll flip rot90 unfold pixel_shuffle pixel_unshuffle channel_shuffle
native_channel_shuffle repeat repeat_interleave tile im2col col2im diagonal diag_embed view_as_real view_as_complex real imag complex
fill zero slice_scatter select_scatter index_put index_copy scatter masked_scatter max_unpool2d max_unpool3d _pack_padded_sequence
_pad_packed_sequence _local_scalar_dense _assert_async _assert_scalar _assert_tensor_metadata sym_size sym_numel sym_stride
sym_constrain_range sym_constrain_range_for_size item
"""
_FREE = frozenset(_FREE_NAMES.split())

# scalar operations per element of the input, for operators that torch tags neither as pointwise nor as reductions
_PER_ELEMENT = {
    "native_layer_norm": 4,  # mean, variance, normalize, scale and shift
    "native_group_norm": 4,
    "_fused_rms_norm": 3,
    "_softmax": 3,  # exponential, sum, division
    "_safe_softmax": 3,
    "_log_softmax": 3,
    "hardswish": 1,
    "prelu": 1,
    "_prelu_kernel": 1,
    "log_sigmoid_forward": 1,
    "rrelu_with_noise": 1,
    "cumsum": 1,
    "cumprod": 1,
    "cummax": 1,
    "cummin": 1,
    "topk": 1,
    "sort": 1,
    "kthvalue": 1,
    "median": 1,
    "tril": 1,
    "triu": 1,
    "trace": 1,
    "floor_divide": 1,
    "scatter_add": 1,
    "scatter_reduce": 1,
    "index_add": 1,
    "glu": 2,
    "_weight_norm_interface": 2,
    "_adaptive_avg_pool2d": 1,
    "_adaptive_avg_pool3d": 1,
    "adaptive_max_pool2d": 1,
    "adaptive_max_pool3d": 1,
}
_RANDOM = "rand rand_like randn randn_like randint randint_like normal normal_functional bernoulli exponential uniform"
# the same per element of the output: interpolation mixes this many inputs
_PER_OUTPUT = {
    "upsample_linear1d": 2,
    "upsample_bilinear2d": 4,
    "upsample_trilinear3d": 8,
    "upsample_bicubic2d": 16,
    "grid_sampler_2d": 4,
    "grid_sampler_3d": 8,
    "polar": 2,
    **dict.fromkeys((f"upsample_nearest{d}d" for d in (1, 2, 3)), 1),
    **dict.fromkeys((f"_upsample_nearest_exact{d}d" for d in (1, 2, 3)), 1),
    **dict.fromkeys(_RANDOM.split(), 1),
}
_NORMALIZATIONS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "batch_norm")
_POOLS = ("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
_RECURRENT = ("gru", "lstm", "rnn_tanh", "rnn_relu")


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the work of every operator that runs inside it; tensors may be real or fake."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0
        self.elementwise = 0
        self.uncounted: Counter[str] = Counter()

    def run(self, function: Any, args: Any, kwargs: Any) -> None:
        """Count one operator; those that a handler takes whole are not run at all."""
        packet = getattr(function, "_overloadpacket", None)
        if handler := _WHOLE.get(packet.__name__ if packet is not None else ""):
            macs, elementwise = handler(*args, **kwargs)
            self.macs, self.elementwise = self.macs + macs, self.elementwise + elementwise
            return
        with self:
            function(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        name = packet.__name__
        if (macs := _products(packet, name, args, kwargs, out)) is not None:
            self.macs += macs
            self.elementwise += _numel(out) if _adds(name, args) else 0
        elif (scalars := _scalars(func, name, args, out)) is not None:
            self.elementwise += scalars
        elif func.namespace == "aten":
            self.uncounted[name] += 1
        elif func.namespace not in ("prim", "prims"):
            self.uncounted[f"{func.namespace}.{name}"] += 1
        return out


def moves_only(name: str) -> bool:
    """Whether an operator of that name moves, indexes, renames or creates data and computes nothing."""
    return name in _FREE or name.rstrip("_") in _FREE


def _products(packet: Any, name: str, args: Any, kwargs: Any, out: Any) -> int | None:
    """MACs of a product of tensors; None when the operator is none."""
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out)) // 2
    if name in ("mv", "dot", "vdot"):
        return _numel(args[0])
    if name in ("addmv", "addbmm"):  # the first argument is what the product is added to
        return _numel(args[1]) * (int(args[2].shape[-1]) if name == "addbmm" else 1)
    if name == "_trilinear":  # of a bilinear layer: for every output a matrix [A, B] between [rows, A] and [rows, B]
        left, weight, right = args[:3]
        return int(left.shape[0]) * (_numel(weight) + int(weight.shape[0] * right.shape[-1]))
    return None


def _adds(name: str, args: Any) -> bool:
    """Whether the product ends with an addition: a bias, or what `addmm` and its kin add to."""
    return name.startswith(("addm", "addb", "baddbmm")) or (name.endswith("convolution") and len(args) > 2 and args[2] is not None)


def _scalars(func: Any, name: str, args: Any, out: Any) -> int | None:
    """Scalar operations of an operator outside the MACs; None when nothing is known of it."""
    if func.namespace != "aten":
        return None
    base = name.rstrip("_") if not name.startswith("_") else name
    if base in _PER_ELEMENT:
        return _PER_ELEMENT[base] * _numel(args)
    if base in _PER_OUTPUT:
        return _PER_OUTPUT[base] * _numel(out)
    if moves_only(name):
        return 0
    if name in _NORMALIZATIONS:  # scale and shift; fixed statistics are constants, others take a mean and a variance
        training = next((arg for arg in args if isinstance(arg, bool)), False)
        return (4 if training else 2) * _numel(args)
    if name in ("_embedding_bag", "_embedding_bag_forward_only"):
        return _numel(args[1]) * int(args[0].shape[-1])
    if name in _POOLS:
        window = args[1] if isinstance(args[1], list | tuple) else [args[1]]
        spatial = int(name.split("pool")[1][0])
        return _numel(out[0] if isinstance(out, tuple) else out) * int(prod(window) ** (spatial if len(window) == 1 else 1))
    if torch.Tag.reduction in func.tags or name in ("max", "min") or base in ("mean", "sum"):
        return max(_numel(args), _numel(out))
    if torch.Tag.pointwise in func.tags or base in ("copysign", "clamp", "relu", "silu", "addr"):
        return _numel(out)
    return None


def _numel(values: Any) -> int:
    """Elements of the largest tensor among the values."""
    return max((leaf.numel() for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)), default=0)


# ---- operators counted whole, by closed form


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[int, int]:
    """Scores and weighted sum: [.., L, E] x [.., S, E] and [.., L, S] x [.., S, Ev]; softmax over [.., L, S]."""
    try:
        heads = prod(torch.broadcast_shapes(query.shape[:-2], key.shape[:-2]))  # type: ignore[no-untyped-call]
    except RuntimeError:  # grouped: every head of the keys serves several of the queries
        heads = prod(query.shape[:-2])
    scores = heads * query.shape[-2] * key.shape[-2]
    return scores * (query.shape[-1] + value.shape[-1]), _PER_ELEMENT["_softmax"] * scores


def _recurrent(*args: Any, **_: Any) -> tuple[int, int]:
    """Every step multiplies every weight matrix of every layer and direction once; each gate adds and squashes."""
    weights, packed = _recurrent_weights(args)
    rows = args[0].shape[0] if packed else prod(args[0].shape[:-1])
    matrices = [w for w in weights if w.ndim == 2]
    layers, bidirectional = (args[5], args[8]) if packed else (args[4], args[7])
    runs = layers * (2 if bidirectional else 1)  # each has two matrices, and a third where the state is projected
    gates = sum(w.shape[0] for i, w in enumerate(matrices) if i % (len(matrices) // runs) == 0)
    return rows * sum(w.numel() for w in matrices), 2 * rows * gates


def _recurrent_weights(args: Any) -> tuple[Any, bool]:
    """Matrices and biases of all layers, and whether the input is packed (data, batch sizes, state, weights)."""
    packed = isinstance(args[1], Tensor) and args[1].ndim == 1
    return args[3 if packed else 2], packed


def _cell(x: Tensor, _: Any, w_ih: Tensor, w_hh: Tensor, *__: Any, **___: Any) -> tuple[int, int]:
    """One step of one layer."""
    rows = x.shape[0] if x.ndim == 2 else 1
    return rows * (w_ih.numel() + w_hh.numel()), 2 * rows * w_ih.shape[0]


_WHOLE: dict[str, Callable[..., tuple[int, int]]] = {
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(_RECURRENT, _recurrent),
    **dict.fromkeys((f"{name}_cell" for name in _RECURRENT), _cell),
}


def is_recurrent(name: str) -> bool:
    """Whether an operator of that name runs step after step."""
    return name.removesuffix("_cell") in _RECURRENT


def recurrent_steps(name: str, args: Any) -> int:
    """Steps that wait for one another: time steps times layers times directions; 1 for a cell."""
    if name not in _RECURRENT:
        return 1
    _, packed = _recurrent_weights(args)
    layers, bidirectional = (args[5], args[8]) if packed else (args[4], args[7])
    time = args[1].shape[0] if packed else args[0].shape[1 if args[8] else 0]
    return int(time * layers * (2 if bidirectional else 1))


@contextmanager
def unfused() -> Iterator[None]:
    """Attention and recurrent layers as the matrix products they are made of, which have formulas; fused kernels have none."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet(), sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
