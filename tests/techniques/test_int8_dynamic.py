"""Dynamic int8 beyond the conformance kit: which layers compute in integers, how exactly, what stays float, bad input."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import PreconditionError, UnknownName, UnsupportedModel
from sizewise.pipeline.apply import apply_plan, rebuild_plan
from sizewise.pipeline.weights import load_state, save_state
from sizewise.protocols import Context, Inputs
from sizewise.techniques.int8_dynamic import Int8Dynamic
from sizewise.testing import NullRuntime, check_technique
from sizewise.types import Change, Plan, Scheme, Step, from_json, to_json
from sizewise.zoo.bert import BertClassifier, BertEncoder
from sizewise.zoo.recurrent import RecurrentClassifier


def quantize(
    model: nn.Module, inputs: Inputs, *, scheme: Scheme | None = NullRuntime.scheme, **settings: Any
) -> tuple[nn.Module, Plan, Change]:
    plan = Plan(scale="x", steps=(Step(technique="int8_dynamic", settings=settings),))
    module, applied, changes = apply_plan(model, plan, Context(inputs, None, scheme))
    return module, applied, changes[0]


def transformer(seed: int = 0) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(seed)
    model = BertClassifier(BertEncoder(60, 48, 2, 4, 96, positions=16), 12).eval()
    ids = torch.randint(1, 60, (2, 9))
    return model, Inputs((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def targets(module: nn.Module) -> list[str]:
    assert isinstance(module, torch.fx.GraphModule)
    return [str(node.target).split(".")[-2] for node in module.graph.nodes if str(node.target).startswith("sizewise")]


def test_the_promises_of_every_technique() -> None:
    model, inputs = transformer()
    check_technique("int8_dynamic")
    change = check_technique("int8_dynamic", model=model, example=inputs)
    assert "bert.encoder.layer.1.attention.self.query" in change.touched
    assert "bert.embeddings.word_embeddings" in change.touched


def test_a_linear_layer_is_within_half_a_step_of_every_rounding() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 32), torch.randn(16, 64)
    quantized, _, _ = quantize(model, Inputs((x,)))
    weight = model.weight.detach()
    in_step = float(x.max() - x.min()) / 255
    w_step = torch.maximum(weight.abs().amax(1), (weight[:, 0::2] + weight[:, 1::2]).abs().amax(1)) / 127
    with torch.no_grad():
        bound = 0.5 * in_step * (weight.abs() + w_step[:, None]).sum(1) + 0.5 * w_step * x.abs().sum(1, keepdim=True)
        assert bool(((model(x) - quantized(x)).abs() <= bound + 1e-6).all())


def test_ranges_are_those_of_the_call() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 32), torch.randn(16, 64)
    quantized, _, _ = quantize(model, Inputs((x,)))
    with torch.no_grad():
        for size in (1e-3, 1.0, 1e3):
            want = model(size * x) - model.bias
            assert float((quantized(size * x) - model.bias - want).norm() / want.norm()) < 0.02


def test_every_linear_layer_of_a_transformer_computes_in_integers() -> None:
    model, inputs = transformer()
    quantized, _, change = quantize(model, inputs)
    found = targets(quantized)
    assert found.count("dynamic_linear") == 2 * 6 + 2
    assert found.count("coded_embedding") == 2, "positions and words; two segments are too small to gain"
    assert "decode" not in found
    assert [skip.what for skip in change.skipped] == ["bert.embeddings.token_type_embeddings.weight"]
    with torch.no_grad():
        want, got = inputs.call(model), inputs.call(quantized)
    assert float((got - want).norm() / want.norm()) < 0.05


def test_recurrent_layers_and_convolutions_compute_in_float_with_codes() -> None:
    class Front(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(20, 24, 3, padding=1)
            self.back = RecurrentClassifier("lstm", 24, 30, 16, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.back(self.conv(x.transpose(1, 2)).transpose(1, 2))
            return logits

    torch.manual_seed(0)
    model, inputs = Front().eval(), Inputs((torch.randn(3, 7, 20),))
    quantized, _, change = quantize(model, inputs)
    assert targets(quantized).count("decode") == 5
    assert targets(quantized).count("dynamic_linear") == 1
    assert any("compute in integers: 1; others, decoded to float: 5" in note for note in change.notes)
    matrices = {value.dtype for name, value in quantized.state_dict().items() if value.ndim > 1}
    assert matrices == {torch.int8}


def test_a_table_that_the_output_layer_shares_stays_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(40, 32), nn.Linear(32, 40, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.head(self.table(ids))
            return logits

    quantized, _, _ = quantize(Tied(), Inputs((torch.randint(0, 40, (3, 4)),)))
    assert set(quantized.state_dict()) == {"table.weight_codes", "table.weight_scales"}
    assert sorted(targets(quantized)) == ["coded_embedding", "dynamic_linear"]


def test_a_plan_and_a_file_of_weights_are_enough_to_rebuild(tmp_path: Path) -> None:
    model, inputs = transformer()
    quantized, plan, _ = quantize(model, inputs)
    save_state(quantized, tmp_path / "weights")
    rebuilt = rebuild_plan(transformer(1)[0], from_json(Plan, to_json(plan)), Context(inputs, None, NullRuntime.scheme))
    load_state(rebuilt, tmp_path / "weights")
    with torch.no_grad():
        assert torch.equal(inputs.call(rebuilt), inputs.call(quantized))


def test_what_is_to_be_skipped_stays_float() -> None:
    model, inputs = transformer()
    quantized, _, change = quantize(model, inputs, skip=("bert.encoder.layer.0", "classifier"))
    assert targets(quantized).count("dynamic_linear") == 6 + 1
    assert sum(skip.reason == "named in skip" for skip in change.skipped) == 7
    assert not any(path.startswith("bert.encoder.layer.0") for path in change.touched)
    assert quantized.state_dict()["classifier.weight"].dtype == torch.float32


def test_a_runtime_without_integer_kernels() -> None:
    with pytest.raises(PreconditionError, match="no integer kernels"):
        quantize(nn.Linear(64, 64), Inputs((torch.randn(2, 64),)), scheme=None)


def test_a_layer_to_skip_that_is_not_there() -> None:
    with pytest.raises(UnknownName, match="layer to skip"):
        quantize(nn.Linear(64, 64), Inputs((torch.randn(2, 64),)), skip=("head",))


def test_a_model_without_linear_layers() -> None:
    with pytest.raises(UnsupportedModel, match="no linear layer gains") as caught:
        quantize(nn.Conv2d(8, 16, 3), Inputs((torch.randn(2, 8, 5, 5),)))
    assert "int8_static" in str(caught.value)


def test_quantizing_twice_is_refused() -> None:
    inputs = Inputs((torch.randn(2, 64),))
    twice = Plan(scale="x", steps=(Step(technique="int8_dynamic"), Step(technique="int8_dynamic")))
    with pytest.raises(PreconditionError, match="still is FLOAT"):
        apply_plan(nn.Linear(64, 64), twice, Context(inputs, None, NullRuntime.scheme))
    with pytest.raises(PreconditionError, match="graph already"):
        quantize(quantize(nn.Linear(64, 64), inputs)[0], inputs)


class PreNorm(nn.Module):
    """A block whose normalization gives one channel far larger values than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        with torch.no_grad():
            self.norm.weight[5] = 200
            self.up.weight[:, 5] /= 200

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return found


def test_calibration_data_smooth_what_is_spread_out() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = PreNorm().eval(), torch.randn(8, 10, 32)
    context = Context(Inputs((x[:1],)), None, NullRuntime.scheme)
    errors = []
    for data in (None, [Inputs((x,))]):
        graph, change = Int8Dynamic().apply(model, replace(context, calibration=data))
        with torch.no_grad():
            errors.append(float((graph(x) - model(x)).square().mean()))
    assert any("smoothed behind 1 normalizations" in note for note in change.notes)
    assert errors[1] < errors[0] / 10


@pytest.mark.parametrize("limit", [None, 128])
def test_neighbours_in_layers_that_compute_in_integers_keep_the_limit_of_the_scheme(limit: int | None) -> None:
    torch.manual_seed(0)
    assert NullRuntime.scheme is not None
    layers = nn.Embedding(64, 32), nn.Linear(32, 32)
    for layer in layers:
        nn.init.uniform_(layer.weight, 0.09, 0.1)
    scheme = replace(NullRuntime.scheme, pair_limit=limit)
    quantized, _, _ = quantize(nn.Sequential(*layers), Inputs((torch.arange(64)[None],)), scheme=scheme)
    table, matrix = (v.int() for v in quantized.state_dict().values() if v.dtype == torch.int8)
    assert int((table[:, 0::2] + table[:, 1::2]).max()) > 200, "nothing is multiplied by it"
    assert (int((matrix[:, 0::2] + matrix[:, 1::2]).max()) <= 128) == (limit is not None)
