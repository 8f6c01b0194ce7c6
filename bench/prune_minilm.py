"""Pruning of MiniLM with a logistic head on SST-2 without tuning, beside magnitude pruning of as many parameters.

    python bench/prune_minilm.py [share of the encoder's parameters, 0.3 by default]

The share is of the parameters in the linear layers of the six encoder layers (feed-forward and attention); the embedding table,
half of all parameters, is not cut. The head was trained once, on all training sentences; calibration is 512 of them without
labels. Every row: accuracy on the development and the test sentences, share of the encoder's parameters that went, MACs of the
whole over MACs of the pruned model, latency of the whole model's ONNX file over that of the pruned one's (one sentence of 64
tokens, all files timed in the same rounds), and seconds that pruning took. Torch-Pruning's magnitude takes the same share of
the heads and of the feed-forward units of every layer, bisected to our number of parameters. Target: 30 % fewer parameters, at
most 3 points lost on the development and test sentences together.
"""

import copy
import sys
from functools import partial

import sst2_task
import torch
import torch_pruning
from pruning_rows import Row, summary, timed
from torch import Tensor, nn

import sizewise
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs

TOKENS = 64  # of calibration and timing; the longest sentence has 67, half of them have at most 22
CALIBRATION = 512
HEADS = 12
WANTED_SHARE, WANTED_DROP = 0.3, 0.03


def main() -> int:
    """Train the head, prune, score and time; exit code 1 when ours misses a target."""
    share = float(sys.argv[1]) if len(sys.argv) > 1 else WANTED_SHARE
    data, tokens = sst2_task.sentences(), sst2_task.tokenizer()
    whole = sst2_task.trained(tokens, data["train"])
    calibration = sst2_task.batches(tokens, data["train"][:CALIBRATION], TOKENS)
    rows = _rows(whole, calibration, share)
    ends = summary(rows, _example(calibration))
    right: dict[str, Tensor] = {}
    for name, row in rows.items():
        dev, test = (sst2_task.correct(row.module, tokens, data[part]) for part in ("dev", "test"))
        right[name] = torch.cat([dev, test])
        gone = 100 * (1 - _size(row.module) / _size(whole))
        print(f"{name:22} dev {100 * dev.mean():5.2f} %  test {100 * test.mean():5.2f} %  -{gone:4.1f} % parameters  {ends[name]}")
    lost = {name: float(right["whole"].mean() - found.mean()) for name, found in right.items()}
    gone = 1 - _size(rows["sizewise"].module) / _size(whole)
    met = lost["sizewise"] <= WANTED_DROP and gone >= WANTED_SHARE - 0.005
    print(
        f"{'ok  ' if met else 'FAIL'} wanted at most {100 * WANTED_DROP:.0f} points lost with {100 * WANTED_SHARE:.0f} % fewer "
        f"parameters; lost {100 * lost['sizewise']:.2f} with {100 * gone:.1f} %, torch-pruning {100 * lost['torch-pruning']:.2f}"
    )
    return int(not met)


def _rows(whole: nn.Module, calibration: list[dict[str, Tensor]], share: float) -> dict[str, Row]:
    example = _example(calibration)
    rate = share * _size(whole) / static_cost(whole, example).params
    ours = partial(sizewise.prune_model, whole, rate, example_inputs=example.kwargs, calibration=calibration, target="params")
    rows = {"whole": Row(whole), "sizewise": timed(ours), "sizewise, multiple=1": timed(partial(ours, multiple=1))}
    wanted = _size(rows["sizewise"].module)
    return {**rows, "torch-pruning": timed(lambda: _by_torch_pruning(whole, example, wanted))}


def _example(calibration: list[dict[str, Tensor]]) -> Inputs:
    return Inputs((), {name: tensor[:1] for name, tensor in calibration[0].items()})


def _size(model: nn.Module) -> int:
    """Parameters of feed-forward and attention."""
    layers = model.get_submodule("encoder.encoder.layer")
    return sum(p.numel() for m in layers.modules() if isinstance(m, nn.Linear) for p in m.parameters())


def _by_torch_pruning(whole: nn.Module, example: Inputs, size: int) -> nn.Module:
    low, high = 0.0, 0.9
    for _ in range(10):
        share = (low + high) / 2
        low, high = (low, share) if _size(_cut(whole, example, share)) <= size else (share, high)
    return _cut(whole, example, high)


def _cut(whole: nn.Module, example: Inputs, share: float) -> nn.Module:
    """Heads and units of least magnitude go; what writes the residual stream keeps its width."""
    model = copy.deepcopy(whole).requires_grad_(True)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    heads = {module: HEADS for name, module in linear.items() if name.endswith(("query", "key", "value"))}
    ignored = [module for name, module in linear.items() if name.endswith("output.dense") or name == "head"]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        dict(example.kwargs or {}),
        torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=share,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=share,
        ignored_layers=[*ignored, model.encoder.embeddings],
        forward_fn=lambda module, inputs: module(**inputs),
    )
    pruner.step()
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
