"""Which matrices of recurrent layers can become products, and what they multiply."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.graph.recurrent_matrices import matrix_inputs, recurrent_matrices
from sizewise.protocols import Inputs


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True, "num_layers": 2}, {"batch_first": True, "bias": False}])
def test_every_matrix_is_found_with_its_bias(kind: Any, settings: dict[str, Any]) -> None:
    model = nn.Sequential(kind(5, 7, **settings)).eval()
    matrices, skips = recurrent_matrices(model, Inputs((torch.randn(4, 3, 5),)))
    assert not skips
    assert {m.name for m in matrices} == {name for name, value in model.named_parameters() if value.ndim == 2}
    assert all(m.bias == (m.name.replace("weight", "bias") if settings.get("bias", True) else None) for m in matrices)
    assert {m.path for m in matrices} == {"0"}


@pytest.mark.parametrize("batch_first", [True, False])
def test_rows_are_those_of_cells_run_step_by_step(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.GRU(5, 7, bidirectional=True, num_layers=2, batch_first=batch_first).eval()
    x = torch.randn(6, 3, 5)
    with torch.no_grad():
        found = dict(matrix_inputs(layer, x.transpose(0, 1) if batch_first else x))
        sequence = x
        for level in range(2):
            sides = []
            for suffix, order in (("", range(6)), ("_reverse", range(5, -1, -1))):
                cell = nn.GRUCell(sequence.shape[2], 7)
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(cell, kind).copy_(layer.get_parameter(f"{kind}_l{level}{suffix}"))
                state, before, after = torch.zeros(3, 7), torch.zeros(6, 3, 7), torch.zeros(6, 3, 7)
                for step in order:
                    before[step] = state
                    state = after[step] = cell(sequence[step], state)
                torch.testing.assert_close(found[f"weight_ih_l{level}{suffix}"], sequence.flatten(0, 1))
                torch.testing.assert_close(found[f"weight_hh_l{level}{suffix}"], before.flatten(0, 1))
                sides.append(after)
            sequence = torch.cat(sides, -1)


class Strange(nn.Module):
    """Recurrent layers that are used in ways that products do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.GRU(4, 4), nn.GRU(4, 4)
        self.one, self.other = nn.GRU(4, 4), nn.GRU(4, 4)
        self.other.weight_hh_l0 = self.one.weight_hh_l0
        self.projected = nn.LSTM(4, 6, proj_size=4)
        self.keyword, self.parametrized = nn.GRU(4, 4), nn.utils.parametrizations.weight_norm(nn.GRU(4, 4), "weight_hh_l0")
        with pytest.warns(FutureWarning):  # the older way, which models from before still have
            self.normed = nn.utils.weight_norm(nn.GRU(4, 4), "weight_hh_l0")

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x)[0])[0]
        x = self.other(self.one(x)[0])[0]
        out: Tensor = self.normed(self.parametrized(self.keyword(input=self.projected(x)[0])[0])[0])[0]
        return out


def test_what_is_left_alone_has_a_reason() -> None:
    matrices, skips = recurrent_matrices(Strange().eval(), Inputs((torch.randn(3, 2, 4),)))
    assert not matrices
    reasons = {skip.what: skip.reason for skip in skips}
    assert reasons.keys() == {"twice", "never", "one", "other", "projected", "keyword", "normed", "parametrized"}
    assert reasons["twice"] == "runs 2 times per call"
    assert "shares its weights with other" in reasons["one"]
    assert "projected" in reasons["projected"]
    assert "computed from other parameters" in reasons["normed"]
    assert "ParametrizedGRU" in reasons["parametrized"]
    assert "never called with one tensor" in reasons["never"]
    assert "never called with one tensor" in reasons["keyword"]
    (skip,) = recurrent_matrices(nn.GRU(4, 4).double(), Inputs((torch.randn(3, 2, 4).double(),)))[1]
    assert skip.reason == "its weights are not float32"
