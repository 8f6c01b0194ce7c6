"""Exporting with a free or a fixed batch."""

import logging
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured

from sizewise.errors import UnsupportedModel
from sizewise.graph.trace import batch_size, eval_copy, is_graph, part_from, quiet, trace, widen
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


def test_quiet_gives_the_loggers_back() -> None:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with quiet():
        assert logger.level == logging.CRITICAL
    assert logger.level == before


def test_inputs_of_different_first_dimensions_fix_the_batch() -> None:
    class Gathers(nn.Module):
        def forward(self, table: Tensor, rows: Tensor) -> Tensor:
            return table[rows] * 2

    inputs = Inputs((torch.randn(5, 3), torch.tensor([0, 4])))
    traced = trace(Gathers(), inputs)
    assert traced.batch == 5
    assert torch.equal(inputs.call(traced.program.module(check_guards=False)), inputs.call(Gathers()))


def test_the_refusal_is_one_line_that_names_torchs_error() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(UnsupportedModel) as caught:
        trace(Branch(), Inputs((torch.randn(2, 3),)))
    assert caught.value.got is not None
    assert "\n" not in caught.value.got
    assert len(caught.value.got) <= 300
    assert caught.value.hint is not None
    assert "control flow" in caught.value.hint


def test_tracing_warns_nobody_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(TinyConv(), Inputs((torch.randn(1, 1, 6, 6),)))
    assert capfd.readouterr() == ("", "")


def test_quiet_gives_levels_and_filters_back_after_an_error() -> None:
    loggers = [logging.getLogger(name) for name in ("torch.export", "onnxscript")]
    before = [logger.level for logger in loggers]
    filters = list(warnings.filters)
    with pytest.raises(RuntimeError), quiet():  # noqa: PT012
        warnings.warn("not shown", stacklevel=1)
        raise RuntimeError
    assert [logger.level for logger in loggers] == before
    assert list(warnings.filters) == filters


def test_a_graph_is_told_from_a_module_and_both_are_copied_for_inference() -> None:
    model = TinyConv().train()
    graph = trace(TinyConv(), Inputs((torch.randn(1, 1, 6, 6),))).program.module(check_guards=False)
    assert (is_graph(model), is_graph(graph)) == (False, True)
    twin = eval_copy(model)
    assert not twin.training
    assert model.training
    assert twin.get_parameter("head.weight") is not model.head.weight
    again = eval_copy(graph)
    assert again is not graph
    assert torch.equal(again(torch.ones(2, 1, 6, 6)), graph(torch.ones(2, 1, 6, 6)))


def test_a_shared_copy_has_the_parameters_themselves_and_buffers_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    twin = eval_copy(model, shared=True)
    assert not twin.training
    assert all(one is other for one, other in zip(twin.parameters(), model.parameters(), strict=True))
    assert twin.get_buffer("1.running_mean") is not model.get_buffer("1.running_mean")
    twin.register_parameter("more", nn.Parameter(torch.zeros(1)))
    assert "more" not in dict(model.named_parameters())


def test_parting_copies_what_is_shared_keeps_ties_and_leaves_the_rest() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    frozen = model.get_parameter("2.weight").requires_grad_(False)
    twin = eval_copy(model, shared=True)
    own = nn.Parameter(torch.ones(4))
    last = twin.get_submodule("2")
    last.bias = own
    last.register_buffer("seen", frozen.detach()[1:])
    want = twin(torch.ones(1, 4))
    part_from(twin, model)
    held = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    assert not any(tensor.untyped_storage().data_ptr() in held for tensor in (*twin.parameters(), *twin.buffers()))
    assert twin.get_parameter("0.weight") is twin.get_parameter("1.weight")
    assert twin.get_parameter("2.bias") is own
    assert not twin.get_parameter("2.weight").requires_grad
    assert torch.equal(twin.get_buffer("2.seen"), frozen[1:])
    assert torch.equal(twin(torch.ones(1, 4)), want)


def test_a_model_that_cannot_be_copied_is_refused_with_the_way_out() -> None:
    masked = l1_unstructured(nn.Linear(3, 3), "weight", 0.5)  # type: ignore[no-untyped-call]  # its weight is the result of a computation
    with pytest.raises(UnsupportedModel, match="cannot be copied") as caught:
        eval_copy(masked)
    assert caught.value.hint is not None
    assert "remove masks" in caught.value.hint


def test_a_refused_model_leaves_no_log_lines(capfd: pytest.CaptureFixture[str]) -> None:
    class Mismatched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x[:, :2]

    with pytest.raises(UnsupportedModel):
        trace(Mismatched(), Inputs((torch.randn(2, 3),)))
    assert capfd.readouterr() == ("", "")


def test_widening_doubles_batches_of_one_and_nothing_else() -> None:
    wide = widen(Inputs((torch.ones(1, 3), 7, torch.tensor(2.0)), {"mask": torch.zeros(1, 2)}))
    assert [getattr(a, "shape", a) for a in wide.args] == [(2, 3), 7, ()]
    assert dict(wide.kwargs or {})["mask"].shape == (2, 2)
    three = Inputs((torch.ones(3, 1),))
    assert widen(three) is three


def test_the_batch_is_the_first_tensors_first_dimension() -> None:
    assert batch_size(Inputs((7, torch.tensor(1.0), torch.zeros(4, 2)))) == 4
    assert batch_size(Inputs((), {"nested": (torch.zeros(6), torch.zeros(2))})) == 6
    assert batch_size(Inputs((7,))) == 1


def test_tracing_keeps_the_callers_mode() -> None:
    model = TinyConv().train()
    trace(model, Inputs((torch.randn(1, 1, 6, 6),)))
    assert model.training
