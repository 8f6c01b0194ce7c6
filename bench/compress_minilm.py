"""MiniLM with a logistic head on SST-2 in 0.15 of its bytes.

    python bench/compress_minilm.py

Every row: accuracy on the development and test sentences together, mean cosine of the sentence embeddings to those of the float model,
bytes on disk and their share of those in float32. Ours is loaded back from its file. Calibration is 512 training sentences without
their labels. Targets: at most 1.5 points lost, cosine at least 0.97.
"""

import sys
import tempfile
from pathlib import Path

import sst2_task
import torch
from compression_rows import compressed, known_sizes, table
from quantize_minilm import SCORED, TOKENS, Both
from torch import Tensor, nn

import sizewise
from sizewise.protocols import Inputs

RATE, CALIBRATION = 0.15, 512
WANTED_DROP, WANTED_COSINE = 0.015, 0.97


def main() -> int:
    """Compress, load back and score; exit code 1 when a target is missed."""
    data, tokens = sst2_task.sentences(), sst2_task.tokenizer()
    whole, folder = Both(sst2_task.trained(tokens, data["train"])).eval(), Path(tempfile.mkdtemp())
    calibration = sst2_task.batches(tokens, data["train"][:CALIBRATION], TOKENS)
    example = {name: tensor[:1] for name, tensor in calibration[0].items()}
    inputs = Inputs((), example)
    int8 = sizewise.quantize_model(whole, example_inputs=example, calibration=calibration)
    ours = compressed(
        lambda: sizewise.compress_model(whole, RATE, example_inputs=example, calibration=calibration, progress=True),
        whole,
        inputs,
        folder / "ours.swz",
    )
    rows = [*data["dev"], *data["test"]][:SCORED]
    labels = torch.tensor([label for _, label in rows])
    models = {"float32": whole, f"sizewise {RATE}": ours.module}
    found = {name: _run(model, tokens, rows) for name, model in models.items()}
    right = {name: float((logits.argmax(1) == labels).float().mean()) for name, (logits, _) in found.items()}
    cosine = {name: float(nn.functional.cosine_similarity(e, found["float32"][1]).mean()) for name, (_, e) in found.items()}
    sizes = {**known_sizes(whole, int8, inputs, folder), f"sizewise {RATE}": ours.size}
    said = {name: f"{100 * right[name]:.2f} %  cosine {cosine[name]:.4f}" for name in models}
    table(sizes, said, {f"sizewise {RATE}": ours.seconds})
    lost, near = right["float32"] - right[f"sizewise {RATE}"], cosine[f"sizewise {RATE}"]
    met = lost <= WANTED_DROP and near >= WANTED_COSINE and ours.size <= RATE * sizes["float32"]
    print(f"{'ok  ' if met else 'FAIL'} lost {100 * lost:.2f} points, cosine {near:.4f}")
    return int(not met)


def _run(model: nn.Module, tokens: object, rows: sst2_task.Sentences) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        found = [model(**batch) for batch in sst2_task.batches(tokens, rows, TOKENS)]
    return torch.cat([logits for logits, _ in found]), torch.cat([embedding for _, embedding in found])


if __name__ == "__main__":
    sys.exit(main())
