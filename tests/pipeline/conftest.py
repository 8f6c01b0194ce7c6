"""The pipeline's tests do not judge speed, so they time little, on one thread, and try fewer plans."""

from functools import partial

import pytest

from sizewise.pipeline import conclude, fit, trial
from sizewise.profile.timing import time_interleaved
from sizewise.search.space import plans_for


@pytest.fixture(scope="session", autouse=True)
def _brief() -> None:
    patch = pytest.MonkeyPatch()
    for module in (conclude, trial):
        patch.setattr(module, "time_interleaved", _brief_timing)
    patch.setattr("sizewise.devices.loader.usable_threads", lambda: 1)
    patch.setattr(fit, "plans_for", partial(plans_for, rates=(0.5,)))


def _brief_timing(calls: object, **options: object) -> object:
    options.update(rounds=3, block_s=0.0, warmup_s=0.0)
    return time_interleaved(calls, **options)  # type: ignore[arg-type]
