"""`sizewise fit` of MiniLM with a logistic head on SST-2 with training data, beside dynamic int8.

    python bench/fit_minilm.py [folder of the run]

The search sees 872 sentences; the other 1,821 judge. Sentences are padded to 64 tokens, and scored one at a time in integers, as they
would be served. Peers: ONNX Runtime's dynamic int8 and NNCF's. Target: at least 1.4 times as fast as the fastest of them within
one point.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sst2_task
import torch
from quantization_rows import by_nncf, by_ort_dynamic, lowered
from searched_rows import Peer, chosen_file, compare, folder, racing, score, searched
from torch import Tensor

import sizewise
from sizewise.protocols import Inputs
from sizewise.types import Budget

DROP, WANTED, TIME, TOKENS, CALIBRATION, BATCH = 1.0, 1.4, "20m", 64, 512, 32
RECOVERY = "1epoch"


def main() -> int:
    """Search, make the peers' files, compare; exit code 1 when the target is missed."""
    data, tokens = sst2_task.sentences(), sst2_task.tokenizer()
    whole = sst2_task.trained(tokens, data["train"])
    parts = {part: _labelled(tokens, data[part], 1) for part in ("dev", "test")}
    train = _labelled(tokens, data["train"], BATCH)
    calibration = sst2_task.batches(tokens, data["train"][:CALIBRATION], TOKENS)
    example = Inputs((), {name: tensor[:1] for name, tensor in calibration[0].items()})
    task = sizewise.Task(
        {"minilm": whole},
        dict(example.kwargs or {}),
        train=train,
        calibration=calibration,
        validation=parts["dev"],
        test=parts["test"],
        reference="minilm",
        name="sst2",
    )
    result = searched(task, Budget(max_drop=f"{DROP} %"), folder("fit-minilm"), recover=RECOVERY, time_limit=TIME)
    judging = [(Inputs((), {k: v for k, v in batch.items() if k != "labels"}), batch["labels"]) for batch in parts["test"]]
    where = Path(tempfile.mkdtemp())
    plain = lowered(whole, example, where / "float.onnx")
    files = {"onnxruntime dynamic": by_ort_dynamic(plain, where / "dynamic.onnx")}
    singles = [Inputs((), {name: t[i : i + 1] for name, t in batch.items()}) for batch in calibration[:2] for i in range(64)]
    if (nncf := by_nncf(plain, singles, where / "nncf.onnx", transformer=True)) is not None:
        files["nncf"] = nncf
    peers = {name: Peer(file, score(file, judging)) for name, file in files.items()}
    chosen = chosen_file(result)
    print(f"{result.chosen.plan.scale}: {result.chosen.plan.label}; {result.record.verdict.judgement}; {racing(result)}")
    return int(not compare(Peer(plain, score(plain, judging)), Peer(chosen, score(chosen, judging)), peers, example, DROP, WANTED))


def _labelled(tokens: Any, rows: Sequence[tuple[str, int]], size: int) -> list[dict[str, Tensor]]:
    """Batches of so many sentences, with their labels."""
    labels = torch.tensor([label for _, label in rows])
    whole = {
        name: torch.cat([batch[name] for batch in sst2_task.batches(tokens, rows, TOKENS)]) for name in ("input_ids", "attention_mask")
    }
    starts = range(0, len(rows), size)
    return [{**{name: t[i : i + size] for name, t in whole.items()}, "labels": labels[i : i + size]} for i in starts]


if __name__ == "__main__":
    sys.exit(main())
