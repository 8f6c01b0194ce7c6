"""Run in a process of its own: how much memory loading and running one ONNX file takes.

    python -m sizewise.runtimes._onnxruntime_memory MODEL INPUTS.npz THREADS

Prints one JSON object. Linux resets the peak right before loading; elsewhere the process's whole peak is used.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil


def reset_peak() -> bool:
    """Make the kernel forget the peak so far; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Highest resident size of this process so far."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        info = psutil.Process().memory_info()
        return int(getattr(info, "peak_wset", info.rss))


def main(model: str, inputs: str, threads: str) -> None:
    """Load, run five times, report."""
    feed = dict(np.load(inputs, allow_pickle=False))
    reset_peak()
    before = psutil.Process().memory_info().rss
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = int(threads), 1, 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(5):
        session.run(None, feed)
    print(json.dumps({"peak_growth_bytes": max(0, peak_bytes() - before)}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
