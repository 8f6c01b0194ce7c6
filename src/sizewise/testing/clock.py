"""A clock that moves only when told to, for tests of timing."""

__all__ = ["FakeClock"]


class FakeClock:
    """Seconds that a test controls."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
