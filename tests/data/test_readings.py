"""What flows into the weights that read channels, against hooks and loops."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.data.readings import WIDEST, Reading, reading_grams, readings, recurrent_kind
from sizewise.errors import PreconditionError
from sizewise.graph.groups import Group, Member
from sizewise.protocols import Inputs


class Run(nn.Module):
    """One layer, given its input by position or by name."""

    def __init__(self, layer: nn.Module, by_name: bool = False) -> None:
        super().__init__()
        self.layer, self.by_name = layer, by_name

    def forward(self, *x: Tensor) -> Any:
        return self.layer(input=x[0]) if self.by_name else self.layer(*x)


def group(layer: nn.Module, axis: str, channel_of: tuple[int, ...]) -> Group:
    return Group(max(channel_of) + 1, (Member("layer", axis, channel_of),))


def batches(*shape: int, count: int = 2) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    return [Inputs((torch.randn(shape, generator=generator),)) for _ in range(count)]


def columns_of(layer: Any, x: Tensor, taps: bool) -> Iterator[Tensor]:
    """Every row of a convolution's unfolded input, one position after the other."""
    padded = nn.functional.pad(x, [layer.padding[0]] * 2 * (x.ndim - 2)) if taps else x
    if not taps:
        yield from x.movedim(1, -1).reshape(-1, x.shape[1])
        return
    (kernel, *_), (stride, *_), (dilation, *_) = layer.kernel_size, layer.stride, layer.dilation
    spread = dilation * (kernel - 1)
    for example in padded:
        for top in range(0, padded.shape[2] - spread, stride):
            if x.ndim == 3:
                yield example[:, top : top + spread + 1 : dilation].flatten()
                continue
            for left in range(0, padded.shape[3] - spread, stride):
                yield example[:, top : top + spread + 1 : dilation, left : left + spread + 1 : dilation].flatten()


def assert_moments(model: nn.Module, reading: Reading, data: list[Inputs], rows: list[Tensor]) -> None:
    found = reading_grams(model, [reading], data)[reading.path, reading.tensor]
    stacked = torch.stack(rows).double()
    assert found.n == len(rows)
    assert torch.allclose(found.mean[0], stacked.mean(0), atol=1e-5)
    assert torch.allclose(found.products[0], stacked.T @ stacked / len(rows), atol=1e-5)
    assert reading.size == stacked.shape[1]


@pytest.mark.parametrize("by_name", [False, True])
def test_rows_of_a_linear_layer_are_its_inputs_at_every_position(by_name: bool) -> None:
    layer = nn.Linear(4, 3)
    model, data = Run(layer, by_name), batches(2, 5, 4)
    (reading,) = readings(model, group(layer, "in", (1, -1, 0, 1)))
    assert_moments(model, reading, data, [row for batch in data for row in batch.args[0].reshape(-1, 4)])
    assert reading.columns(2) == [[2], [0, 3]]
    assert torch.equal(reading.matrix(layer), layer.weight)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 2, 3, 2, 1), (2, 3, 5, 5)),
        (nn.Conv2d(3, 2, 2, dilation=2, bias=False), (2, 3, 5, 5)),
        (nn.Conv1d(3, 2, 3, padding=1), (2, 3, 6)),
        (nn.Conv2d(3, 2, 1), (2, 3, 4, 4)),
    ],
)
def test_rows_of_a_convolution_are_its_unfolded_inputs(layer: Any, shape: tuple[int, ...]) -> None:
    model, data = Run(layer), batches(*shape)
    (reading,) = readings(model, group(layer, "in", (0, 1, -1)))
    taps = layer.weight[0, 0].numel()
    assert_moments(model, reading, data, [row for batch in data for row in columns_of(layer, batch.args[0], taps=True)])
    assert reading.columns(2) == [list(range(taps)), list(range(taps, 2 * taps))]
    outputs = torch.stack(list(columns_of(layer, data[0].args[0], taps=True))) @ reading.matrix(layer).T
    bias = 0 if layer.bias is None else layer.bias
    assert torch.allclose(outputs + bias, layer(data[0].args[0]).movedim(1, -1).reshape(-1, 2), atol=1e-5)


def test_rows_of_a_picture_without_a_batch() -> None:
    layer = nn.Conv2d(3, 2, 3)
    model, data = Run(layer), batches(3, 5, 5)
    (reading,) = readings(model, group(layer, "in", (0, 1, 2)))
    assert_moments(model, reading, data, [row for batch in data for row in columns_of(layer, batch.args[0].unsqueeze(0), taps=True)])


def test_a_volume_has_taps_in_three_directions() -> None:
    layer = nn.Conv3d(2, 3, 2)
    model, data = Run(layer), batches(2, 2, 3, 3, 3)
    (reading,) = readings(model, group(layer, "in", (0, 1)))
    rows = [
        x[:, a : a + 2, b : b + 2, c : c + 2].flatten()
        for batch in data
        for x in batch.args[0]
        for a in range(2)
        for b in range(2)
        for c in range(2)
    ]
    assert_moments(model, reading, data, rows)


@pytest.mark.parametrize("layer", [nn.Conv2d(WIDEST // 9 + 1, 2, 3), nn.ConvTranspose2d(4, 3, 2)])
def test_wide_and_transposed_convolutions_are_read_channel_by_channel(layer: Any) -> None:
    width = layer.in_channels
    model, data = Run(layer), batches(1, width, 3, 3)
    (reading,) = readings(model, group(layer, "in", tuple(range(width))))
    assert reading.taps == 1
    assert_moments(model, reading, data, [row for batch in data for row in columns_of(layer, batch.args[0], taps=False)])
    matrix = reading.matrix(layer)
    assert matrix.shape == (layer.weight.numel() // width, width)
    assert torch.equal(reading.like(layer, matrix), layer.weight)
    changed = matrix.clone()
    changed[:, 1] = 0  # a channel's column is what multiplies that channel
    weight = reading.like(layer, changed)
    assert not (weight[1] if isinstance(layer, nn.ConvTranspose2d) else weight[:, 1]).any()


RECURRENT: list[tuple[Any, dict[str, Any]]] = [
    (nn.GRU, {}),
    (nn.GRU, {"batch_first": True, "num_layers": 2}),
    (nn.LSTM, {"bidirectional": True}),
    (nn.LSTM, {"batch_first": True, "num_layers": 2, "bidirectional": True}),
    (nn.RNN, {"num_layers": 2, "bias": False}),
    (nn.RNN, {"nonlinearity": "relu"}),
]


def _step(layer: Any, x: Tensor, state: tuple[Tensor, Tensor], suffix: str) -> tuple[Tensor, Tensor]:
    """One time step by torch's own cell."""
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][: 4 if layer.bias else 2]
    make: Any = {nn.GRU: nn.GRUCell, nn.LSTM: nn.LSTMCell, nn.RNN: nn.RNNCell}[type(layer)]
    relu = {"nonlinearity": "relu"} if getattr(layer, "nonlinearity", "") == "relu" else {}
    cell = make(x.shape[-1], layer.hidden_size, bias=layer.bias, **relu)
    cell.load_state_dict({name: getattr(layer, name + suffix) for name in names})
    with torch.no_grad():
        found = cell(x, state if isinstance(layer, nn.LSTM) else state[0])
    return found if isinstance(found, tuple) else (found, found)


def _slow_rows(layer: Any, x: Tensor) -> dict[str, list[Tensor]]:
    """By name of the weight, what it multiplies at every step, one step after the other."""
    steps = list(x.transpose(0, 1) if layer.batch_first else x)
    rows: dict[str, list[Tensor]] = {}
    for number in range(layer.num_layers):
        outputs = []
        for direction in ("", "_reverse")[: 2 if layer.bidirectional else 1]:
            suffix = f"_l{number}{direction}"
            state = (torch.zeros(len(steps[0]), layer.hidden_size),) * 2
            out = []
            for step in reversed(steps) if direction else steps:
                rows.setdefault("weight_ih" + suffix, []).extend(step)
                rows.setdefault("weight_hh" + suffix, []).extend(state[0])
                state = _step(layer, step, state, suffix)
                out.append(state[0])
            outputs.append(out[::-1] if direction else out)
        steps = [torch.cat(parts, -1) for parts in zip(*outputs, strict=True)]
    return rows


@pytest.mark.parametrize(("kind", "options"), RECURRENT)
def test_rows_of_recurrent_layers_are_those_of_a_loop_over_cells(kind: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, **options)
    model, data = Run(layer), batches(5, 2, 3)
    slow: dict[str, list[Tensor]] = {}
    for batch in data:
        for name, rows in _slow_rows(layer, batch.args[0]).items():
            slow.setdefault(name, []).extend(rows)
    hidden, inputs = readings(model, group(layer, "out", (0, 1, -1, 0))), readings(model, group(layer, "in", (0, 1, 2)))
    assert {reading.tensor for reading in (*hidden, *inputs)} == set(slow)
    assert {reading.tensor for reading in inputs} == {name for name in slow if name.startswith("weight_ih_l0")}
    for reading in (*hidden, *inputs):
        assert_moments(model, reading, data, slow[reading.tensor])
        assert reading.matrix(layer).shape[1] == reading.size


def test_a_further_layer_reads_both_directions_of_every_unit() -> None:
    layer = nn.GRU(3, 2, num_layers=2, bidirectional=True)
    found = {reading.tensor: reading.columns(2) for reading in readings(Run(layer), group(layer, "out", (1, 0)))}
    assert found["weight_ih_l1"] == found["weight_ih_l1_reverse"] == [[1, 3], [0, 2]]
    assert found["weight_hh_l0"] == [[1], [0]]
    assert "weight_ih_l0" not in found


@pytest.mark.parametrize("make", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_rows_of_cells_are_their_inputs_and_the_states_they_are_given(make: Any) -> None:
    cell = make(3, 4)
    x, state = torch.randn(2, 3), torch.randn(2, 4)
    given: Any = (state, torch.zeros(2, 4)) if make is nn.LSTMCell else state
    data = [Inputs((x, given)), Inputs((x,))]
    (reads,) = readings(Run(cell), group(cell, "in", (0, 1, 2)))
    (own,) = readings(Run(cell), group(cell, "out", (0, 1, 2, 3)))
    assert_moments(Run(cell), reads, data, [*x, *x])
    assert_moments(Run(cell), own, data, [*state, *torch.zeros(2, 4)])


def test_which_layers_read_a_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1), nn.Linear(2, 2))
    members = [("0", "out"), ("1", "out"), ("2", "out"), ("3", "in")]
    found = readings(model, Group(4, tuple(Member(path, axis, (0, 1, 2, 3)) for path, axis in members)))
    assert [(reading.path, reading.tensor) for reading in found] == [("3", "weight")]


def test_a_layer_that_never_runs_has_no_moments_and_no_hooks_are_left() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    model = Half()
    found = reading_grams(model, [Reading(path, "weight", (0, 1, 2)) for path in ("used", "unused")], batches(2, 3))
    assert set(found) == {("used", "weight")}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_runs_twice_counts_both_times() -> None:
    layer = nn.Linear(3, 3)
    data = batches(4, 3, count=1)
    rows = [*data[0].args[0], *layer(data[0].args[0]).detach()]
    assert_moments(nn.Sequential(layer, layer), Reading("0", "weight", (0, 1, 2)), data, rows)


def test_what_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(PreconditionError, match="not finite") as caught:
        reading_grams(model, [Reading("1", "weight", (0, 1, 2))], [Inputs((torch.full((2, 3), float("inf")),))])
    assert caught.value.where == "1"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_kinds_of_recurrent_layers() -> None:
    layers = [nn.GRU(1, 1), nn.LSTM(1, 1), nn.RNN(1, 1), nn.RNN(1, 1, nonlinearity="relu")]
    assert [recurrent_kind(layer) for layer in layers] == ["gru", "lstm", "rnn_tanh", "rnn_relu"]
