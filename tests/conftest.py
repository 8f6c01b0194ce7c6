"""What tests of all parts share. Nothing here imports torch."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# Tensors here are so small that several threads only wait for each other. Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Bytecode is kept even where the environment forbids it: every worker of xdist and every process that a test starts would compile anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Every worker begins with a run of neighbours and takes some from another at the end: few fixtures of a module are made twice."""
    from xdist.scheduler import WorkStealingScheduling  # type: ignore[import-untyped]

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    """Runs that time little, without pauses, on one thread, and try one rate: for tests that do not judge speed."""
    from sizewise.pipeline import conclude, searching, timed_files, trial
    from sizewise.profile.timing import time_interleaved

    def shorter(**fixed: Any) -> Callable[..., Any]:
        return lambda calls, **options: time_interleaved(calls, **{**options, **fixed})

    with pytest.MonkeyPatch.context() as patch:
        for module in (conclude, searching, trial):
            patch.setattr(module, "time_interleaved", shorter(rounds=3, block_s=0.0, warmup_s=0.0, settle_s=0.0))
        patch.setattr(timed_files, "time_interleaved", shorter(settle_s=0.0))
        patch.setattr("sizewise.devices.loader.usable_threads", lambda: 1)
        patch.setattr("sizewise.search.levers.PRUNING_RATES", (0.5,))
        yield
