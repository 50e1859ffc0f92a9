"""Data augmentation of the waveform, the front end's output and the transcript (paper, section III-B)."""

from attune_training.augmentation.spectrogram import mask_spectrogram
from attune_training.augmentation.waveform import WaveformAugmentation, add_noise, change_gain, change_speed
from attune_training.augmentation.words import replace_synonyms

__all__ = [
    "WaveformAugmentation",
    "add_noise",
    "change_gain",
    "change_speed",
    "mask_spectrogram",
    "replace_synonyms",
]
