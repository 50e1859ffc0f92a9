"""Speech to text: finding the speech, cutting it into segments, and writing down the words of each."""

from __future__ import annotations

import importlib
import math
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import NoSpeech
from attune_client.protocol.models import MAX_SEGMENT_S, SPEECH_SAMPLE_RATE
from attune_ensemble.audio import Waveform, decode_speech
from attune_ensemble.segmentation import Span, pack, stack
from attune_ensemble.tensors import Tensors, bytes_tensor

if TYPE_CHECKING:
    import ctranslate2
    from faster_whisper import WhisperModel

MIN_SILENCE_MS = 300
SPEECH_PAD_MS = 150
MIN_WINDOW_S = 10.0
TAIL_S = 2.0
"""Whisper's encoder gets the speech, this much silence after it, and at least `MIN_WINDOW_S` in all.

Padding to the usual 30 s costs four times as much for a sentence, and finds no more words.
"""

_FULL_WINDOW_S = 30.0
_GAP = SPEECH_SAMPLE_RATE // 5  # silence put between segments, so that no word runs over two of them


@dataclass(frozen=True, slots=True)
class TranscribedSegment:
    """A segment of speech and its words."""

    span: Span
    transcript: str


class Transcriber:
    """Whisper through faster-whisper (CTranslate2), on arrays: its audio decoder is never loaded."""

    def __init__(
        self, model_dir: Path, *, device: str = "cpu", compute_type: str = "int8", threads: int = 2, beam_size: int = 1
    ) -> None:
        self._model = _load_whisper(model_dir, device, compute_type, threads)
        self._beam_size = beam_size

    def transcribe(self, waveform: Waveform) -> list[TranscribedSegment]:
        """Segments of at most 8 s with their words, of [T] at 16 kHz; raises `NoSpeech` if there are none."""
        segments = find_speech(waveform)
        if not segments:
            raise NoSpeech("no speech was found in the recording")
        transcripts = self._transcripts(waveform, segments)
        if not any(transcripts):
            raise NoSpeech("something like speech was found, but no words in it")
        return [TranscribedSegment(span, text) for span, text in zip(segments, transcripts, strict=True)]

    def answer(self, inputs: Tensors) -> Tensors:
        """From one encoded recording, `audio` BYTES [1], to the outputs of `speech_to_text`.

        Raises the `InvalidAudio` that fits when the recording cannot be used.
        """
        waveform = decode_speech(inputs["audio"].flat[0])
        found = self.transcribe(waveform)
        spans = [segment.span for segment in found]
        return {
            "waveform": stack(waveform, spans),
            "num_samples": np.array([[span.end - span.start] for span in spans], np.int64),
            "start_s": np.array([span.start_s for span in spans], np.float32),
            "end_s": np.array([span.end_s for span in spans], np.float32),
            "transcript": bytes_tensor(*(segment.transcript for segment in found))[:, None],
        }

    def _transcripts(self, waveform: Waveform, segments: list[Span]) -> list[str]:
        several = len(segments) > 1
        # The weights are multilingual, the text tower behind them is English.
        found, _ = self._model.transcribe(
            pad_for_whisper(_join(waveform, segments)),
            language="en",
            beam_size=self._beam_size,
            word_timestamps=several,
            condition_on_previous_text=False,
        )
        if not several:
            return ["".join(part.text for part in found).strip()]
        words = [((w.start + w.end) / 2, w.word) for part in found for w in part.words or ()]
        return assign_words(segments, words)


def find_speech(waveform: Waveform) -> list[Span]:
    """Segments of speech in [T] at 16 kHz, cut at pauses to at most 8 s each (Silero voice activity detection)."""
    faster_whisper_vad = _import_without_pyav("faster_whisper.vad")
    options = faster_whisper_vad.VadOptions(
        min_silence_duration_ms=MIN_SILENCE_MS,
        speech_pad_ms=SPEECH_PAD_MS,
        max_speech_duration_s=MAX_SEGMENT_S,
    )
    found = faster_whisper_vad.get_speech_timestamps(waveform, options)
    return pack([Span(int(s["start"]), min(int(s["end"]), len(waveform))) for s in found])


def pad_for_whisper(waveform: Waveform) -> Waveform:
    """[T] with silence after it, to a whole number of half seconds, but never into a further window of 30 s."""
    speech_s = len(waveform) / SPEECH_SAMPLE_RATE
    wanted_s = math.ceil(max(speech_s + TAIL_S, MIN_WINDOW_S) * 2) / 2
    last_window_ends_s = math.ceil(speech_s / _FULL_WINDOW_S) * _FULL_WINDOW_S
    length = round(min(wanted_s, last_window_ends_s) * SPEECH_SAMPLE_RATE)
    return np.pad(waveform, (0, length - len(waveform)))


def assign_words(segments: list[Span], words: list[tuple[float, str]]) -> list[str]:
    """Give each word of the joined segments (see `_join`) to the segment in which its middle lies."""
    lengths = np.array([segment.end - segment.start + _GAP for segment in segments])
    edges_s = np.cumsum(lengths)[:-1] / SPEECH_SAMPLE_RATE
    transcripts = [""] * len(segments)
    for middle_s, word in words:
        transcripts[int(np.searchsorted(edges_s, middle_s))] += word
    return [text.strip() for text in transcripts]


def _join(waveform: Waveform, segments: list[Span]) -> Waveform:
    """The segments one after the other with short gaps: Whisper pays for 30 s windows, not for pauses."""
    gap = np.zeros(_GAP, np.float32)
    parts = [part for segment in segments for part in (waveform[segment.start : segment.end], gap)]
    return np.concatenate(parts)


def _load_whisper(model_dir: Path, device: str, compute_type: str, threads: int) -> WhisperModel:
    faster_whisper = _import_without_pyav("faster_whisper")

    class ShortWindowWhisper(faster_whisper.WhisperModel):  # type: ignore[name-defined]
        """Encodes as many frames as there are, in place of 30 s: the padding is what most of the time goes to."""

        def encode(self, features: npt.NDArray[np.float32]) -> ctranslate2.StorageView:
            """Encode [mels, M] without the all-zero frames that faster-whisper pads a window with."""
            used = np.flatnonzero(features.any(axis=0))
            return super().encode(features[:, : used[-1] + 1] if len(used) else features)

    kind, _, index = device.partition(":")
    return ShortWindowWhisper(
        str(model_dir),
        device=kind,
        device_index=int(index or 0),
        compute_type=compute_type,
        cpu_threads=threads,
        local_files_only=True,
    )


def _import_without_pyav(name: str) -> types.ModuleType:
    """Import a module of faster-whisper with an empty `av` in PyAV's place.

    faster-whisper imports PyAV at the top, to decode files. It is handed arrays here, and PyAV bundles
    codecs under the GPL: it must not be loaded.
    """
    sys.modules.setdefault("av", types.ModuleType("av"))
    return importlib.import_module(name)
