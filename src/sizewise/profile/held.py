"""How many examples' activations are held while layers are fitted in lockstep with the whole model."""

from sizewise.types import Cost

__all__ = ["HELD_BYTES", "examples_held"]

HELD_BYTES = 2e9  # of activations


def examples_held(profile: Cost, most: float = HELD_BYTES) -> int:
    """Examples whose activations of two models at one place fit the memory meant for them.

    Args:
        profile: of the whole model.
        most: bytes of that memory.
    """
    return max(1, int(most / max(2 * (profile.peak_bytes or 0) / profile.batch, 1)))
