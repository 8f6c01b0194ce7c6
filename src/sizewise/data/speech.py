"""Speech as a network reads it: log-mel filterbank energies, clips of one length, bands of one scale.

Source: Davis and Mermelstein, Comparison of parametric representations for monosyllabic word recognition in continuously
spoken sentences, IEEE Transactions on Acoustics, Speech and Signal Processing 28(4), 1980. Deviation: the paper goes on
to a cosine transform of the log energies; networks take the energies themselves.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sizewise.errors import UsageError

__all__ = ["Standardize", "fit_length", "log_mel", "mel_filters"]


def log_mel(
    waveform: Float[Tensor, "batch samples"],
    rate: int,
    *,
    bands: int = 40,
    window_s: float = 0.025,
    hop_s: float = 0.010,
    floor: float = 1e-6,
) -> Float[Tensor, "batch frames bands"]:
    """Natural logarithm of the energy in mel bands, frame by frame: log(E + floor).

    Frame t holds the N samples from t * hop on, under the periodic Hann window w. P[k] = |sum_n w[n] x[n] e^(-2 pi i k n /
    M)|^2 / sum_n w[n]^2 is its power spectrum, M the power of two at or above N, and E = P @ `mel_filters(bands, M, rate)`.
    The division makes P independent of the window: white noise of variance v has P = v on average in every bin.

    Nothing is padded: there are 1 + (samples - N) // hop frames, samples after the last whole frame are left out, and a
    signal that comes one hop later has the same frames, one later.

    Args:
        waveform: floating point, by custom between -1 and 1.
        rate: samples per second.
        bands: number of mel bands from 0 Hz to rate / 2.
        window_s: length of a frame in seconds, rounded to samples.
        hop_s: distance between the beginnings of frames in seconds, rounded to samples.
        floor: energy added to every band, so that silence is finite; 1e-6 is white noise 60 dB below full scale.

    Raises:
        UsageError: not two dimensions of floating point, shorter than a window, not finite, a setting that is not
            positive, or more bands than the spectrum can tell apart.
    """
    _check_waveform(waveform, rate)
    if not (window_s > 0 and hop_s > 0 and floor > 0):
        raise UsageError("settings must be positive", where="log_mel", got=f"window_s={window_s}, hop_s={hop_s}, floor={floor}")
    window, hop = round(window_s * rate), round(hop_s * rate)
    if window < 2 or hop < 1:
        raise UsageError("a window holds two samples or more, a hop one", where="log_mel", got=f"{window} and {hop} at {rate} Hz")
    if waveform.shape[1] < window:
        raise UsageError(
            "the waveform is shorter than one window",
            where="waveform",
            got=f"{waveform.shape[1]} samples",
            wanted=f"at least {window}: {window_s:g} s at {rate} Hz",
            hint="fit_length(waveform, samples) pads with silence",
        )
    size = 1 << (window - 1).bit_length()
    filters = mel_filters(bands, size, rate).to(waveform)
    hann = torch.hann_window(window, dtype=waveform.dtype, device=waveform.device)
    frames = waveform.unfold(1, window, hop) * hann
    spectrum = torch.fft.rfft(frames, n=size)
    power = (spectrum.real.square() + spectrum.imag.square()) / hann.square().sum()
    return torch.log(power @ filters + floor)


def mel_filters(bands: int, fft: int, rate: int) -> Float[Tensor, "bins bands"]:
    """Triangles of height 1 over the bins of a spectrum, equally wide and half overlapping in mel, in double precision.

    With mel(f) = 2595 log10(1 + f / 700), band b rises from the edge e_b to e_(b+1) and falls to e_(b+2), linearly in Hz,
    where the bands + 2 edges are equally spaced in mel from 0 Hz to rate / 2. Bin k of fft / 2 + 1 lies at k rate / fft Hz.

    Source: the mel formula is O'Shaughnessy's, Speech Communication: Human and Machine, Addison-Wesley, 1987, and HTK's.
    Deviations: Davis and Mermelstein space their filters linearly below 1 kHz; Slaney, Auditory Toolbox, 1998, does too and
    gives the triangles equal areas, which for log energies is a constant per band that `Standardize` takes away.

    Raises:
        UsageError: a number that is not positive, or a band without a bin.
    """
    if bands < 1 or fft < 2 or rate < 1:
        raise UsageError("numbers must be positive", where="mel_filters", got=f"bands={bands}, fft={fft}, rate={rate}")
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    low, mid, high = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(fft // 2 + 1, dtype=torch.float64).unsqueeze(1) * rate / fft
    filters = torch.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)).clamp_min(0)
    # the last edge is computed and may lie a rounding error above rate / 2, whose bin would then pass for a filter's
    empty = int((filters.amax(0) < 1e-9).sum())
    if empty:
        raise UsageError(
            f"{empty} of {bands} bands hold no frequency of the spectrum",
            where="bands",
            got=f"{bands} bands over {fft // 2 + 1} bins of {rate / fft:.4g} Hz",
            hint="fewer bands, or a longer window",
        )
    return filters


def fit_length(waveform: Float[Tensor, "*batch samples"], samples: int) -> Float[Tensor, "*batch {samples}"]:
    """Clips of one length: silence is added, or sound cut off, at both ends alike.

    The middle stays the middle, because recordings of single words carry their silence at the ends: a clip that is too long
    then loses the beginning's and the end's silence instead of the word's last sound, and one that is too short leaves as
    much room for shifts to the left as to the right. Where the numbers are odd, the end gets or loses one sample more.

    Raises:
        UsageError: no length, or no samples.
    """
    if samples < 1 or waveform.ndim < 1 or waveform.shape[-1] < 1:
        raise UsageError("no samples", where="fit_length", got=f"shape {tuple(waveform.shape)} to {samples} samples")
    missing = samples - waveform.shape[-1]
    before = int(missing / 2)  # towards zero
    return F.pad(waveform, (before, missing - before))  # negative amounts cut


@dataclass(frozen=True, eq=False)
class Standardize:
    """Every band to mean 0 and deviation 1 over the data it was fitted on; fit it on training data only.

    Attributes:
        mean: of every band.
        std: standard deviation of every band over examples and frames; 1 for a band that does not vary.
    """

    mean: Float[Tensor, " bands"]
    std: Float[Tensor, " bands"]

    @classmethod
    def fit(cls, features: Float[Tensor, "batch frames bands"]) -> "Standardize":
        """Means and deviations of these features, summed in double precision.

        Raises:
            UsageError: not three dimensions, or no frame.
        """
        if features.ndim != 3 or not features.numel():
            raise UsageError("not features", where="Standardize.fit", got=f"shape {tuple(features.shape)}", wanted="[batch, frames, bands]")
        rows = features.flatten(0, 1).double()
        std, mean = torch.std_mean(rows, 0, correction=0)
        varies = std > 1e-6 * mean.abs().clamp_min(1e-6)  # what rounding leaves of a constant is no deviation
        return cls(mean.to(features.dtype), std.where(varies, 1.0).to(features.dtype))

    def __call__(self, features: Float[Tensor, "*batch bands"]) -> Float[Tensor, "*batch bands"]:
        """(features - mean) / std, band by band.

        Raises:
            UsageError: another number of bands.
        """
        if features.shape[-1:] != self.mean.shape:
            raise UsageError(
                "another number of bands than was fitted",
                where="Standardize",
                got=f"shape {tuple(features.shape)}",
                wanted=f"{len(self.mean)} bands in the last dimension",
            )
        return (features - self.mean) / self.std


def _check_waveform(waveform: Tensor, rate: int) -> None:
    if rate < 1:
        raise UsageError("the rate must be positive", where="rate", got=str(rate), wanted="samples per second")
    if waveform.ndim != 2:
        raise UsageError(
            "not a batch of waveforms",
            where="waveform",
            got=f"shape {tuple(waveform.shape)}",
            wanted="[batch, samples]",
            hint="waveform.unsqueeze(0) makes a batch of one clip" if waveform.ndim == 1 else None,
        )
    if not waveform.is_floating_point():
        raise UsageError(
            "not floating point", where="waveform", got=str(waveform.dtype), hint="divide 16-bit samples by 32768: waveform.float() / 32768"
        )
    if not bool(torch.isfinite(waveform).all()):
        count = int((~torch.isfinite(waveform)).sum())
        raise UsageError("the waveform is not finite", where="waveform", got=f"{count} samples that are nan or infinite")
