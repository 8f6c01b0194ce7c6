"""Memory alive while a graph runs, against hand computations and against graphs that really run, keeping everything."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sizewise.graph.trace import export_static
from sizewise.profile.inlining import inlined
from sizewise.profile.liveness import is_mutable, is_view, live_bytes, nbytes
from sizewise.protocols import Inputs

POINTWISE = ("relu", "add", "mul", "sigmoid", "neg", "clone")


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.function, self.children_ = function, nn.ModuleDict(children)

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args, **self.children_)


def program_of(function: Callable[..., Any] | nn.Module, *args: Tensor) -> ExportedProgram:
    model = function if isinstance(function, nn.Module) else Call(function)
    return export_static(model.eval(), Inputs(args))


def alive(function: Callable[..., Any] | nn.Module, *args: Tensor) -> list[int]:
    """Bytes alive while each operator runs, in order; views and elements of tuples left out."""
    graph, inputs = inlined(program_of(function, *args))
    found = live_bytes(graph, inputs)
    return [found[n.name] for n in graph.nodes if n.op == "call_function" and not is_view(n) and nbytes(n.meta["val"])]


def square(side: int) -> Tensor:
    return torch.ones(side, side)


ONE = 4 * 16  # bytes of a square of side 4


# ---- by hand


def test_a_chain_of_products_keeps_one_input_and_one_output() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(2, 4))
    assert alive(model, torch.ones(3, 4)) == [4 * 3 * (4 + 8), 4 * 3 * (8 + 2), 4 * 3 * (2 + 4)]


def test_an_input_is_freed_after_its_last_use() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        first = x @ x  # x, y, first
        second = first @ y  # y, first, second
        return second @ second  # second, third

    assert alive(function, square(4), square(4)) == [3 * ONE, 3 * ONE, 2 * ONE]


def test_an_input_that_nobody_reads_takes_no_memory() -> None:
    assert alive(lambda x, _: x @ x, square(4), square(64)) == [2 * ONE]


def test_a_residual_keeps_its_source_until_the_sum() -> None:
    def function(x: Tensor) -> Tensor:
        y = x @ x  # x, y
        z = y @ y  # x, y, z
        return z + x  # the sum writes over z or x

    assert alive(function, square(4)) == [2 * ONE, 3 * ONE, 2 * ONE]


def test_a_pointwise_operator_writes_over_an_input_that_dies() -> None:
    assert alive(lambda x: torch.relu(torch.sigmoid(x @ x)), square(4)) == [2 * ONE, ONE, ONE]


def test_a_pointwise_operator_keeps_an_input_that_is_needed_later() -> None:
    def function(x: Tensor) -> Tensor:
        y = x @ x  # x, y
        z = torch.relu(y)  # y, z
        return z @ y  # y, z, product

    assert alive(function, square(4)) == [2 * ONE, 2 * ONE, 3 * ONE]


def test_a_pointwise_operator_cannot_write_over_an_input_of_another_size() -> None:
    def function(x: Tensor) -> Tensor:
        return x.sum(0, keepdim=True) + x

    assert alive(lambda x: (x @ x).half(), square(4)) == [2 * ONE, ONE + ONE // 2]
    assert alive(function, square(4)) == [ONE + 16, ONE + 16]


def test_only_one_of_two_dying_inputs_is_written_over() -> None:
    assert alive(lambda x, y: x + y, square(4), square(4)) == [2 * ONE]


def test_working_in_place_takes_no_new_memory() -> None:
    def function(x: Tensor) -> Tensor:
        y = x @ x
        z = y.t() @ x  # x, y, z
        y.mul_(2).add_(z)
        return y

    assert alive(function, square(4)) == [2 * ONE, 3 * ONE, 2 * ONE, 2 * ONE]


def test_in_place_activations_of_modules_take_as_much_as_others() -> None:
    def model(inplace: bool) -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace), nn.Conv2d(3, 2, 1), nn.Hardswish(inplace))

    assert alive(model(True), torch.ones(1, 2, 4, 4)) == alive(model(False), torch.ones(1, 2, 4, 4))


def test_a_dense_block_keeps_every_part_for_the_concatenations() -> None:
    def function(x: Tensor) -> Tensor:
        a = x @ x  # x, a
        both = torch.cat([x, a], 1)  # x, a, both
        b = both.t() @ both  # x, a, both, b: 8 x 8
        return torch.cat([x, a, b[:4, :4]], 1)

    assert alive(function, square(4)) == [2 * ONE, 4 * ONE, 4 * ONE + 4 * ONE, 2 * ONE + 4 * ONE + 3 * ONE]


def test_a_view_keeps_the_whole_of_its_source_alive() -> None:
    def function(x: Tensor) -> Tensor:
        y = x @ x
        row = y[0]  # a view of y
        z = x @ x  # x, y, z
        return z @ row  # y, z, product

    assert alive(function, square(4)) == [2 * ONE, 3 * ONE, 2 * ONE + 16]


def test_a_view_of_a_view_keeps_the_first_source_alive() -> None:
    def function(x: Tensor) -> Tensor:
        part = (x @ x).t()[1:].unsqueeze(0)
        z = x @ x
        return z @ part[0, 0]

    assert alive(function, square(4)) == [2 * ONE, 3 * ONE, 2 * ONE + 16]


def test_a_reshape_that_copies_is_memory_of_its_own() -> None:
    def function(x: Tensor) -> Tensor:
        turned = x.t().reshape(2, 8)  # x, the copy
        return turned @ turned.t()  # the copy, the product

    assert alive(function, square(4)) == [2 * ONE, ONE + 16]


def test_a_reshape_that_does_not_copy_is_a_view() -> None:
    assert alive(lambda x: x.reshape(2, 8) @ x.reshape(8, 2), square(4)) == [ONE + 16]


def test_outputs_stay_alive_to_the_end() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        first = x @ x
        second = first @ first
        third = second @ second
        return first, third @ third

    assert alive(function, square(4)) == [2 * ONE, 2 * ONE, 3 * ONE, 3 * ONE]


def test_an_output_that_is_a_view_keeps_its_source_to_the_end() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        first = x @ x
        second = x @ x
        return first[0], second @ second

    assert alive(function, square(4)) == [2 * ONE, 3 * ONE, 3 * ONE]


def test_an_output_is_not_written_over() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        first = x @ x
        return first, torch.relu(first)

    assert alive(function, square(4)) == [2 * ONE, 2 * ONE]


def test_an_input_that_is_given_back_stays_alive() -> None:
    assert alive(lambda x: (x, x @ x, (x @ x) @ x), square(4)) == [2 * ONE, 3 * ONE, 4 * ONE]


def test_weights_and_constants_take_no_activation_memory() -> None:
    class Constants(nn.Module):
        table: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("table", torch.ones(100, 4))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.layer(x) + self.table[:4].t() + torch.tensor([1.0, 2.0, 3.0, 4.0])
            return logits

    graph, inputs = inlined(program_of(Constants(), square(4)))
    found = live_bytes(graph, inputs)
    assert max(found.values()) == 2 * ONE
    assert found[next(n.name for n in graph.nodes if "lift_fresh" not in n.name and n.op == "call_function")] == 2 * ONE


def test_dropout_at_inference_is_a_view() -> None:
    assert alive(lambda x: F.dropout(x @ x, 0.5, training=False) @ x, square(4)) == [2 * ONE, 3 * ONE]


def test_normalization_with_fixed_statistics_writes_over_its_input_and_one_over_the_batch_does_not() -> None:
    fixed, batch = (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=kept)) for kept in (True, False))
    assert alive(fixed, square(4)) == [2 * ONE, ONE]
    assert alive(batch, square(4)) == [2 * ONE, 2 * ONE]


def test_all_outputs_of_an_operator_live_as_long_as_one_of_them() -> None:
    def function(x: Tensor) -> Tensor:
        values, _ = x.sort(1)  # x, values and positions (8 bytes each)
        return values @ x

    assert alive(function, square(4)) == [4 * ONE, 4 * ONE + ONE]


def test_elements_of_a_split_are_views_of_one_memory() -> None:
    def function(x: Tensor) -> Tensor:
        left, right = (x @ x).chunk(2, 1)
        return left.t() @ right

    assert alive(function, square(4)) == [2 * ONE, ONE + 16]


@pytest.mark.parametrize(
    ("function", "view", "mutable"),
    [
        (lambda x: x.t(), True, False),
        (lambda x: x.reshape(-1), True, False),
        (lambda x: x.t().reshape(-1), False, False),
        (lambda x: x.t().contiguous(), False, False),
        (lambda x: x.to(torch.float32), True, False),
        (lambda x: x.to(torch.float16), False, False),
        (lambda x: x.clone(), False, False),
        (lambda x: x.clone().relu_(), False, True),
        (lambda x: x.clone().unsqueeze_(0), True, False),
        (lambda x: x.clone().t_(), True, False),
        (lambda x: F.dropout(x, 0.5, training=False), True, False),
        (lambda x: F.dropout2d(x[None], 0.5, training=False), True, False),
        (lambda x: F.dropout(x, 0.5, training=True), False, False),
        (lambda x: torch.einsum("ij->ji", x), True, False),
        (lambda x: x + 1, False, False),
    ],
)
def test_a_view_is_what_shares_memory_without_writing(function: Callable[..., Any], view: bool, mutable: bool) -> None:
    graph, _ = inlined(program_of(function, square(4)))
    node = [n for n in graph.nodes if n.op == "call_function"][-1]
    assert (is_view(node), is_mutable(node)) == (view, mutable)


def test_bytes_of_nested_values() -> None:
    assert nbytes({"a": [torch.zeros(3), (torch.zeros(2, dtype=torch.int64), None)], "b": 7}) == 12 + 16
    assert nbytes(None) == 0


# ---- against graphs that really run


class Run(Interpreter):
    """Runs a graph on real tensors, keeps every value, and says which memory each lies in."""

    def __init__(self, program: ExportedProgram) -> None:
        graph, self.inputs = inlined(program)
        super().__init__(program.graph_module, garbage_collect_values=False, graph=graph)
        self.blocks: dict[Node, set[int]] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        self.blocks[n] = {leaf.untyped_storage().data_ptr() for leaf in leaves}
        return value


def slow_reference(program: ExportedProgram, args: tuple[Tensor, ...]) -> dict[str, int]:
    """Bytes alive at every node, from where the tensors of a real run lie."""
    run = Run(program)
    given = iter(args)
    signature = program.graph_signature
    held = {**program.state_dict, **program.constants}
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    values = [next(given).clone() if n in signature.user_inputs else held[names[n]] for n in (p.name for p in placeholders(program))]
    with torch.no_grad():
        run.run(*values)
    nodes = list(run.graph.nodes)
    born: dict[int, int] = {}
    size: dict[int, int] = {}
    constant = set()
    for i, node in enumerate(nodes):
        if node.op == "output":
            continue
        for block in run.blocks[node]:
            if block not in born:
                born[block], size[block] = i, nbytes(node.meta["val"]) // len(run.blocks[node])
                if node.op != "call_function" and node.name not in run.inputs:
                    constant.add(block)

    def read_after(block: int, i: int) -> bool:
        return any(block in run.blocks[source] for later in nodes[i + 1 :] for source in later.all_input_nodes)

    found = {}
    for i, node in enumerate(nodes[:-1]):
        read_now = {block for source in node.all_input_nodes for block in run.blocks[source]}
        here = {b for b in born if b not in constant and born[b] <= i and (born[b] == i or b in read_now or read_after(b, i))}
        fresh = {b for b in run.blocks[node] if born[b] == i}
        if fresh and getattr(node.target, "__name__", "").partition(".")[0] in POINTWISE:
            dying = [b for b in read_now & here if not read_after(b, i) and size[b] == sum(size[f] for f in fresh)]
            here -= set(dying[:1])
        found[node.name] = sum(size[b] for b in here)
    return found


def placeholders(program: ExportedProgram) -> list[Node]:
    return [n for n in program.graph.nodes if n.op == "placeholder"]


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "neg": torch.neg,
    "turn": lambda x: x.t(),
    "reshape": lambda x: x.reshape(2, 8).reshape(4, 4),
    "copy": lambda x: x.contiguous(),
    "clone": lambda x: x.clone(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "halves": lambda x: torch.cat(list(x.chunk(2, 0))[::-1]),
    "narrow": lambda x: x[:, 1:3] @ x[1:3],
    "wide": lambda x: torch.cat([x, x], 1)[:, 2:6],
    "double": lambda x: x.double().float(),
    "expand": lambda x: x[0].expand(4, 4),
    "softmax": lambda x: x.softmax(0),
    "twice": lambda x: (x + 1).mul_(2),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "matmul": torch.matmul,
    "stack": lambda x, y: torch.stack([x, y])[1],
    "row": lambda x, y: x + y[0],
    "column": lambda x, y: x[:, :1] * y,
}
STEP = st.tuples(st.sampled_from([*UNARY, *BINARY]), st.integers(0, 9), st.integers(0, 9))


class Random(nn.Module):
    """A graph made of steps, each on values that earlier ones made."""

    def __init__(self, steps: list[tuple[str, int, int]], outputs: list[int]) -> None:
        super().__init__()
        self.steps, self.outputs = steps, outputs
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        values = [x, y, self.weight * 1]
        for name, first, second in self.steps:
            a, b = values[-1 - first % len(values)], values[-1 - second % len(values)]
            values.append(UNARY[name](a) if name in UNARY else BINARY[name](a, b))
        return [values[-1], *(values[-1 - i % len(values)] for i in self.outputs)]


@given(st.lists(STEP, min_size=1, max_size=9), st.lists(st.integers(0, 9), max_size=2))
@settings(max_examples=60, deadline=None)
def test_memory_alive_is_that_of_a_graph_that_really_runs(steps: list[tuple[str, int, int]], outputs: list[int]) -> None:
    args = (torch.rand(4, 4), torch.rand(4, 4))
    program = program_of(Random(steps, outputs), *args)
    graph, inputs = inlined(program)
    assert live_bytes(graph, inputs) == slow_reference(program, args)
