"""Factors solved for what the factorized model really passes on."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from sizewise.arith.low_rank import Form, damped
from sizewise.graph.factorize import Factoring
from sizewise.graph.refit_factors import Factored, absorbing, product_form, refit_factored
from sizewise.graph.trace import trace
from sizewise.protocols import Inputs
from sizewise.storage.forms import attached_forms
from sizewise.zoo.resnet import resnet_cifar


def batches(*shape: int, count: int = 3) -> list[Inputs]:
    generator = torch.Generator().manual_seed(1)
    return [Inputs((torch.randn(32, *shape, generator=generator),)) for _ in range(count)]


def distance(model: nn.Module, other: nn.Module, data: list[Inputs]) -> float:
    with torch.no_grad():
        mine, theirs = (torch.cat([batch.call(each) for batch in data]) for each in (model, other))
    return float((mine - theirs).square().mean() / mine.var())


def installed(model: nn.Module, found: Factored) -> nn.Module:
    twin = copy.deepcopy(model)
    found.install(twin)
    return twin


def plain(model: nn.Module, plan: dict[str, Factoring]) -> Factored:
    return Factored(
        plan, {path: own.solved(model.get_submodule(path).get_parameter("weight").detach(), None) for path, own in plan.items()}
    )


def test_one_layer_is_the_best_of_its_rank() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(12, 10)).eval(), batches(12)
    scale = torch.logspace(0, 2, 12)
    data = [Inputs((batch.args[0] * scale + 3,)) for batch in data]
    plan = {"0": Factoring("svd", (4,))}
    fitted = installed(model, refit_factored(model, trace(model, data[0]).program, data, plan))
    x = torch.cat([batch.args[0] for batch in data]).double()
    weight = model[0].weight.detach().double()  # type: ignore[operator]
    values = torch.linalg.svdvals((x - x.mean(0)) @ weight.T)
    least = float(values[4:].square().sum() / values.square().sum())
    got = distance(model, fitted, data)
    assert got < 1.05 * least, "only damping differs"
    assert got < 0.5 * distance(model, installed(model, plain(model, plan)), data)


def test_layers_behind_make_up_for_layers_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    data = batches(16, count=6)
    plan = {"0": Factoring("svd", (8,)), "2": Factoring("svd", (8,))}
    program = trace(model, data[0]).program
    fitted = distance(model, installed(model, refit_factored(model, program, data, plan)), data)
    alone: dict[str, tuple[Tensor, ...]] = {}
    biases: dict[str, Tensor] = {}
    x = torch.cat([batch.args[0] for batch in data])
    with torch.no_grad():
        for path, layer in model.named_children():
            if path in plan and isinstance(layer, nn.Linear):
                centred = (x - x.mean(0)).double()
                alone[path] = plan[path].solved(layer.weight, damped(centred.T @ centred / len(x), len(x)))
                gone = layer.weight - plan[path].composed(alone[path]).float()
                biases[f"{path}.bias"] = layer.bias + gone @ x.mean(0)
            x = layer(x)
    assert fitted < 0.95 * distance(model, installed(model, Factored(plan, alone, biases)), data)


def test_full_ranks_change_nothing() -> None:
    model, data = resnet_cifar(8).eval(), batches(3, 8, 8)
    plan: dict[str, Factoring] = {
        "layer1.0.conv1": Factoring("svd", (16,)),
        "layer2.0.conv2": Factoring("tucker", (32, 32)),
        "linear": Factoring("svd", (10,)),
    }
    assert distance(model, installed(model, refit_factored(model, trace(model, data[0]).program, data, plan)), data) < 1e-4


def test_convolutions_with_normalization_are_nearer_than_by_weights_alone() -> None:
    torch.manual_seed(0)
    model, data = resnet_cifar(8).eval(), batches(3, 8, 8)
    data = [Inputs((nn.functional.avg_pool2d(batch.args[0], 3, 1, 1) + 1,)) for batch in data]
    program = trace(model, data[0]).program
    kinds: list[tuple[Form, tuple[int, ...]]] = [("svd", (8,)), ("spatial", (8,)), ("tucker", (8, 8))]
    for form, ranks in kinds:
        plan = {"layer1.0.conv1": Factoring(form, ranks), "layer1.0.conv2": Factoring(form, ranks)}
        fitted = installed(model, refit_factored(model, program, data, plan))
        assert distance(model, fitted, data) < 0.7 * distance(model, installed(model, plain(model, plan)), data)


def test_constants_go_where_a_bias_or_a_normalization_is() -> None:
    model = resnet_cifar(8).eval()
    found = absorbing(trace(model, batches(3, 8, 8)[0]).program)
    assert {"conv1", "layer1.0.conv1", "linear"} <= found
    bare = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3)).eval()
    assert absorbing(trace(bare, batches(3)[0]).program) == {"2"}


def test_transposed_and_recurrent_layers_behind_are_fitted_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.up = nn.Conv1d(8, 8, 3, padding=1), nn.ConvTranspose1d(8, 8, 2, stride=2)
            self.memory = nn.GRU(8, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.memory(self.up(torch.tanh(self.first(x))).transpose(1, 2))[0]
            return out

    torch.manual_seed(0)
    model, data = Net().eval(), batches(8, 12)
    plan = {"first": Factoring("svd", (4,))}
    found = refit_factored(model, trace(model, data[0]).program, data, plan)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(found.weights.get(name, value), value)}
    assert {"up.weight", "memory.weight_ih_l0"} <= changed
    kept = {name: value for name, value in found.weights.items() if name.startswith("first.")}
    assert distance(model, installed(model, found), data) < distance(model, installed(model, Factored(plan, found.factors, kept)), data)


class Memory(nn.Module):
    """A recurrent layer behind a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.memory = nn.Linear(8, 12), nn.GRU(12, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.memory(torch.tanh(self.first(x)))[0]
        return out


def test_matrices_of_recurrent_layers_become_products_that_make_up_for_what_came_before() -> None:
    torch.manual_seed(0)
    model, data = Memory().eval(), batches(10, 8)
    program, ranks = trace(model, data[0]).program, {"memory.weight_ih_l0": 4, "memory.weight_hh_l0": 6}
    found = refit_factored(model, program, data, {"first": Factoring("svd", (4,))}, ranks=ranks)
    assert {name: form.left.shape[1] for name, form in found.products.items()} == ranks
    fitted = installed(model, found)
    assert all(torch.equal(fitted.get_parameter(name), form.decode()) for name, form in attached_forms(fitted).items())
    assert set(attached_forms(fitted)) == set(ranks)
    plainly = {name: product_form(model.get_parameter(name).detach(), None, rank) for name, rank in ranks.items()}
    first = {name: value for name, value in found.weights.items() if name.startswith("first.")}
    assert distance(model, fitted, data) < 0.5 * distance(model, installed(model, replace(found, products=plainly, weights=first)), data)


def test_products_of_full_rank_change_nothing() -> None:
    torch.manual_seed(0)
    model, data = Memory().eval(), batches(10, 8)
    found = refit_factored(model, trace(model, data[0]).program, data, {}, ranks={"memory.weight_hh_l0": 16})
    assert distance(model, installed(model, found), data) < 1e-6
