"""A task on speech: spoken digits, three scales of a GRU and of a WaveNet, for `sizewise fit bench/spoken_digits_task.py ...`.

Needs the benchmark data (environment variable SIZEWISE_DATA, default ../shared/data). Source: Jackson et al., Free Spoken
Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0): 3,000 clips, 6 speakers, 8 kHz. Test is the
data set's own 300 clips; of the other 2,700, 1,000 are validation (fewer could not tell one point of accuracy) and 1,700
train, in every digit of every speaker alike. All speakers are in all three, so the accuracies say nothing about a voice
that was never heard.

A clip becomes 49 frames of 40 mel bands: it is scaled to a peak of 1, because loudness tells the speaker rather than the
digit, and fitted to 1.0 s, which holds 99 % of the clips whole. A hop of 20 ms instead of the usual 10 halves the steps that
a recurrent layer takes, and a window of 32 ms fills the transform's 256 samples and still overlaps.
"""

import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import sizewise
from sizewise.data.speech import Standardize, fit_length, log_mel
from sizewise.data.subsets import stratified_order
from sizewise.tasks.task import Untrained
from sizewise.zoo.recurrent import RecurrentClassifier
from sizewise.zoo.wavenet import WaveNet

FILE = Path(os.environ.get("SIZEWISE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "spoken_digits_8k.npz"
RATE, BANDS, FLOOR = 8000, 40, 1e-6
VALIDATION, SPLIT_SEED = 1000, 0
SHIFT, GAIN_DB = 4, 6.0


class MovedBatches:
    """Training batches, reshuffled at every reading, each clip moved by some frames and made louder or softer.

    Draws from torch's global generator, as a shuffling DataLoader does, so that whoever seeds it repeats the sequence.

    Attributes:
        features: log-mel energies [clips, frames, bands], not yet standardized: a gain is a constant added to them.
        labels: digit of every clip, in the order that `subset` counts in.
    """

    def __init__(self, features: Tensor, labels: Tensor, scale: Standardize, batch: int = 64) -> None:
        self.features, self.labels, self.scale, self.batch = features, labels, scale, batch

    def subset(self, indices: Sequence[int]) -> "MovedBatches":
        """The same batches of some of the clips, as many in one batch as leaves few of them out of a reading."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        batches = max(1, round(len(rows) / self.batch))
        return MovedBatches(self.features[rows], self.labels[rows], self.scale, len(rows) // batches)

    def __len__(self) -> int:
        return len(self.labels) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels))
        frames = torch.arange(self.features.shape[1])
        for start in range(0, len(self) * self.batch, self.batch):
            chosen = order[start : start + self.batch].unsqueeze(1)
            shift = torch.randint(-SHIFT, SHIFT + 1, chosen.shape)
            # frames that come in from outside repeat the outermost one
            moved = self.features[chosen, (frames - shift).clamp(0, len(frames) - 1)]
            gain = (2 * torch.rand(len(chosen), 1, 1) - 1) * GAIN_DB * math.log(10) / 10
            yield self.scale((moved + gain).clamp_min(math.log(FLOOR))), self.labels[chosen.squeeze(1)]


def clips() -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Log-mel features, digits, one number per pair of digit and speaker, and which clips are for testing."""
    if not FILE.is_file():
        raise FileNotFoundError(f"no benchmark data {FILE}; set SIZEWISE_DATA")
    with np.load(FILE) as archive:
        wave, ends, digits = torch.from_numpy(archive["wav"]), archive["off"], archive["y"]
        _, speakers = np.unique(archive["speaker"], return_inverse=True)
        test = torch.from_numpy(archive["test"])
    waves = torch.stack([fit_length(wave[a:b].float(), RATE) for a, b in pairwise(ends)])
    waves /= waves.abs().amax(1, keepdim=True)
    features = torch.cat([log_mel(part, RATE, bands=BANDS, window_s=0.032, hop_s=0.020, floor=FLOOR) for part in torch.split(waves, 500)])
    return features, torch.from_numpy(digits), (digits * 100 + speakers).tolist(), test


def make_task() -> sizewise.Task:
    """The task; a few seconds for the features."""
    features, digits, cells, is_test = clips()
    test, rest = is_test.nonzero().squeeze(1), (~is_test).nonzero().squeeze(1)
    order = rest[stratified_order([cells[i] for i in rest.tolist()], SPLIT_SEED)]
    validation, train = order[:VALIDATION], order[VALIDATION:]
    scale = Standardize.fit(features[train])

    def fixed(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(scale(features[part]), digits[part]) for part in torch.split(rows, 100)]

    models: dict[str, Untrained] = {}
    for name, hidden in (("gru-l", 128), ("gru-m", 64), ("gru-s", 24)):
        models[name] = sizewise.untrained(partial(RecurrentClassifier, "gru", BANDS, 10, hidden), epochs=15, lr=1e-2)
    for name, channels, stacks, epochs, lr in (
        ("wavenet-l", 48, 2, 12, 5e-3),
        ("wavenet-m", 32, 1, 15, 1e-2),
        ("wavenet-s", 16, 1, 20, 1e-2),
    ):
        build = partial(WaveNet, BANDS, 10, channels, channels, 5, stacks)
        models[name] = sizewise.untrained(build, epochs=epochs, lr=lr)
    return sizewise.Task(
        models=models,
        example_inputs=scale(features[train[:1]]),
        train=MovedBatches(features[train], digits[train], scale),
        calibration=fixed(train[:256]),
        validation=fixed(validation),
        test=fixed(test),
        metric="accuracy",
        reference="wavenet-l",  # fixed beforehand: the model with most multiplications
        name="spoken digits",
    )


task = make_task()
