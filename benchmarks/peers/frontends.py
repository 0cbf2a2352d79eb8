"""Spectra and log-mel spectrograms in PyTorch and in librosa."""

from __future__ import annotations

import librosa
import numpy as np
import torch

from asdjax.frontends import EPS

Wave = torch.Tensor | np.ndarray


class Frontend(torch.nn.Module):
    """What torchaudio's MelSpectrogram and a logarithm do: wave (B, T) -> dB (B, L, F).

    Args:
        win, hop: samples.
        bank: mel filters (F, win // 2 + 1); None leaves the power spectrum as it is.
        power, pad, floor: as asdjax.frontends.log_mel.
        scale: 'dB' or 'power'.
    """

    def __init__(self, *, win, hop, bank=None, power=2.0, pad="constant", floor=EPS, scale="dB"):
        super().__init__()
        self.win, self.hop, self.power, self.pad, self.floor, self.scale = win, hop, power, pad, floor, scale
        self.register_buffer("window", torch.hann_window(win))
        self.register_buffer("bank", None if bank is None else torch.from_numpy(bank.T.copy()))

    @torch.inference_mode()
    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        settings = dict(window=self.window, center=True, pad_mode=self.pad, return_complex=True)
        x = torch.stft(wave, self.win, self.hop, **settings).abs().pow(self.power).transpose(-1, -2)
        if self.bank is not None:
            x = torch.matmul(x, self.bank)
        if self.scale == "power":
            return x.contiguous()  # (B, L, F) as ours: (B, F, L) in memory before
        return 20 / self.power * torch.log10(x.clamp(min=self.floor))


def librosa_frontend(
    wave: np.ndarray, *, win, hop, bank=None, power=2.0, pad="constant", floor=EPS, scale="dB"
) -> np.ndarray:
    """One clip (T,) -> (L, F); arguments as Frontend."""
    x = np.abs(librosa.stft(wave, n_fft=win, hop_length=hop, pad_mode=pad)) ** power
    if bank is not None:
        x = bank @ x
    return (x if scale == "power" else 20 / power * np.log10(np.maximum(x, floor))).T


def mel_bank(*, win, n_mels, f_min=0.0, f_max=None, mel="slaney") -> np.ndarray:
    """librosa's filters at 16 kHz, (n_mels, win // 2 + 1) float32; arguments as asdjax.frontends.log_mel."""
    kind = dict(htk=True, norm=None) if mel == "htk" else dict(htk=False, norm="slaney")
    return librosa.filters.mel(sr=16000, n_fft=win, n_mels=n_mels, fmin=f_min, fmax=f_max, **kind)
