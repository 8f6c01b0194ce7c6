import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sizewise.report._costs import short_path, top_layers
from sizewise.report._layer_bars import layer_bars
from sizewise.report.html import render_html
from sizewise.types import Cost, LayerCost, RunRecord

if TYPE_CHECKING:
    from tests.report.conftest import Page


def test_shares_of_all_layers_and_the_rest_make_the_whole(layered_cost: Cost) -> None:
    top = top_layers(layered_cost, count=5)
    assert top.by == "latency"
    assert (len(top.rows), top.rest) == (5, 15)
    folded = 1 / 9 / sum(1 / n for n in range(1, 21))  # the fixture gives one layer no time
    assert sum(share for _, share in top.rows) + top.rest_share == pytest.approx(1 - folded)
    assert top.rest_line.startswith("15 more layers: ")
    assert top.rest_line.endswith(" of the time")


def test_macs_count_where_asked_or_where_time_is_unknown(layered_cost: Cost) -> None:
    assert top_layers(layered_cost, by="macs").by == "macs"
    layers = tuple(replace(layer, latency_s=None) for layer in layered_cost.layers)
    assert top_layers(replace(layered_cost, layers=layers)).by == "macs"


def test_a_model_without_macs_or_layers_divides_by_nothing(layered_cost: Cost) -> None:
    empty = replace(layered_cost, macs=0, layers=tuple(replace(layer, macs=0) for layer in layered_cost.layers))
    assert top_layers(empty, by="macs").rest_share == 0
    assert "bar" not in layer_bars(empty, by="macs")
    assert "not known layer by layer" in layer_bars(replace(layered_cost, layers=()))


def test_the_longest_bar_fills_its_cell(layered_cost: Cost) -> None:
    widths = [float(w) for w in re.findall(r"width: ([\d.]+)%", layer_bars(layered_cost))]
    assert len(widths) == 13
    assert widths[0] == max(widths) == 100


def test_names_of_layers_are_escaped(layered_cost: Cost) -> None:
    def evil(layer: LayerCost) -> LayerCost:
        return replace(layer, path="<script>alert(1)</script>", kind="<b>", family="conv")

    drawn = layer_bars(replace(layered_cost, layers=tuple(map(evil, layered_cost.layers))), label='"><script>')
    assert "<script>" not in drawn
    assert "<b>" not in drawn


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("layer1.0.conv2", "layer1.0.conv2"),
        ("encoder.layer.11.attention.self.query", "e.l.11.a.self.query"),
        ("blocks12.conv_of_a_long_name", "b12.conv_of_a_long_name"),
        ("one_name_that_has_no_parts_at_all", "one_name_that_has_no_parts_at_all"),
    ],
)
def test_outer_names_of_a_path_give_way_first(path: str, text: str) -> None:
    assert short_path(path, 24) == text


def test_the_report_of_a_run_shows_macs_per_layer(
    make_record: Callable[..., RunRecord], layered_cost: Cost, read_page: "type[Page]"
) -> None:
    record = make_record()
    with_layers = replace(record, scales=tuple(replace(s, cost=layered_cost) for s in record.scales))
    page = read_page(render_html(with_layers))
    assert "MACs per layer of resnet-l" in page.words
    assert "Share of the MACs" in page.words
    assert "MACs per layer" not in read_page(render_html(record)).words
