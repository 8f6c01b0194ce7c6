"""Hooks that are gone again, whatever happens."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle

__all__ = ["hooked"]


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within it, hooks that were just registered see the calls; afterwards they are removed."""
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()
