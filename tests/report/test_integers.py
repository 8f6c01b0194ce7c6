"""Which part of a file runs as integers, and why it is not faster, as every report says it."""

from dataclasses import replace
from typing import Any

import pytest

from sizewise.report._integers import executed_sentence, why_not_faster
from sizewise.report.card import render_card
from sizewise.report.html import render_html
from sizewise.report.terminal import WIDTH, summary
from sizewise.types import Candidate, Executed, Measurement, RunRecord

FLOAT = Executed(integer_macs=0, float_macs=1_000_000, float_ops={"Conv": 10}, kernels=12, seconds={"Conv": 4e-3, "Pool": 1e-5})
INT8 = Executed(
    integer_macs=1_000_000,
    float_macs=0,
    integer_ops={"QLinearConv": 10},
    conversions={"QuantizeLinear": 1, "DequantizeLinear": 1},
    kernels=14,
    seconds={"QLinearConv": 1e-3, "QuantizeLinear": 1e-5, "DequantizeLinear": 1e-5},
    machine="x86_64",
)


def causes(quantized: Executed, seconds: float = 4e-3, plain: Executed = FLOAT) -> str:
    return "\n".join(why_not_faster(plain, 4e-3, quantized, seconds))


# ---- the sentence


def test_the_sentence_counts_layers_and_names_those_in_float() -> None:
    found = replace(INT8, integer_macs=97, float_macs=3, integer_ops={"QLinearConv": 51, "QGemm": 1}, float_ops={"Conv": 2})
    assert executed_sentence(found) == "97 % of MACs run as integers (52 of 54 layers); float: 2 Conv."


def test_it_says_100_percent_only_where_nothing_is_left() -> None:
    assert executed_sentence(INT8) == "100 % of MACs run as integers (10 of 10 layers)."
    nearly = executed_sentence(replace(INT8, float_macs=500, float_ops={"Gemm": 1}))
    assert nearly == "over 99 % of MACs run as integers (10 of 11 layers); float: 1 Gemm."


def test_it_names_what_lies_between_and_what_was_not_counted() -> None:
    between = {"Mul": 9, "HardSigmoid": 9, "Sigmoid": 3, "Softmax": 2, "Erf": 1, "Pow": 1}
    text = executed_sentence(replace(INT8, between=between, uncounted={"QMoE": 2}, weight_conversions=3))
    assert "float between integer layers: 9 HardSigmoid, 9 Mul, 3 Sigmoid, 2 Softmax, 2 more" in text
    assert "stored weights turned into floats at every call: 3" in text
    assert text.endswith("Not counted: 2 QMoE.")


def test_a_file_without_products_says_so() -> None:
    assert executed_sentence(Executed(integer_macs=0, float_macs=0)) == "No layer of the file multiplies anything that is counted."


# ---- causes


def test_what_is_faster_needs_no_cause() -> None:
    assert why_not_faster(FLOAT, 4e-3, replace(INT8, signed=10), 2e-3) == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"float_macs": 3_000_000, "float_ops": {"GRU": 2}},
            "75 % of MACs stay in float (2 GRU); in this form of file there is no integer kernel for GRU",
        ),
        ({"float_macs": 1_000_000, "float_ops": {"MatMul": 24}}, "50 % of MACs stay in float (24 MatMul)"),
        ({"signed": 10}, "10 integer layers read signed activations (int8); on x86"),
        ({"signed_activations": 12}, "12 activations of the file are signed (int8): on x86 the runtime makes them unsigned where it can"),
        (
            {"between": {"HardSigmoid": 9, "Mul": 9}, "seconds": {"QLinearConv": 6e-4, "HardSigmoid": 1e-4, "Mul": 3e-4}},
            "18 operators between integer layers are not fused and run in float: 9 HardSigmoid, 9 Mul (40 % of the kernels' time)",
        ),
        (
            {"conversions": {"QuantizeLinear": 20, "DequantizeLinear": 19}, "seconds": {"QLinearConv": 7e-4, "DequantizeLinear": 3e-4}},
            "39 conversions between floats and integers (30 % of the kernels' time)",
        ),
        ({"weight_conversions": 2}, "2 weight tensors stored as integers, but turned into floats again at every call"),
        (
            {"seconds": {"QLinearConv": 3.9e-3}, "depthwise": 4},
            "take 3.90 ms for what takes the float ones 4.00 ms; 4 of 10 convolve every",
        ),
        ({}, "the profile of its kernels shows no cause"),
    ],
)
def test_each_cause_is_said_with_its_figures(changed: dict[str, Any], said: str) -> None:
    text = causes(replace(INT8, **changed))
    assert said in text
    assert len(text.splitlines()) == 1


def test_signed_activations_are_no_cause_on_other_processors() -> None:
    assert "signed" not in causes(replace(INT8, signed=10, machine="aarch64"))


def test_a_model_of_microseconds_waits_for_its_kernels_to_start() -> None:
    text = why_not_faster(FLOAT, 40e-6, replace(INT8, seconds={}), 50e-6)
    assert text == ("a call of the float file takes 40.0 us for 12 kernels, of this one 50.0 us for 14 kernels: "
                    "starting kernels outweighs the arithmetic",)  # fmt: skip


# ---- reports


def with_executed(record: RunRecord, chosen: Executed, *, chosen_s: float = 41e-6, float_s: float = 46e-6) -> RunRecord:
    """The run with what was executed of the chosen file and of the float one of the same scale."""

    def measured(found: Measurement, executed: Executed, seconds: float) -> Measurement:
        return replace(found, executed=executed, latency=replace(found.latency, value=seconds))

    def changed(candidate: Candidate) -> Candidate:
        if candidate.measured is None or candidate.plan.scale != record.winner.plan.scale:
            return candidate
        if candidate.id == record.chosen:
            return replace(candidate, measured=measured(candidate.measured, chosen, chosen_s))
        return replace(candidate, measured=measured(candidate.measured, FLOAT, float_s))

    return replace(record, candidates=tuple(map(changed, record.candidates)))


def test_every_report_says_what_runs_as_integers(record: RunRecord) -> None:
    changed = with_executed(record, replace(INT8, float_macs=60_000, float_ops={"Conv": 2}))
    said = "94 % of MACs run as integers (10 of 12 layers); float: 2 Conv."
    assert said in summary(changed)
    assert said in render_card(changed, "print()")
    assert said in render_html(changed)
    assert "Not faster than in float" not in render_card(changed, "print()")


def test_every_report_says_why_the_file_is_not_faster(record: RunRecord) -> None:
    changed = with_executed(record, replace(INT8, between={"HardSigmoid": 9}), chosen_s=47e-6)
    text = " ".join(summary(changed).split())
    assert "not faster than in float: 9 operators between integer layers are not fused and run in float: 9 HardSigmoid" in text
    assert "- 9 operators between integer layers" in render_card(changed, "print()")
    assert "<li>9 operators between integer layers" in render_html(changed)
    assert all(len(line) <= WIDTH for line in summary(changed).splitlines())


def test_a_file_is_compared_with_the_one_that_has_most_of_its_steps(record: RunRecord) -> None:
    scale = record.winner.plan.scale
    pruned = next(c for c in record.candidates if c.plan.scale == scale and c.plan.label.startswith("channel_pruning") and c.measured)
    both = replace(record.winner, plan=replace(pruned.plan, steps=(*pruned.plan.steps, *record.winner.plan.steps)))
    candidates = tuple(both if c.id == record.chosen else c for c in record.candidates)
    changed = with_executed(replace(record, candidates=candidates), INT8, chosen_s=45e-6, float_s=46e-6)
    assert pruned.measured is not None
    slow = replace(pruned, measured=replace(pruned.measured, executed=FLOAT, latency=replace(pruned.measured.latency, value=90e-6)))
    changed = replace(changed, candidates=tuple(slow if c.id == slow.id else c for c in changed.candidates))
    assert "not faster" not in summary(changed), "pruned alone it takes 90 us, and only the whole model is as fast"


def test_nothing_is_said_where_nobody_knows_or_nothing_is_an_integer(record: RunRecord) -> None:
    for changed in (record, with_executed(record, FLOAT, chosen_s=90e-6)):
        for text in (summary(changed), render_card(changed, "print()"), render_html(changed)):
            assert "of MACs run" not in text
            assert "faster than in float" not in text
