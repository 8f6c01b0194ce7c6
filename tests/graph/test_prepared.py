"""Letting go of graphs."""

import gc
import weakref

import pytest
from torch import nn

from sizewise.graph import prepared
from sizewise.graph.prepared import collect_graphs


def lost() -> "weakref.ref[nn.Module]":
    """A module that only itself refers to."""
    module = nn.Linear(2, 2)
    module.__dict__["itself"] = module
    return weakref.ref(module)


@pytest.mark.parametrize(("bytes_", "freed"), [(1.0, True), (1e9, False)])
def test_only_large_graphs_are_worth_a_collection(monkeypatch: pytest.MonkeyPatch, bytes_: float, freed: bool) -> None:
    monkeypatch.setattr(prepared, "LARGE_BYTES", bytes_)
    gc.disable()
    try:
        gone = lost()
        collect_graphs(nn.Linear(4, 4))
        assert (gone() is None) == freed
    finally:
        gc.enable()
