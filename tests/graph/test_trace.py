"""Exporting with a free or a fixed batch."""

import logging

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import UnsupportedModel
from sizewise.graph.trace import batch_size, output_layers, quiet, trace
from sizewise.protocols import Inputs
from sizewise.testing import DictInput, FixedBatch, TinyConv, TwoInputs

TOKENS = {"input_ids": torch.randint(0, 20, (1, 9)), "attention_mask": torch.ones(1, 9, dtype=torch.long)}


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (TinyConv(), Inputs((torch.randn(1, 1, 6, 6),))),
        (TwoInputs(), Inputs((torch.randn(1, 6), torch.randn(1, 3)))),
        (TwoInputs(), Inputs((torch.randn(1, 6),), {"second": torch.randn(1, 3)})),
        (DictInput(), Inputs((), TOKENS)),
    ],
)
def test_the_batch_is_free_even_when_the_example_holds_one(model: nn.Module, inputs: Inputs) -> None:
    traced = trace(model, inputs)
    assert traced.batch == "dynamic"
    graph = traced.program.module(check_guards=False)
    three = Inputs(tuple(torch.cat([a] * 3) for a in inputs.args), {k: torch.cat([v] * 3) for k, v in (inputs.kwargs or {}).items()})
    want, got = three.call(model.eval()), three.call(graph)
    want, got = (x["logits"] if isinstance(x, dict) else x for x in (want, got))
    assert torch.allclose(want, got, atol=1e-6)
    assert batch_size(three) == 3


def test_a_model_that_fixes_its_batch_is_exported_with_it() -> None:
    assert trace(FixedBatch(), Inputs((torch.randn(3, 5),))).batch == 3


def test_data_dependent_control_flow_is_refused_with_torchs_reason() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(UnsupportedModel, match="torch cannot export") as caught:
        trace(Branch(), Inputs((torch.randn(2, 3),)))
    assert caught.value.got


def test_the_layers_that_make_the_output() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x)
            return torch.relu(self.left(x)) + self.right(x), x.mean(1)

    assert output_layers(trace(TwoHeads(), Inputs((torch.randn(2, 4),))).program) == ("body", "left", "right")


def test_quiet_gives_the_loggers_back() -> None:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with quiet():
        assert logger.level == logging.CRITICAL
    assert logger.level == before
