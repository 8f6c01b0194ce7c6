"""Channel pruning of the published ResNet-56 for CIFAR-10 without training, beside Torch-Pruning at the same MACs.

    python bench/prune_resnet56.py [test pictures, 10000 by default]

Every row: accuracy on the test pictures, MACs of the whole over MACs of the pruned model, seconds that pruning took, and latency of
the whole model's ONNX file over that of the pruned one's, all files timed in the same rounds. Calibration is 512 training
pictures without their labels. Torch-Pruning's group magnitude cuts the same share inside every block (it cannot follow the
zero-padded shortcuts, so the streams stay whole, as ours do), its share bisected to the same MACs; a second row re-estimates its
normalization statistics on the same pictures. Targets: 2.0 times fewer MACs with at least 84 %, in at most 3 minutes.
"""

import copy
import sys
import time
from collections.abc import Callable

import cifar_task
import numpy as np
import torch
import torch_pruning
from torch import nn

import sizewise
from sizewise.data.statistics import reestimate_normalization
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.timed_files import time_files
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs

EXAMPLE = Inputs((torch.zeros(1, 3, 32, 32),))
WANTED_ACCURACY, WANTED_TIMES, WANTED_SECONDS = 0.84, 2.0, 180.0


def main() -> int:
    """Prune, score and time all rows; exit code 1 when ours misses a target."""
    with np.load(cifar_task.FOLDER / "cifar10_train_test_jpeg.npz") as archive:
        calibration = [x for x, _ in cifar_task.pictures(archive, "train", 0, 512)]
        test = cifar_task.pictures(archive, "test", 0, int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    whole = cifar_task.published(56)
    macs = static_cost(whole, EXAMPLE).macs
    rows: dict[str, tuple[nn.Module, float]] = {"whole": (whole, 0.0)}
    rows["sizewise 50 %"] = _timed(lambda: sizewise.prune_model(whole, 0.5, example_inputs=EXAMPLE, calibration=calibration))
    ours = static_cost(rows["sizewise 50 %"][0], EXAMPLE).macs
    rows["sizewise 50 %, multiple=1"] = _timed(
        lambda: sizewise.prune_model(whole, 0.5, example_inputs=EXAMPLE, calibration=calibration, multiple=1)
    )
    rows["torch-pruning"] = _timed(lambda: _by_torch_pruning(whole, ours))
    rows["torch-pruning, statistics"] = _timed(lambda: _reestimated(rows["torch-pruning"][0], calibration))
    speedups = _speedups({name: module for name, (module, _) in rows.items()})
    for name, (module, seconds) in rows.items():
        times = macs / static_cost(module, EXAMPLE).macs
        accuracy = _accuracy(module, test)
        print(f"{name:26} {100 * accuracy:6.2f} %  {times:4.2f} x fewer MACs  {seconds:5.1f} s  {speedups[name]}")
        if name == "sizewise 50 %":
            met = accuracy >= WANTED_ACCURACY and times >= WANTED_TIMES and seconds <= WANTED_SECONDS
    print(f"{'ok  ' if met else 'FAIL'} wanted {WANTED_TIMES} times fewer MACs, {100 * WANTED_ACCURACY} %, {WANTED_SECONDS:.0f} s")
    return int(not met)


def _timed(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    begin = time.perf_counter()
    module = make()
    return module, time.perf_counter() - begin


def _by_torch_pruning(whole: nn.Module, macs: int) -> nn.Module:
    low, high = 0.0, 0.95
    for _ in range(8):
        share = (low + high) / 2
        module = _cut(whole, share)
        low, high = (low, share) if static_cost(module, EXAMPLE).macs < macs else (share, high)
    return _cut(whole, high)


def _cut(whole: nn.Module, share: float) -> nn.Module:
    module = copy.deepcopy(whole)
    streams = [m for name, m in module.named_modules() if isinstance(m, nn.Conv2d) and (name == "conv1" or name.endswith("conv2"))]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    ignored = [*streams, module.linear]
    pruner = torch_pruning.pruner.BasePruner(module, EXAMPLE.args[0], importance, pruning_ratio=share, ignored_layers=ignored)
    pruner.step()
    return module.eval()


def _reestimated(module: nn.Module, calibration: list[torch.Tensor]) -> nn.Module:
    twin = copy.deepcopy(module)
    reestimate_normalization(twin, [Inputs((x,)) for x in calibration])
    return twin


def _accuracy(module: nn.Module, test: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    with torch.no_grad():
        right = [(module(x).argmax(1) == y).float() for x, y in test]
    return float(torch.cat(right).mean())


def _speedups(modules: dict[str, nn.Module]) -> dict[str, str]:
    models = {name: (module, EXAMPLE) for name, module in modules.items()}
    timed = time_files(models, find_runtime("onnxruntime"), torch.get_num_threads(), rounds=21, block_s=0.05)
    found = {name: timed.ratio("whole", name) for name in modules}
    return {name: f"{r.value:.2f} x [{r.low:.2f}, {r.high:.2f}] faster" for name, r in found.items()}


if __name__ == "__main__":
    sys.exit(main())
