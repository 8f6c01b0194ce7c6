"""Channels as labels: which indices of which axes must go together, and which may not go at all."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Indices", "Labels"]

Indices = NDArray[np.int64]  # one label per index of a dimension


@dataclass
class Labels:
    """Sets of labels that are joined and frozen as a graph is followed (disjoint sets with the reason why one is frozen)."""

    _parent: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    _frozen: dict[int, str] = field(default_factory=dict)

    def fresh(self, count: int) -> Indices:
        """New labels."""
        start = len(self._parent)
        new = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, new])
        return new

    def roots(self, labels: Indices) -> Indices:
        """The label that stands for each one's set."""
        found = self._parent[labels]
        while True:
            further = self._parent[found]
            if np.array_equal(further, found):
                break
            found = further
        self._parent[labels] = found
        return found

    def join(self, a: Indices, b: Indices) -> None:
        """Whatever goes with a label of `a` goes with the one of `b` at the same place."""
        if a is b:
            return
        for left, right in zip(a.tolist(), b.tolist(), strict=True):
            one, two = (int(root) for root in self.roots(np.array([left, right])))
            if one == two:
                continue
            stays, goes = min(one, two), max(one, two)
            self._parent[goes] = stays
            if goes in self._frozen:
                self._frozen.setdefault(stays, self._frozen.pop(goes))

    def freeze(self, labels: Indices, reason: str) -> None:
        """These may not go; the first reason counts."""
        for root in np.unique(self.roots(labels)).tolist():
            self._frozen.setdefault(root, reason)

    def reason(self, root: int) -> str | None:
        """Why a set may not go, or None."""
        return self._frozen.get(root)
