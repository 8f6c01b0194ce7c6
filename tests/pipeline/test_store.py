"""The run folder belongs to one process at a time."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sizewise.errors import UsageError
from sizewise.pipeline.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is held there")


def hold(out: Path, pipe: Any) -> None:
    with Store(out, resume=True).held():
        (out / ".part-draft").touch()
        pipe.send_bytes(b"held")
        time.sleep(60)


def test_a_folder_that_another_process_works_in_is_refused_until_that_ends_however_it_does(tmp_path: Path) -> None:
    mine, theirs = multiprocessing.get_context("fork").Pipe()
    other = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "out", theirs))
    other.start()
    mine.recv_bytes()
    with pytest.raises(UsageError, match="another process"):
        Store(tmp_path / "out", resume=True)
    assert (tmp_path / "out" / ".part-draft").exists(), "what the other is writing is left alone"
    os.kill(other.pid or 0, signal.SIGKILL)
    other.join()
    other.close()
    with Store(tmp_path / "out", resume=True).held():
        assert not (tmp_path / "out" / ".part-draft").exists()
    with Store(tmp_path / "out", resume=True).held():
        pass  # again, in the same process
