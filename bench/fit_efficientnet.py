"""`sizewise fit` of EfficientNet-Lite0 with smaller inputs allowed, beside ONNX Runtime's int8, NNCF, and Torch-Pruning before int8.

    python bench/fit_efficientnet.py [folder of the run]

Every third of the 600 photos calibrates, without labels; nothing is trained. The other 400 judge, with labels, both while searching
and in the end: there are no others, so that the chosen file's drop is one that was looked for (a test split would say more). Target:
at least 1.3 times as fast as ONNX Runtime's fastest int8 file within 1.5 points.
"""

import sys
import tempfile
from pathlib import Path

from prune_efficientnet import BATCH, CALIBRATION, EXAMPLE, _cut, _reestimated, photos_and_labels, published
from quantization_rows import by_nncf, by_ort_static, lowered
from searched_rows import Peer, chosen_file, compare, folder, racing, score, searched

import sizewise
from sizewise.protocols import Inputs
from sizewise.types import Budget

SIZES = (160, 176, 192, 208)
DROP, WANTED = 1.5, 1.3


def main() -> int:
    """Search, make the peers' files, compare; exit code 1 when the target is missed."""
    photos, labels = photos_and_labels()
    judging = list(zip(photos[CALIBRATION:].split(BATCH), labels[CALIBRATION:].split(BATCH), strict=True))
    calibration = list(photos[:CALIBRATION].split(BATCH))
    task = sizewise.Task(
        {"lite0": published()}, EXAMPLE, calibration=calibration, validation=judging, resize=SIZES, reference="lite0", name="photos"
    )
    result = searched(task, Budget(max_drop=f"{DROP} %"), folder("fit-efficientnet"))
    data = [(Inputs((x,)), y) for x, y in judging]
    where = Path(tempfile.mkdtemp())
    plain = lowered(published(), EXAMPLE, where / "float.onnx")
    singles = [Inputs((row[None],)) for x in calibration for row in x]
    files = {
        f"onnxruntime {method}": by_ort_static(plain, singles, where / f"{method}.onnx", method) for method in ("MinMax", "Percentile")
    }
    if (nncf := by_nncf(plain, singles, where / "nncf.onnx")) is not None:
        files["nncf"] = nncf
    for share in (0.05, 0.1):
        cut = lowered(_reestimated(_cut(published(), share), calibration), EXAMPLE, where / f"cut{share}.onnx")
        files[f"torch-pruning {100 * share:.0f} %, onnxruntime"] = by_ort_static(cut, singles, where / f"cut{share}.int8.onnx")
    peers = {name: Peer(file, score(file, data)) for name, file in files.items()}
    chosen = chosen_file(result)
    print(f"{result.chosen.plan.scale}: {result.chosen.plan.label}; {racing(result)}")
    return int(not compare(Peer(plain, score(plain, data)), Peer(chosen, score(chosen, data)), peers, EXAMPLE, DROP, WANTED))


if __name__ == "__main__":
    sys.exit(main())
