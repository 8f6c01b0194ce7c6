# ruff: noqa: ARG001  # all rules have one signature
"""What every operator does to the channels that flow through it (see `graph/flow.py`)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from sizewise.graph.flow import FILLED, Flow, Rule, Split, Value, operator, scope, shape_of
from sizewise.graph.labels import Indices
from sizewise.graph.surgery import is_grouped

__all__ = ["RULES"]

Args = dict[str, Any]
_NO_CHANNELS = "meets values that are no channels, in {}"


def _none(node: Node) -> Value:
    return Value((None,) * len(shape_of(node)))


def _dim(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def _with(value: Value, dim: int, labels: Indices | None) -> Value:
    return Value((*value.dims[:dim], labels, *value.dims[dim + 1 :]), value.blank)


# --- layers with weights


def _linear(flow: Flow, node: Node, args: Args) -> Value:
    x = flow.value(args["input"])
    found = flow.layer(args["weight"], nn.Linear)
    if found is None:
        flow.freeze(Value(x.dims[-1:]), flow.strange(node, args["weight"]))
        flow.freeze(flow.value(args["weight"]), "used as weights")
        return Value((*x.dims[:-1], None))
    path, layer = found
    flow.join(x.dims[-1], flow.axis(layer, "in"), f"read by {path} beside values that are no channels")
    return Value((*x.dims[:-1], flow.axis(layer, "out")))


def _conv(flow: Flow, node: Node, args: Args) -> Value:
    x = flow.value(args["input"])
    found, rank = flow.layer(args["weight"], nn.modules.conv._ConvNd), len(shape_of(node))
    dim = rank - len(shape_of(args["weight"])) + 1  # of channels; there may be no batch
    if found is None:
        flow.freeze(x, flow.strange(node, args["weight"]))
        return _none(node)
    path, layer = found
    source = x.dims[dim]
    reason = f"read by {path} beside values that are no channels"
    if is_grouped(layer):
        return _with(_none(node), dim, _grouped(flow, layer, source, reason))
    flow.join(source, flow.axis(layer, "in"), reason)
    return _with(_none(node), dim, flow.axis(layer, "out"))


def _grouped(flow: Flow, layer: nn.Module, source: Indices | None, reason: str) -> Indices | None:
    """Groups go whole: all their inputs and outputs together."""
    out = flow.axis(layer, "out")
    if source is None:
        flow.labels.freeze(out, reason)
        return out
    groups, both = int(layer.groups), (out, source)  # type: ignore[arg-type]
    first = out.reshape(groups, -1)[:, 0]
    for labels in both:
        for column in labels.reshape(groups, -1).T:
            flow.labels.join(first, np.ascontiguousarray(column))
    return out


def _norm(flow: Flow, node: Node, args: Args) -> Value:
    """Batch and instance normalization: every channel alone."""
    x = flow.value(args["input"])
    found = next((f for name in ("weight", "running_mean") if (f := flow.layer(args.get(name))) is not None), None)
    labels = x.dims[1]
    if found is not None:
        labels = flow.join(labels, flow.axis(found[1], "out"), f"normalized by {found[0]} beside values that are no channels")
    return _with(_same(flow, node, args), 1, labels)


def _group_norm(flow: Flow, node: Node, args: Args) -> Value:
    x, groups = flow.value(args["input"]), int(args["num_groups"])
    labels = x.dims[1]
    if labels is not None:
        if groups == 1:
            flow.labels.freeze(labels, "a normalization over all channels mixes them")
        for column in labels.reshape(groups, -1).T:
            flow.labels.join(labels.reshape(groups, -1)[:, 0].copy(), column.copy())
        found = flow.layer(args["weight"])
        if found is not None:
            flow.join(labels, flow.axis(found[1], "out"), "")
    return _with(_same(flow, node, args), 1, labels)


def _layer_norm(flow: Flow, node: Node, args: Args) -> Value:
    x = flow.value(args["input"])
    name = str(getattr(args.get("weight"), "name", ""))
    path = flow._tensors.get(name, "").rpartition(".")[0]
    count = len(args["normalized_shape"])
    where = f"{path}, a {type(flow.model.get_submodule(path)).__name__}," if path else "a normalization"
    flow.freeze(Value(x.dims[-count:]), f"{where} mixes them")
    return Value((*x.dims[:-count], *(None,) * count))


def _recurrent(flow: Flow, node: Node, args: Args) -> tuple[Value, ...]:
    found = flow.layer(args["params"][0], nn.RNNBase) if "batch_sizes" not in args else None
    if found is None:
        reason = flow.strange(node, args["params"][0])
        for source in node.all_input_nodes:
            flow.freeze(flow.value(source), reason)
        return tuple(Value((None,) * item.ndim) for item in node.meta["val"])
    path, layer = found
    x = flow.value(args["input"])
    flow.join(x.dims[-1], flow.axis(layer, "in"), f"read by {path} beside values that are no channels")
    hidden = flow.axis(layer, "out")
    states = args["hx"] if isinstance(args["hx"], list | tuple) else [args["hx"]]
    for state in states:
        if not flow.value(state).blank:
            flow.join(flow.value(state).dims[-1], hidden, f"{path} begins with a state that is given")
    wide = np.concatenate([hidden] * (2 if args["bidirectional"] else 1))
    return Value((None, None, wide)[-len(shape_of(args["input"])) :]), *(Value((None, None, hidden)) for _ in states)


def _cell(flow: Flow, node: Node, args: Args) -> Value | tuple[Value, ...]:
    found = flow.layer(args["w_ih"], nn.RNNCellBase)
    states = args["hx"] if isinstance(args["hx"], list | tuple) else [args["hx"]]
    if found is None:
        reason = flow.strange(node, args["w_ih"])
        for source in node.all_input_nodes:
            flow.freeze(flow.value(source), reason)
        return _nothing_of(node)
    path, layer = found
    x, hidden = flow.value(args["input"]), flow.axis(layer, "out")
    flow.join(x.dims[-1], flow.axis(layer, "in"), f"read by {path} beside values that are no channels")
    for state in states:
        if not flow.value(state).blank:
            flow.join(flow.value(state).dims[-1], hidden, f"{path} begins with a state that is given")
    out = Value((None, hidden)[-len(shape_of(args["input"])) :])
    return (out, out) if len(states) == 2 else out


def _nothing_of(node: Node) -> Value | tuple[Value, ...]:
    found = node.meta["val"]
    return tuple(Value((None,) * item.ndim) for item in found) if isinstance(found, tuple | list) else _none(node)


def _embedding(flow: Flow, node: Node, args: Args) -> Value:
    found = flow.layer(args["weight"], nn.Embedding)
    if found is None:
        flow.strange(node, args["weight"])
    labels = flow.axis(found[1], "out") if found is not None else None
    return Value((*(None,) * (len(shape_of(node)) - 1), labels))


def _prelu(flow: Flow, node: Node, args: Args) -> Value:
    x, found = flow.value(args["self"]), flow.layer(args["weight"], nn.PReLU)
    if found is not None and len(x.dims) > 1:
        flow.join(x.dims[1], flow.axis(found[1], "out"), f"scaled by {found[0]} beside values that are no channels")
    return x


# --- operators that combine values


def _pointwise(flow: Flow, node: Node, args: Args) -> Value:
    shape = shape_of(node)
    sources = [(flow.value(source), shape_of(source)) for source in node.all_input_nodes if shape_of(source)]
    own = next((name for source in node.all_input_nodes if (name := flow.tensor(source)) is not None), None)
    reason = _NO_CHANNELS.format(operator(node)) if own is None else f"combined with {own}, which belongs to no layer that surgery knows"
    dims: list[Indices | None] = []
    for place, size in enumerate(shape):
        found: list[Indices | None] = []
        for value, sizes in sources:
            dim = place - len(shape) + len(sizes)
            if dim >= 0 and sizes[dim] == size and not value.blank:
                found.append(value.dims[dim])
        dims.append(_joined(flow, found, reason))
    return Value(tuple(dims), all(value.blank for value, _ in sources))


def _joined(flow: Flow, found: Sequence[Indices | None], reason: str) -> Indices | None:
    if not any(labels is not None for labels in found):
        return None
    result = found[0]
    for labels in found[1:]:
        result = flow.join(result, labels, reason)
    return result


def _matmul(flow: Flow, node: Node, args: Args) -> Value:
    a, b = (flow.value(args[name]) for name in (("self", "mat2") if "mat2" in args else ("self", "other")))
    if len(a.dims) < 2 or len(b.dims) < 2:
        flow.freeze(a, "flows into a product of vectors")
        flow.freeze(b, "flows into a product of vectors")
        return _none(node)
    flow.join(a.dims[-1], b.dims[-2], "multiplied with values that are no channels")
    sizes = [shape_of(args["self"]), shape_of(args["mat2" if "mat2" in args else "other"])]
    outer = _broadcast(flow, [(a, sizes[0]), (b, sizes[1])], shape_of(node)[:-2], 2)
    return Value((*outer, a.dims[-2], b.dims[-1]))


def _broadcast(flow: Flow, sources: Sequence[tuple[Value, tuple[int, ...]]], shape: Sequence[int], inner: int) -> list[Indices | None]:
    """The dimensions before the last `inner` ones, aligned at their ends."""
    dims: list[Indices | None] = []
    for place, size in enumerate(shape):
        found = []
        for value, sizes in sources:
            dim = place - len(shape) + len(sizes) - inner
            if dim >= 0 and sizes[dim] == size:
                found.append(value.dims[dim])
        dims.append(_joined(flow, found, "multiplied with values that are no channels"))
    return dims


def _attention(flow: Flow, node: Node, args: Args) -> Value:
    names = ("query", "key", "value")
    query, key, value = (flow.value(args[name]) for name in names)
    sources = [(flow.value(args[name]), shape_of(args[name])) for name in names]
    mask = args.get("attn_mask")
    if mask is not None:
        sources.append((flow.value(mask), shape_of(mask)))
    inner = flow.join(query.dims[-1], key.dims[-1], "multiplied with values that are no channels")
    if inner is not None and args.get("scale") is None:
        flow.labels.freeze(inner, "attention scales by their number")
    return Value((*_broadcast(flow, sources, shape_of(node)[:-2], 2), query.dims[-2], value.dims[-1]))


def _einsum(flow: Flow, node: Node, args: Args) -> Value:
    equation, operands = args["equation"].replace(" ", ""), args["tensors"]
    if "." in equation or "->" not in equation:
        for source in operands:
            flow.freeze(flow.value(source), "flows into einsum with an open equation")
        return _none(node)
    left, right = equation.split("->")
    found: dict[str, list[Indices | None]] = {}
    for letters, source in zip(left.split(","), operands, strict=True):
        for letter, labels in zip(letters, flow.value(source).dims, strict=True):
            found.setdefault(letter, []).append(labels)
    joined = {letter: _joined(flow, labels, "multiplied with values that are no channels") for letter, labels in found.items()}
    for letter, labels in joined.items():
        if letter not in right and len(found[letter]) == 1 and labels is not None:
            flow.labels.freeze(labels, "summed over")
    return Value(tuple(joined[letter] for letter in right))


def _cat(flow: Flow, node: Node, args: Args) -> Value:
    sources = [source for source in args["tensors"] if math.prod(shape_of(source))]
    values = [flow.value(source) for source in sources]
    rank = len(shape_of(node))
    dim = _dim(int(args["dim"]), rank)
    dims: list[Indices | None] = []
    for place in range(rank):
        column = [value.dims[place] for value in values]
        if place != dim:
            dims.append(_joined(flow, [c for c, v in zip(column, values, strict=True) if not v.blank], _NO_CHANNELS.format("cat")))
        elif any(labels is not None for labels in column):
            dims.append(np.concatenate([_filled(flow, c, shape_of(s)[dim]) for c, s in zip(column, sources, strict=True)]))
        else:
            dims.append(None)
    return Value(tuple(dims))


def _filled(flow: Flow, labels: Indices | None, size: int, reason: str = "no channels of a layer") -> Indices:
    """Labels, or frozen ones where there are none."""
    if labels is not None:
        return labels
    new = flow.labels.fresh(size)
    flow.labels.freeze(new, reason)
    return new


def _stack(flow: Flow, node: Node, args: Args) -> Value:
    values = [flow.value(source) for source in args["tensors"]]
    dims = [_joined(flow, [v.dims[place] for v in values], _NO_CHANNELS.format("stack")) for place in range(len(values[0].dims))]
    dim = _dim(int(args["dim"]), len(dims) + 1)
    return Value((*dims[:dim], None, *dims[dim:]))


# --- operators that keep or drop dimensions


def _same(flow: Flow, node: Node, args: Args) -> Value:
    """Every index of a dimension stays where it is; dimensions of another size, such as pooled ones, are no channels."""
    source = next(source for source in node.all_input_nodes if shape_of(source))
    value, before, after = flow.value(source), shape_of(source), shape_of(node)
    if len(before) != len(after):
        flow.freeze(value, f"flows into {operator(node)}, through which channels are not followed")
        return _none(node)
    dims: list[Indices | None] = []
    for labels, old, new in zip(value.dims, before, after, strict=True):
        if labels is not None and old != new:
            flow.labels.freeze(labels, f"{operator(node)} changes their number")
        dims.append(labels if old == new else None)
    return Value(tuple(dims), value.blank)


def _several_same(flow: Flow, node: Node, args: Args) -> Value | tuple[Value, ...]:
    """The same for operators that give an index beside the values."""
    value = flow.value(node.args[0])
    return tuple(value for _ in node.meta["val"])


def _blank(flow: Flow, node: Node, args: Args) -> Value:
    return Value((None,) * len(shape_of(node)), blank=True)


def _reduce(flow: Flow, node: Node, args: Args) -> Value | tuple[Value, ...]:
    value, rank = flow.value(args["self"]), len(shape_of(args["self"]))
    given = args.get("dim")
    chosen = range(rank) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {_dim(dim, rank) for dim in chosen}
    for dim in gone:
        if value.dims[dim] is not None:
            flow.freeze(Value((value.dims[dim],)), f"{operator(node)} runs over them")
    kept = tuple(None if dim in gone else labels for dim, labels in enumerate(value.dims) if dim not in gone or args.get("keepdim"))
    found = node.meta["val"]
    return tuple(Value(kept) for _ in found) if isinstance(found, tuple | list) else Value(kept)


def _along(flow: Flow, node: Node, args: Args) -> Value | tuple[Value, ...]:
    """Operators that mix or move indices along given dimensions and keep the others."""
    source = args.get("self", args.get("input"))
    value, rank = flow.value(source), len(shape_of(source))
    given = args.get("dim", args.get("dims"))
    mixed = {_dim(dim, rank) for dim in ([given] if isinstance(given, int) else given or range(rank))}
    for dim in mixed:
        flow.freeze(Value((value.dims[dim],)), f"{operator(node)} runs over them")
    out = Value(tuple(None if dim in mixed else labels for dim, labels in enumerate(value.dims)))
    found = node.meta["val"]
    return tuple(out for _ in found) if isinstance(found, tuple | list) else out


def _transpose(flow: Flow, node: Node, args: Args) -> Value:
    dims = list(flow.value(args["self"]).dims)
    a, b = (_dim(int(args.get(name, place)), len(dims)) for place, name in enumerate(("dim0", "dim1")))
    if len(dims) > 1:
        dims[a], dims[b] = dims[b], dims[a]
    return Value(tuple(dims))


def _mirrored(flow: Flow, node: Node, args: Args) -> Value:
    dims = flow.value(args["self"]).dims
    return Value((*dims[:-2], *reversed(dims[-2:]))) if operator(node) in ("mT", "matrix_H", "mH") else Value(tuple(reversed(dims)))


def _permute(flow: Flow, node: Node, args: Args) -> Value:
    dims = flow.value(args["self"]).dims
    return Value(tuple(dims[_dim(dim, len(dims))] for dim in args["dims"]))


def _movedim(flow: Flow, node: Node, args: Args) -> Value:
    dims = flow.value(args["self"]).dims
    source, target = ([args[n]] if isinstance(args[n], int) else args[n] for n in ("source", "destination"))
    pairs = {_dim(t, len(dims)): dims[_dim(s, len(dims))] for s, t in zip(source, target, strict=True)}
    moved = {_dim(s, len(dims)) for s in source}
    rest = iter([labels for dim, labels in enumerate(dims) if dim not in moved])
    return Value(tuple(pairs[dim] if dim in pairs else next(rest) for dim in range(len(dims))))


def _select(flow: Flow, node: Node, args: Args) -> Value:
    value = flow.value(args["self"])
    dim = _dim(int(args["dim"]), len(value.dims))
    flow.freeze(Value((value.dims[dim],)), "one of them is picked by its number")
    return Value((*value.dims[:dim], *value.dims[dim + 1 :]))


def _unbind(flow: Flow, node: Node, args: Args) -> tuple[Value, ...]:
    one = _select(flow, node, args)
    return tuple(one for _ in node.meta["val"])


def _slice(flow: Flow, node: Node, args: Args) -> Value:
    value, before, after = flow.value(args["self"]), shape_of(args["self"]), shape_of(node)
    dim = _dim(int(args.get("dim", 0)), len(before))
    labels = value.dims[dim]
    if before[dim] == after[dim] or labels is None:
        return value
    flow.labels.freeze(labels, "a part of them is picked by numbers")
    return _with(value, dim, labels[slice(args.get("start"), args.get("end"), args.get("step", 1))])


def _chunk(flow: Flow, node: Node, args: Args) -> tuple[Value, ...]:
    """Parts of equal size, whatever the size: all lose the same places."""
    value = flow.value(args["self"])
    dim = _dim(int(args["dim"]), len(value.dims))
    labels, sizes = value.dims[dim], [int(item.shape[dim]) for item in node.meta["val"]]
    if labels is None:
        return tuple(value for _ in sizes)
    parts = [labels[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    if operator(node) != "chunk" or len(set(sizes)) > 1:
        flow.labels.freeze(labels, "they are split at fixed places")
    else:
        for part in parts[1:]:
            flow.labels.join(parts[0], part)
    return tuple(_with(value, dim, part) for part in parts)


def _shuffle(flow: Flow, node: Node, args: Args) -> Value:
    """Parts of equal size interleaved: all lose the same places."""
    value, groups = flow.value(args["self"]), int(args["groups"])
    labels = value.dims[1]
    if labels is None:
        return value
    parts = labels.reshape(groups, -1)
    for part in parts[1:]:
        flow.labels.join(parts[0], part)
    return _with(value, 1, parts.T.flatten())


def _glu(flow: Flow, node: Node, args: Args) -> Value:
    value = flow.value(args["self"])
    dim = _dim(int(args["dim"]), len(value.dims))
    labels = value.dims[dim]
    if labels is None:
        return value
    half = len(labels) // 2
    flow.labels.join(labels[:half], labels[half:])
    return _with(value, dim, labels[:half])


def _pad(flow: Flow, node: Node, args: Args) -> Value:
    value = flow.value(args["self"])
    sides: list[int] = list(args.get("pad", args.get("padding")) or [])
    dims = list(value.dims)
    for place in range(len(sides) // 2):
        dim, (before, after) = len(dims) - 1 - place, sides[2 * place : 2 * place + 2]
        labels = dims[dim]
        if labels is None or not (before or after):
            continue
        if min(before, after) < 0 or args.get("mode", "constant") != "constant":
            flow.labels.freeze(labels, "padding repeats or drops some of them")
            dims[dim] = None
            continue
        reason = "padded with channels of zeros"
        dims[dim] = np.concatenate([_filled(flow, None, before, reason), labels, _filled(flow, None, after, reason)])
    return Value(tuple(dims))


def _expand(flow: Flow, node: Node, args: Args) -> Value:
    source = args["self"]
    value, before, after = flow.value(source), shape_of(source), shape_of(node)
    new = len(after) - len(before)
    dims = [None if old != size else labels for labels, old, size in zip(value.dims, before, after[new:], strict=True)]
    return Value((*(None,) * new, *dims), value.blank)


def _index(flow: Flow, node: Node, args: Args) -> Value:
    """Leading dimensions picked by tensors of numbers."""
    value, indices = flow.value(args["self"]), args["indices"]
    picked = len(indices)
    if any(index is None for index in indices):
        flow.freeze(value, "picked by tensors of numbers")
        return _none(node)
    flow.freeze(Value(value.dims[:picked]), "picked by tensors of numbers")
    rest = value.dims[picked:]
    return Value((*(None,) * (len(shape_of(node)) - len(rest)), *rest))


# --- reshapes


def _reshape(flow: Flow, node: Node, args: Args) -> Value:
    source = args["self"]
    value, before, after = flow.value(source), shape_of(source), shape_of(node)
    if value.blank:
        return Value((None,) * len(after), blank=True)
    dims: list[Indices | None] = [None] * len(after)
    for old, new in _segments(before, after):
        old, new = [d for d in old if before[d] != 1], [d for d in new if after[d] != 1]
        if not any(value.dims[d] is not None for d in old) or not new:
            continue
        flat = _merged(flow, [value.dims[d] for d in old], [before[d] for d in old])
        for dim, labels in zip(new, _taken_apart(flow, node, flat, [after[d] for d in new]), strict=True):
            dims[dim] = labels
    return Value(tuple(dims))


def _segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of dimensions with equal products, from the left."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(old), j + len(new)
        while (left := math.prod(before[d] for d in old)) != (right := math.prod(after[d] for d in new)):
            if left < right:
                old.append(i)
                i += 1
            else:
                new.append(j)
                j += 1
        found.append((old, new))
    return found


def _merged(flow: Flow, dims: Sequence[Indices | None], sizes: Sequence[int]) -> Indices:
    """Labels of the flattened dimensions; of several with channels, the outermost counts."""
    place = next(place for place, labels in enumerate(dims) if labels is not None)
    for labels in dims[place + 1 :]:
        if labels is not None:
            flow.labels.freeze(labels, "flattened together with other channels")
    chosen = dims[place]
    assert chosen is not None
    outer, inner = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
    return np.tile(np.repeat(chosen, inner), outer)


def _taken_apart(flow: Flow, node: Node, flat: Indices, sizes: Sequence[int]) -> list[Indices | None]:
    """Labels of the parts: one part carries them, and what shares its index goes together.

    Where labels repeat along a part, as along a batch that was merged with heads, it carries none.
    """
    if len(sizes) == 1:
        return [flat]
    table = flat.reshape(sizes)
    differs = [place for place in range(len(sizes)) if (table != table.take([0], place)).any()] or [0]
    part = flow.parts.get(node.name, differs[0])
    rows = np.moveaxis(table, part, 0).reshape(sizes[part], -1)
    for column in rows.T[1:]:
        flow.labels.join(rows[:, 0].copy(), column.copy())
    flow.splits.append(Split(node.name, scope(node), flat, tuple(sizes), part, next((p for p in differs if p > part), None)))
    return [rows[:, 0].copy() if place == part else None for place in range(len(sizes))]


def _table(*pairs: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in pairs for name in names.split()}


RULES: dict[str, Rule] = _table(
    (_linear, "linear"),
    (_conv, "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"),
    (_norm, "batch_norm instance_norm"),
    (_group_norm, "group_norm"),
    (_layer_norm, "layer_norm rms_norm"),
    (_recurrent, "gru lstm rnn_tanh rnn_relu"),
    (_cell, "gru_cell lstm_cell rnn_tanh_cell rnn_relu_cell"),
    (_embedding, "embedding"),
    (_prelu, "prelu"),
    (_pointwise, "(pointwise) masked_fill masked_fill_ where add_ sub_ mul_ div_ clamp_ fill copy bitwise_and maximum minimum"),
    (_matmul, "matmul mm bmm"),
    (_attention, "scaled_dot_product_attention"),
    (_einsum, "einsum"),
    (_cat, "cat concat concatenate"),
    (_stack, "stack"),
    (
        _same,
        "dropout feature_dropout alpha_dropout dropout_ contiguous clone detach detach_ alias lift_fresh_copy to _to_copy type_as"
        " relu_ relu6 relu6_ hardtanh_ hardswish_ silu_ leaky_relu leaky_relu_ elu_ gelu celu selu rrelu hardsigmoid_ sigmoid_ tanh_"
        " avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
        " adaptive_max_pool1d adaptive_max_pool2d _adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d"
        " upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact2d"
        " reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d",
    ),
    (_several_same, "max_pool2d_with_indices max_pool1d_with_indices"),
    (_blank, " ".join(FILLED)),
    (_reduce, "mean sum amax amin max min var std prod argmax argmin logsumexp any all norm linalg_vector_norm"),
    (_along, "softmax log_softmax _softmax cumsum flip roll sort topk normalize"),
    (_transpose, "transpose swapaxes t"),
    (_mirrored, "mT numpy_T"),
    (_permute, "permute"),
    (_movedim, "movedim moveaxis"),
    (_select, "select"),
    (_unbind, "unbind"),
    (_slice, "slice narrow"),
    (_chunk, "chunk split split_with_sizes tensor_split"),
    (_shuffle, "channel_shuffle native_channel_shuffle"),
    (_glu, "glu"),
    (_pad, "pad constant_pad_nd"),
    (_expand, "expand expand_as"),
    (_index, "index"),
    (_reshape, "view reshape flatten unflatten squeeze unsqueeze _unsafe_view view_as reshape_as ravel"),
)
