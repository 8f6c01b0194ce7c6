"""`select` on digits and on spoken digits: how long it takes, and what its recommendation is worth on the test split.

    python bench/select_scale.py [digits] [speech]

Nothing else may use the machine meanwhile. Held-out quality is the mean over the first three seeds of every scale, trained on
all training examples and scored on the test split, which `select` reads for its fingerprint alone. Targets: digits within 2
minutes; spoken digits within 15, with a recommendation at most 1 point behind whichever scale is best on test, at most half
the cost (latency and float weights, each) of the scale that `select` found best. The cost beside the best on test is printed
too, without a target: 300 test clips do not tell scales apart that differ by less than about a point.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from sizewise.devices.loader import load_device
from sizewise.evaluate.scoring import Split, module_call, score
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.timed_files import time_files
from sizewise.pipeline.train import train_scale
from sizewise.pipeline.workers import run_jobs
from sizewise.tasks.loading import load_task

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
TASKS = {"digits": ("digits", 120.0), "speech": (str(HERE / "spoken_digits_task.py"), 900.0)}


def main() -> int:
    """Run what was asked for; exit code 1 when a target is missed."""
    results = [_run(name, *TASKS[name]) for name in sys.argv[1:] or TASKS]
    return int(not all(results))


def _run(name: str, task: str, limit_s: float) -> bool:
    out = Path(os.environ.get("TMPDIR", "/tmp")) / f"sizewise-bench-select-{name}"
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    command = [sys.executable, "-m", "sizewise", "select", task, "--out", str(out), "--json", "--quiet"]
    record = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seconds = time.perf_counter() - begin
    print(f"{name}: {record['decision']}")
    met = _say(f"{name}: seconds", seconds, seconds <= limit_s, f"<= {limit_s:.0f}")
    chosen = record["recommended"]
    if name != "speech":
        return met
    if chosen is None:
        return _say(f"{name}: a recommendation", 0, False, "one")
    tests = _test_quality(task, [scale["name"] for scale in record["scales"]], out)
    for scale, quality in tests.items():
        print(f"  {scale:12} test {100 * quality:.2f} %")
    best = max(tests, key=lambda scale: tests[scale])
    behind = tests[best] - tests[chosen]
    met &= _say(f"{name}: {chosen} behind {best} on test, points", 100 * behind, behind <= 0.01, "<= 1")
    profiles = {scale["name"]: scale["profile"] for scale in record["scales"]}
    latency = _latencies(task, [chosen, best, record["best"]])
    for what, share in _cost_shares(profiles, latency, chosen, best).items():
        print(f"     {name}: {what} of {chosen} over that of {best}, best on test: {share:.3g}")
    for what, share in _cost_shares(profiles, latency, chosen, record["best"]).items():
        met &= _say(f"{name}: {what} of {chosen} over that of {record['best']}, best by select", share, share <= 0.5, "<= 0.5")
    return met


def _cost_shares(profiles: dict[str, Any], latency: dict[str, float], chosen: str, other: str) -> dict[str, float]:
    counted = {what: profiles[chosen][key] / profiles[other][key] for what, key in (("weights", "weight_bytes"), ("MACs", "macs"))}
    return {"latency": latency[chosen] / latency[other], **counted}


def _latencies(task: str, scales: list[str]) -> dict[str, float]:
    """Median latency of the float files, side by side in more rounds than `select` takes."""
    loaded, runtime, threads = load_task(task), find_runtime("onnxruntime"), load_device("local").threads
    models = {scale: (loaded.build(scale, 0).eval(), loaded.example) for scale in scales}
    timed = time_files(models, runtime, threads, rounds=41, block_s=0.05)
    return {scale: timed.latency(scale).value for scale in models}


def _test_quality(task: str, scales: list[str], out: Path) -> dict[str, float]:
    loaded = load_task(task)
    assert loaded.test is not None

    def run(job: tuple[str, int]) -> None:
        module = train_scale(loaded, *job)
        assert loaded.test is not None
        scores = score(module_call(module), Split("test", loaded.test), loaded.metric)
        (out / f"{job[0]}-{job[1]}.test").write_text(str(float(scores.mean())))

    jobs = [(scale, seed) for scale in scales for seed in SEEDS]
    run_jobs(jobs, run, lambda _: None, workers=os.cpu_count() or 1)
    return {scale: float(np.mean([float((out / f"{scale}-{seed}.test").read_text()) for seed in SEEDS])) for scale in scales}


def _say(what: str, value: float, met: bool, wanted: str) -> bool:
    print(f"{'ok  ' if met else 'FAIL'} {what}: {value:.3g} (wanted {wanted})")
    return met


if __name__ == "__main__":
    sys.exit(main())
