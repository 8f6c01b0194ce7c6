"""Int8 of MiniLM with a logistic head on SST-2, beside ONNX Runtime's dynamic quantizer and NNCF.

    python bench/quantize_minilm.py

Every row: accuracy on the development and test sentences together, mean cosine of the sentence embeddings to those of the float
model (the head's two logits say little), size, and latency of one sentence of 64 tokens. Dynamic quantization takes the range of
its inputs at every call, so that sentences are scored one at a time, as they would be served. Targets: cosine at least 0.99, at most
0.5 points lost, at least 2 times as fast as float.
"""

import sys
import tempfile
import time
from pathlib import Path

import sst2_task
import torch
from quantization_rows import File, by_nncf, by_ort_dynamic, lowered, table
from torch import Tensor, nn

import sizewise
from sizewise.protocols import Inputs

TOKENS, CALIBRATION, SCORED = 64, 256, 2693
WANTED_COSINE, WANTED_DROP, WANTED_TIMES = 0.99, 0.005, 2.0


class Both(nn.Module):
    """Logits and the embedding that they are made from."""

    def __init__(self, model: sst2_task.Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [sentences, 2], embedding [sentences, 384]."""
        embedding = self.model.embed(input_ids, attention_mask)
        return self.model.head(embedding), embedding


def main() -> int:
    """Quantize, score and time; exit code 1 when ours misses a target."""
    data, tokens = sst2_task.sentences(), sst2_task.tokenizer()
    whole, folder = Both(sst2_task.trained(tokens, data["train"])).eval(), Path(tempfile.mkdtemp())
    calibration = sst2_task.batches(tokens, data["train"][:CALIBRATION], TOKENS)
    example = {name: tensor[:1] for name, tensor in calibration[0].items()}
    begin = time.perf_counter()
    ours = sizewise.quantize_model(whole, example_inputs=example, calibration=calibration)
    seconds = {"sizewise": time.perf_counter() - begin}
    inputs = Inputs((), example)
    files = {"float": lowered(whole, inputs, folder / "float.onnx"), "sizewise": lowered(ours, inputs, folder / "ours.onnx")}
    files["onnxruntime dynamic"] = by_ort_dynamic(files["float"], folder / "dynamic.onnx")
    singles = [Inputs((), {name: tensor[i : i + 1] for name, tensor in batch.items()}) for batch in calibration[:2] for i in range(64)]
    nncf = by_nncf(files["float"], singles, folder / "nncf.onnx", transformer=True)
    files |= {"nncf": nncf} if nncf is not None else {}
    rows = [*data["dev"], *data["test"]][:SCORED]
    found = {name: _run(file, tokens, rows) for name, file in files.items()}
    labels = torch.tensor([label for _, label in rows])
    right = {name: float((logits.argmax(1) == labels).float().mean()) for name, (logits, _) in found.items()}
    cosine = {name: float(nn.functional.cosine_similarity(e, found["float"][1]).mean()) for name, (_, e) in found.items()}
    ratio = table(files, {name: f"{100 * right[name]:.2f} %  cosine {cosine[name]:.4f}" for name in files}, inputs, seconds)
    lost, faster = right["float"] - right["sizewise"], ratio("float", "sizewise").value
    met = lost <= WANTED_DROP and cosine["sizewise"] >= WANTED_COSINE and faster >= WANTED_TIMES
    print(f"{'ok  ' if met else 'FAIL'} lost {100 * lost:.2f} points, cosine {cosine['sizewise']:.4f}, {faster:.2f} times as fast")
    return int(not met)


def _run(file: File, tokens: object, rows: sst2_task.Sentences) -> tuple[Tensor, Tensor]:
    """Logits and embeddings, sentence by sentence, padded as the file wants them."""
    logits, embeddings = [], []
    for batch in sst2_task.batches(tokens, rows, TOKENS):
        for i in range(len(batch["input_ids"])):
            one = file.runner(Inputs((), {name: tensor[i : i + 1] for name, tensor in batch.items()}))
            logits.append(one[0])
            embeddings.append(one[1])
    return torch.cat(logits), torch.cat(embeddings)


if __name__ == "__main__":
    sys.exit(main())
