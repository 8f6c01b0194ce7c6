"""Log-mel features against sums and loops, and what they promise about tones, shifts and silence."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.data.speech import Standardize, fit_length, log_mel, mel_filters
from sizewise.errors import UsageError

RATE = 8000


def _noise(batch: int, samples: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


def _hz(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


def _slow_power(frame: npt.NDArray[np.float64], size: int) -> list[float]:
    n = len(frame)
    window = [0.5 - 0.5 * math.cos(2 * math.pi * i / n) for i in range(n)]
    total = sum(w * w for w in window)
    sums = [sum(window[i] * frame[i] * np.exp(-2j * np.pi * i * k / size) for i in range(n)) for k in range(size // 2 + 1)]
    return [abs(s) ** 2 / total for s in sums]


def _slow_triangle(frequency: float, low: float, mid: float, high: float) -> float:
    if low < frequency <= mid:
        return (frequency - low) / (mid - low)
    if mid < frequency < high:
        return (high - frequency) / (high - mid)
    return 0.0


def _slow_log_mel(
    signal: npt.NDArray[np.float64], rate: int, bands: int, window: int, hop: int, size: int, floor: float
) -> list[list[float]]:
    edges = [_hz(_mel(rate / 2) * i / (bands + 1)) for i in range(bands + 2)]
    rows = []
    for start in range(0, len(signal) - window + 1, hop):
        power = _slow_power(signal[start : start + window], size)
        energies = [sum(p * _slow_triangle(k * rate / size, *edges[b : b + 3]) for k, p in enumerate(power)) for b in range(bands)]
        rows.append([math.log(e + floor) for e in energies])
    return rows


@pytest.mark.parametrize(
    ("rate", "bands", "window_s", "hop_s", "window", "hop", "size"),
    [(8000, 10, 0.005, 0.003, 40, 24, 64), (1000, 4, 0.032, 0.02, 32, 20, 32), (16000, 7, 0.0021, 0.001, 34, 16, 64)],
)
def test_features_are_what_explicit_sums_give(
    rate: int, bands: int, window_s: float, hop_s: float, window: int, hop: int, size: int
) -> None:
    signal = _noise(2, 3 * window + 7)
    got = log_mel(signal, rate, bands=bands, window_s=window_s, hop_s=hop_s, floor=1e-3)
    want = [_slow_log_mel(row.numpy(), rate, bands, window, hop, size, 1e-3) for row in signal]
    assert got.shape == (2, 1 + (3 * window + 7 - window) // hop, bands)
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), atol=1e-9)


def test_single_precision_stays_single_and_agrees_with_double() -> None:
    signal = _noise(2, 2000)
    single = log_mel(signal.float(), RATE)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), log_mel(signal, RATE), atol=1e-3)


@pytest.mark.parametrize("band", [2, 9, 20, 38])
def test_a_pure_tone_is_loudest_in_the_band_whose_middle_it_is(band: int) -> None:
    frequency = _hz(_mel(RATE / 2) * (band + 1) / 41)
    tone = torch.sin(2 * math.pi * frequency * torch.arange(4000, dtype=torch.float64) / RATE).unsqueeze(0)
    features = log_mel(tone, RATE, window_s=0.064)
    assert (features.argmax(-1) == band).all()


def test_white_noise_has_its_variance_in_every_bin_whatever_the_window() -> None:
    noise = 0.5 * _noise(1, 400_000)
    for window_s in (0.016, 0.064):
        size = round(window_s * RATE)  # a power of two, so nothing is padded
        energy = log_mel(noise, RATE, bands=5, window_s=window_s, floor=1e-12).exp().mean((0, 1))
        assert torch.allclose(energy / mel_filters(5, size, RATE).sum(0), torch.full((5,), 0.25, dtype=torch.float64), rtol=0.05)


def test_a_signal_one_hop_later_has_the_same_frames_one_later() -> None:
    signal = _noise(3, 1600)
    late = torch.cat([_noise(3, 80, seed=1), signal], 1)
    assert torch.allclose(log_mel(late, RATE)[:, 1:], log_mel(signal, RATE), atol=1e-9)


def test_silence_is_the_logarithm_of_the_floor() -> None:
    features = log_mel(torch.zeros(2, 800), RATE, floor=1e-4)
    assert torch.allclose(features, torch.full_like(features, math.log(1e-4)))


def test_ten_times_the_amplitude_is_a_constant_more_in_every_band() -> None:
    signal = _noise(1, 1600)
    gain = log_mel(10 * signal, RATE, floor=1e-15) - log_mel(signal, RATE, floor=1e-15)
    assert torch.allclose(gain, torch.full_like(gain, math.log(100)))


def test_features_have_a_gradient_even_in_silence() -> None:
    signal = torch.zeros(1, 400, requires_grad=True)
    log_mel(signal, RATE).sum().backward()  # type: ignore[no-untyped-call]
    assert signal.grad is not None
    assert torch.isfinite(signal.grad).all()


def test_exactly_one_window_is_one_frame() -> None:
    assert log_mel(_noise(1, 200), RATE).shape == (1, 1, 40)
    assert log_mel(_noise(1, 279), RATE).shape == (1, 1, 40)
    assert log_mel(_noise(1, 280), RATE).shape == (1, 2, 40)


def _with(value: float) -> Tensor:
    signal = torch.zeros(1, 400)
    signal[0, 7] = value
    return signal


@pytest.mark.parametrize(
    ("waveform", "options", "message"),
    [
        (torch.zeros(400), {}, r"not a batch of waveforms\n.*\(400,\)"),
        (torch.zeros(1, 1, 400), {}, "not a batch of waveforms"),
        (torch.zeros(1, 400, dtype=torch.int16), {}, r"not floating point\n.*int16(.|\n)*32768"),
        (torch.zeros(1, 199), {}, r"shorter than one window\n  got: 199 samples\n  wanted: at least 200"),
        (_with(math.nan), {}, r"not finite\n  got: 1 samples"),
        (_with(-math.inf), {}, "not finite"),
        (torch.zeros(1, 400), {"bands": 100}, r"of 100 bands hold no frequency(.|\n)*129 bins of 31.25 Hz"),
        (torch.zeros(1, 400), {"bands": 0}, "must be positive"),
        (torch.zeros(1, 400), {"floor": 0.0}, r"must be positive(.|\n)*floor=0.0"),
        (torch.zeros(1, 400), {"hop_s": -0.01}, "must be positive"),
        (torch.zeros(1, 400), {"window_s": math.nan}, "must be positive"),
        (torch.zeros(1, 400), {"hop_s": 1e-5}, r"a hop one(.|\n)*200 and 0 at 8000 Hz"),
        (torch.zeros(1, 400), {"rate": 0}, "rate must be positive"),
    ],
)
def test_what_cannot_be_meant_is_refused(waveform: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        log_mel(waveform, **{"rate": RATE, **options})


def test_a_single_clip_is_told_how_to_become_a_batch() -> None:
    with pytest.raises(UsageError) as caught:
        log_mel(torch.zeros(400), RATE)
    assert "unsqueeze" in (caught.value.hint or "")


def test_triangles_overlap_by_half_and_sum_to_one_between_the_first_and_the_last_middle() -> None:
    filters = mel_filters(12, 512, RATE)
    middles = [_hz(_mel(RATE / 2) * i / 13) for i in (1, 12)]
    inside = [k for k in range(257) if middles[0] <= k * RATE / 512 <= middles[1]]
    assert torch.allclose(filters[inside].sum(1), torch.ones(len(inside), dtype=torch.float64))
    assert float(filters.max()) <= 1
    assert float(filters.min()) == 0


@given(st.integers(1, 40), st.sampled_from([64, 256, 512]), st.sampled_from([8000, 11025, 16000]))
@settings(deadline=None, max_examples=30)
def test_every_band_holds_a_bin_or_the_number_of_bands_is_refused(bands: int, size: int, rate: int) -> None:
    edges = [_hz(_mel(rate / 2) * i / (bands + 1)) for i in range(bands + 2)]
    hold = [any(low < k * rate / size < high - 1e-6 for k in range(size // 2 + 1)) for low, high in zip(edges, edges[2:], strict=False)]
    if all(hold):
        assert (mel_filters(bands, size, rate).sum(0) > 0).all()
    else:
        with pytest.raises(UsageError, match=f"{hold.count(False)} of {bands} bands"):
            mel_filters(bands, size, rate)


def test_a_clip_stays_in_the_middle_whether_it_is_padded_or_cut() -> None:
    clip = torch.arange(1.0, 6.0)
    assert fit_length(clip, 9).tolist() == [0, 0, 1, 2, 3, 4, 5, 0, 0]
    assert fit_length(clip, 8).tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert fit_length(clip, 3).tolist() == [2, 3, 4]
    assert fit_length(clip, 2).tolist() == [2, 3]
    assert fit_length(clip.expand(2, 3, 5), 7).shape == (2, 3, 7)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_any_length_becomes_any_other_and_comes_back_if_it_was_padded(have: int, want: int) -> None:
    clip = torch.arange(1.0, have + 1.0)
    fitted = fit_length(clip, want)
    assert fitted.shape == (want,)
    assert (fitted != 0).sum() == min(have, want)
    if want >= have:
        assert torch.equal(fit_length(fitted, have), clip)


@pytest.mark.parametrize(("shape", "samples"), [((5,), 0), ((2, 0), 5), ((), 5)])
def test_a_length_without_samples_is_refused(shape: tuple[int, ...], samples: int) -> None:
    with pytest.raises(UsageError, match="fit_length: no samples"):
        fit_length(torch.zeros(shape), samples)


def test_standardized_training_data_has_mean_0_and_deviation_1_in_every_band() -> None:
    train = 5 + torch.tensor([1.0, 10.0, 0.01]) * torch.randn(20, 30, 3, generator=torch.Generator().manual_seed(0))
    scale = Standardize.fit(train)
    rows = scale(train).reshape(-1, 3).double()
    assert torch.allclose(rows.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(rows.std(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-4)
    other = torch.randn(4, 7, 3)
    assert torch.equal(scale(other), (other - scale.mean) / scale.std)
    assert torch.equal(scale(other[0, 0]), scale(other)[0, 0])


def test_a_band_that_does_not_vary_is_only_centred() -> None:
    train = torch.randn(5, 6, 2)
    train[..., 1] = math.log(1e-6)
    scale = Standardize.fit(train)
    assert float(scale.std[1]) == 1
    assert torch.allclose(scale(train)[..., 1], torch.zeros(5, 6), atol=1e-5)


def test_standardizing_refuses_other_shapes() -> None:
    with pytest.raises(UsageError, match="not features"):
        Standardize.fit(torch.zeros(3, 4))
    with pytest.raises(UsageError, match="not features"):
        Standardize.fit(torch.zeros(0, 4, 2))
    scale = Standardize.fit(torch.randn(2, 3, 4))
    for wrong in (torch.zeros(2, 3, 5), torch.tensor(0.0)):
        with pytest.raises(UsageError, match=r"another number of bands(.|\n)*4 bands in the last"):
            scale(wrong)
