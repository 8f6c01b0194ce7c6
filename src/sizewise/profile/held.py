"""How many examples' activations are held while layers are fitted in lockstep with the whole model."""

from sizewise.types import Cost

__all__ = ["HELD_BYTES", "examples_held"]

HELD_BYTES = 2e9  # of activations


def examples_held(profile: Cost) -> int:
    """Examples whose activations of two models at one place fit the memory meant for them.

    Args:
        profile: of the whole model.
    """
    return max(1, int(HELD_BYTES / max(2 * (profile.peak_bytes or 0) / profile.batch, 1)))
