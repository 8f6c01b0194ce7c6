"""The main job's targets, measured on the shipped files of one demo run and one run that is killed and resumed.

    python bench/main_job.py [FOLDER]

Prints one row per target. Takes about five minutes on two cores; not part of the tests, since it judges speed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FASTER, SMALLER, DROP, SECONDS = 3.0, 4.0, 0.01, 180.0


def demo(out: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start the demo in a process of its own."""
    command = [sys.executable, "-m", "sizewise", "demo", "--out", str(out), "--quiet", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def record_of(out: Path) -> dict[str, Any]:
    """The run's record."""
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def killed_midway(out: Path, finished: int) -> None:
    """Start the demo and kill it without warning once some candidates are finished."""
    process = demo(out)
    while len(list(out.glob("trials/*/candidate.json"))) < finished:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def snippet_runs(out: Path) -> bool:
    """Whether the card's five lines run with onnxruntime and numpy alone."""
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    blocked = "import sys; sys.modules['torch'] = None; sys.modules['sizewise'] = None\n"
    return subprocess.run([sys.executable, "-c", blocked + code], cwd=out, capture_output=True, check=False).returncode == 0


def main(folder: Path) -> int:
    """Measure, print, and return how many targets are missed."""
    begin = time.monotonic()
    demo(folder / "whole").wait()
    seconds = time.monotonic() - begin
    whole = record_of(folder / "whole")
    measured = next(c for c in whole["candidates"] if c["id"] == whole["chosen"])["measured"]
    smaller = whole["reference_weight_bytes"] / measured["size_bytes"]
    killed_midway(folder / "cut", 9)
    demo(folder / "cut", "--resume").wait()
    resumed = record_of(folder / "cut")
    rows = [
        (
            "times faster than the largest float PyTorch module",
            whole["speedup"]["value"],
            f">= {FASTER}",
            whole["speedup"]["value"] >= FASTER,
        ),
        ("times smaller than its float weights", smaller, f">= {SMALLER}", smaller >= SMALLER),
        ("drop on validation", measured["quality"]["drop"]["value"], f"<= {DROP}", measured["quality"]["drop"]["value"] <= DROP),
        ("seconds of the demo", seconds, f"<= {SECONDS}", seconds <= SECONDS),
        ("the card's five lines run", snippet_runs(folder / "whole"), "yes", snippet_runs(folder / "whole")),
        ("killed and resumed, the same plan", resumed["chosen"], whole["chosen"], resumed["chosen"] == whole["chosen"]),
    ]
    for name, got, wanted, met in rows:
        shown = f"{got:.4g}" if isinstance(got, float) else got
        print(f"{'ok  ' if met else 'MISS'}  {name}: {shown} (wanted {wanted})")
    return sum(not met for *_, met in rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary)))
