"""Whether limits are kept, and what relaxing them would buy."""

from dataclasses import dataclass
from typing import Literal

from sizewise.types.budget import Limit
from sizewise.types.figures import Interval, Quality

__all__ = ["Judgement", "LimitVerdict", "Relaxation", "Unproved", "Verdict"]

Judgement = Literal["proved", "undecided", "refused"]


@dataclass(frozen=True, kw_only=True)
class LimitVerdict:
    """Whether one limit is kept: proved, undecided or refused, with the figure it rests on.

    `needed` is how many test examples would decide an undecided quality limit, at the effect and spread seen.
    """

    limit: Limit
    judgement: Judgement
    figure: Interval
    allowed: float
    reason: str
    needed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All limits, and the worst of them.

    Attributes:
        look: the how-manieth file of the run that was judged on this test split; None where none was.
        level: how probable it may be, at this look, that a quality limit which does not hold is called proved, or one which
            holds refused.
    """

    judgement: Judgement
    limits: tuple[LimitVerdict, ...]
    test_quality: Quality | None = None
    look: int | None = None
    level: float | None = None


@dataclass(frozen=True, kw_only=True)
class Unproved:
    """A candidate that was looked at on the test split, which did not prove it, so that another one is chosen."""

    candidate: str
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """The value of one limit at which a tried candidate would fit while every other limit stays."""

    limit: Limit
    allowed: float
    needed: float | None
    candidate: str | None
