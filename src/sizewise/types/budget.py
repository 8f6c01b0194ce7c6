"""The limits of a job, and which of them a measurement breaks."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from sizewise import units
from sizewise.errors import UsageError
from sizewise.types.figures import Measurement

__all__ = ["Budget", "Limit", "Violation"]

Limit = Literal["latency", "size", "memory", "max_drop", "min_quality"]


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A limit that a candidate breaks."""

    limit: Limit
    got: float
    allowed: float

    @property
    def excess(self) -> float:
        """How many times over (or under, for a least quality) the limit the figure is; at least 1."""
        if self.limit == "min_quality":  # least for scores, most for losses: the ratio that is above one
            ratio = max(self.allowed, 1e-12) / max(self.got, 1e-12)
            return max(ratio, 1 / ratio)
        if self.limit == "max_drop":
            # a drop is additive and its limit may be zero, so one further point counts like doubling the cost
            return 1.0 + (self.got - self.allowed) / max(self.allowed, 0.01)
        return self.got / max(self.allowed, 1e-12)


@dataclass(frozen=True, init=False)
class Budget:
    """What the shipped file may cost. A limit left out is no limit.

    Args:
        latency: median time of one call on the example inputs, such as "5 ms"; a number is seconds.
        size: bytes on disk, such as "2 MB" (decimal) or "2 MiB"; a number is bytes.
        memory: peak growth of resident memory while loading and running the file; a number is bytes.
        max_drop: largest loss of quality against the reference, in percentage points of the metric: "1 %" allows
            accuracy 0.960 where the reference has 0.970. It is a difference, not a ratio. A bare number is in the
            metric's own unit (0.01 is one point of accuracy).
        min_quality: least quality, such as "95 %"; a bare number is in the metric's own unit. For a metric where
            less is better (a loss), the most that is accepted.

    Raises:
        UsageError: a quantity that cannot be read, or a limit of zero where nothing could fit.
    """

    latency_s: float | None
    size_bytes: int | None
    memory_bytes: int | None
    max_drop: float | None
    min_quality: float | None

    def __init__(
        self,
        latency: str | float | None = None,
        size: str | float | None = None,
        memory: str | float | None = None,
        max_drop: str | float | None = None,
        min_quality: str | float | None = None,
    ) -> None:
        def read(name: str, text: str | float | None, parse: Any, least: float) -> Any:
            value = None if text is None else parse(text, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be more than zero", got=repr(text))
            return value

        tiny = 1e-12
        for name, value in (
            ("latency_s", read("latency", latency, units.parse_seconds, tiny)),
            ("size_bytes", read("size", size, units.parse_bytes, 1)),
            ("memory_bytes", read("memory", memory, units.parse_bytes, 1)),
            ("max_drop", read("max_drop", max_drop, units.parse_points, 0.0)),
            ("min_quality", read("min_quality", min_quality, units.parse_points, 0.0)),
        ):
            object.__setattr__(self, name, value)

    def __post_init__(self) -> None:
        # decoding from JSON comes here without passing through __init__
        for name in ("latency_s", "size_bytes", "memory_bytes", "max_drop", "min_quality"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} must be finite and not negative", got=repr(value))

    def violations(self, measured: Measurement) -> tuple[Violation, ...]:
        """The limits that the point estimates of `measured` break, in the order of the fields."""
        drop = measured.quality.drop
        sign = 1 if measured.quality.higher_is_better else -1
        rows: tuple[tuple[Limit, float | None, float | None], ...] = (
            ("latency", measured.latency.value, self.latency_s),
            ("size", measured.size_bytes, self.size_bytes),
            ("memory", measured.memory.value, self.memory_bytes),
            ("max_drop", drop.value if drop else None, self.max_drop),
        )
        broken = [
            Violation(limit=limit, got=got, allowed=allowed)
            for limit, got, allowed in rows
            if got is not None and allowed is not None and got > allowed + 1e-12
        ]
        score = measured.quality.score.value
        if self.min_quality is not None and sign * score < sign * self.min_quality - 1e-12:
            broken.append(Violation(limit="min_quality", got=score, allowed=self.min_quality))
        return tuple(broken)
