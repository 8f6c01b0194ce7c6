"""Losses of channels that are told once for a model and its data, whatever share of the channels then goes."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sizewise.data.batches import digest, digest_state
from sizewise.data.channel_losses import GroupLoss, group_losses
from sizewise.graph.groups import Group
from sizewise.protocols import Inputs, Progress, Tables

__all__ = ["known_losses"]

VERSION = 1  # of how losses are told: kept ones of another are not used


def known_losses(
    tables: Tables | None,
    model: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[Inputs],
    scores: Sequence[Tensor] | None,
    progress: Progress,
) -> list[GroupLoss]:
    """As `group_losses`, from the tables where the same was told before; the search cuts one model at many rates.

    Args:
        tables: of the run, or None.
        model, groups, batches, scores, progress: as for `group_losses`.

    Raises:
        PreconditionError: activations are not finite; says where.
    """
    if tables is None:
        return group_losses(model, groups, batches, scores, progress)
    key = f"channels-{_content(model, groups, batches, scores)}"
    known = _read(tables.get(key), groups)
    if known is not None:
        return known
    found = group_losses(model, groups, batches, scores, progress)
    if all(math.isfinite(value) for loss in found for value in loss.losses):
        tables.put(key, [[loss.order, loss.losses] for loss in found])
    return found


def _content(model: nn.Module, groups: Sequence[Group], batches: Sequence[Inputs], scores: Sequence[Tensor] | None) -> str:
    """A hash of all that losses depend on."""
    hashed = hashlib.sha256(f"{VERSION} {model!r} {list(groups)!r}".encode())
    digest_state(model, hashed)
    for batch in batches:
        digest(batch, None, hashed)
    digest(Inputs(tuple(scores or ())), None, hashed)
    return hashed.hexdigest()[:32]


def _read(value: Any, groups: Sequence[Group]) -> list[GroupLoss] | None:
    """What was kept, if it is about these groups."""
    try:
        found = [GroupLoss(tuple(int(one) for one in order), tuple(float(one) for one in losses)) for order, losses in value]
    except (TypeError, ValueError):
        return None
    fits = len(found) == len(groups) and all(len(loss.order) <= group.channels for loss, group in zip(found, groups, strict=True))
    return found if fits else None
