"""`sizewise fit` of ResNet-56 and ResNet-20 on CIFAR-10 with training data, beside the best that single tools make of them.

    python bench/fit_cifar.py [folder of the run]

The search has 30 minutes, the training pictures and 3,000 of the test pictures; the other 7,000 judge. Peers: ONNX Runtime's and
NNCF's int8 of both networks, and Torch-Pruning at two shares before ONNX Runtime's int8, with re-estimated statistics. Target: at
least 1.8 times as fast as the fastest peer within one point of ResNet-56.
"""

import sys
import tempfile
from pathlib import Path

import cifar_task
import numpy as np
from prune_resnet56 import EXAMPLE, _cut, _reestimated
from quantization_rows import by_nncf, by_ort_static, lowered
from recover_resnet56 import Pictures
from searched_rows import Peer, chosen_file, compare, folder, racing, score, searched

import sizewise
from sizewise.protocols import Inputs
from sizewise.types import Budget

DROP, WANTED, TIME, CALIBRATION = 1.0, 1.8, "30m", 512
RECOVERY = "1epoch"  # four won 0.1 points more of a ResNet-56 at half its latency than one did, and left time for fewer trials
BATCH, WORKERS = 64, 2  # two trainings on a core each take two thirds of the time that one after the other does on both


def main() -> int:
    """Search, make the peers' files, compare; exit code 1 when the target is missed."""
    known = cifar_task.task
    with np.load(cifar_task.FOLDER / "cifar10_train_test_jpeg.npz") as archive:
        train = Pictures(archive, 1.0, BATCH)
        calibration = [x for x, _ in cifar_task.pictures(archive, "train", 0, CALIBRATION)]
    task = sizewise.Task(
        known.models,
        EXAMPLE,
        train=train,
        calibration=calibration,
        validation=known.validation,
        test=known.test,
        reference="resnet56",
        name="cifar10",
    )
    result = searched(task, Budget(max_drop=f"{DROP} %"), folder("fit-cifar"), recover=RECOVERY, time_limit=TIME, workers=WORKERS)
    judging = [(Inputs((x,)), y) for x, y in known.test or ()]
    where = Path(tempfile.mkdtemp())
    singles = [Inputs((row[None],)) for x in calibration for row in x]
    plain = {f"resnet{depth}": lowered(cifar_task.published(depth), EXAMPLE, where / f"{depth}.onnx") for depth in (56, 20)}
    files = {}
    for name, file in plain.items():
        files[f"onnxruntime {name}"] = by_ort_static(file, singles, where / f"{name}.int8.onnx")
        if (nncf := by_nncf(file, singles, where / f"{name}.nncf.onnx")) is not None:
            files[f"nncf {name}"] = nncf
    for share in (0.1, 0.3):
        cut = lowered(_reestimated(_cut(cifar_task.published(56), share), calibration), EXAMPLE, where / f"cut{share}.onnx")
        files[f"torch-pruning {100 * share:.0f} %, onnxruntime"] = by_ort_static(cut, singles, where / f"cut{share}.int8.onnx")
    peers = {name: Peer(file, score(file, judging)) for name, file in files.items()}
    whole, chosen = plain["resnet56"], chosen_file(result)
    print(f"{result.chosen.plan.scale}: {result.chosen.plan.label}; {result.record.verdict.judgement}; {racing(result)}")
    return int(not compare(Peer(whole, score(whole, judging)), Peer(chosen, score(chosen, judging)), peers, EXAMPLE, DROP, WANTED))


if __name__ == "__main__":
    sys.exit(main())
