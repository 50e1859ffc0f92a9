"""Whisper, one pass at a time: encode a window of speech, ask for its language, write its words down.

faster-whisper's own `transcribe` decodes a window up to six times at rising temperatures where the text repeats
itself or is unlikely, each of them as long as the decoder can go: minutes, for a recording that repeats itself.
Here a window is decoded once, and for as many tokens as its seconds of speech can hold.
"""

from __future__ import annotations

import importlib
import math
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.models import ENGLISH, SPEECH_SAMPLE_RATE
from attune_ensemble.speech.audio import Waveform

if TYPE_CHECKING:
    import ctranslate2

__all__ = [
    "FULL_WINDOW_S",
    "TAIL_S",
    "Encoded",
    "Heard",
    "Whisper",
    "Word",
    "import_without_pyav",
    "pad_for_whisper",
    "place_words",
]

FULL_WINDOW_S = 30.0
"""Longest window that Whisper's encoder takes, in seconds."""

MIN_WINDOW_S = 10.0
TAIL_S = 2.0
"""Whisper's encoder gets the speech, this much silence after it, and at least `MIN_WINDOW_S` in all.

Padding to the usual 30 s costs four times as much for a sentence, and finds no more words.
"""

TOKENS_PER_S = 12
"""Nobody speaks faster: of 362 English clips the fastest has 9. What goes on longer repeats itself for ever."""

LONGEST_WORD_S = 0.8
_SPARE_TOKENS = 16  # of a short clip: timestamps, punctuation
_MAX_WINDOW_TOKENS = 444
_PREPENDED, _APPENDED = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A window that went through the encoder: `speech_s` seconds of speech in `num_frames` frames of 10 ms."""

    output: ctranslate2.StorageView
    num_frames: int
    speech_s: float


@dataclass(frozen=True, slots=True)
class Word:
    """A word, a moment of the window at which it is being said, and how sure Whisper is of it, 0..1."""

    text: str
    at_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class Heard:
    """What Whisper wrote down for one window.

    `mean_logprob` is the mean log-probability of its tokens, `no_speech` the probability that there is no speech;
    `runs_on` says that the text did not end where speech of that length ends. `words` is empty unless asked for.
    """

    text: str
    words: tuple[Word, ...]
    mean_logprob: float
    no_speech: float
    runs_on: bool


class Whisper:
    """Whisper through faster-whisper (CTranslate2), on arrays: its audio decoder is never loaded."""

    # `device`: cpu, or a GPU such as cuda:1.
    def __init__(self, model_dir: Path, device: str, compute_type: str, threads: int, beam_size: int) -> None:
        kind, _, index = device.partition(":")
        self._model = import_without_pyav("faster_whisper").WhisperModel(
            str(model_dir),
            device=kind,
            device_index=int(index or 0),
            compute_type=compute_type,
            cpu_threads=threads,
            local_files_only=True,
        )
        tokenizer = import_without_pyav("faster_whisper.tokenizer").Tokenizer
        # The weights are multilingual, the text tower behind them is English.
        self._tokenizer = tokenizer(self._model.hf_tokenizer, True, task="transcribe", language=ENGLISH)
        self._merge_punctuations = import_without_pyav("faster_whisper.transcribe").merge_punctuations
        self._beam_size = beam_size

    def encode(self, waveform: Waveform) -> Encoded:
        """Encode a window [T] of at most 30 s at 16 kHz."""
        features: npt.NDArray[np.float32] = self._model.feature_extractor(pad_for_whisper(waveform))[:, :-1]
        output = self._model.encode(features)
        return Encoded(output, features.shape[1], len(waveform) / SPEECH_SAMPLE_RATE)

    def languages(self, window: Encoded) -> dict[str, float]:
        """The probability of each language, by its code."""
        return {token[2:-2]: float(p) for token, p in self._model.model.detect_language(window.output)[0]}

    def decode(self, window: Encoded, *, words: bool) -> Heard:
        """Write the window down as English; `words` asks for the single words with their times."""
        prompt = self._tokenizer.sot_sequence
        limit = min(_SPARE_TOKENS + math.ceil(TOKENS_PER_S * window.speech_s), _MAX_WINDOW_TOKENS)
        result = self._model.model.generate(
            window.output,
            [prompt],
            beam_size=self._beam_size,
            max_length=len(prompt) + limit,
            return_scores=True,
            return_no_speech_prob=True,
        )[0]
        tokens = result.sequences_ids[0]
        return Heard(
            text=self._tokenizer.decode(tokens).strip(),
            words=self._words(window, tokens) if words else (),
            mean_logprob=result.scores[0] * len(tokens) / (len(tokens) + 1),
            no_speech=result.no_speech_prob,
            runs_on=len(tokens) >= limit,
        )

    def _words(self, window: Encoded, tokens: list[int]) -> tuple[Word, ...]:
        text = [token for token in tokens if token < self._tokenizer.eot]
        aligned: list[list[dict[str, Any]]] = self._model.find_alignment(
            self._tokenizer, [text], window.output, window.num_frames
        )
        if not text or not aligned:
            return ()
        self._merge_punctuations(aligned[0], _PREPENDED, _APPENDED)
        return place_words([word for word in aligned[0] if word["word"]])


def place_words(aligned: list[dict[str, Any]]) -> tuple[Word, ...]:
    """The words of faster-whisper's alignment (`word`, `start`, `end`, `probability`), each at one moment.

    The alignment leaves no pauses: one of the two words beside a pause reaches through it. That is the first of a
    sentence, which ends where it should, or else the last, which begins where it should.
    """
    placed: list[Word] = []
    for word in aligned:
        at_s = (word["start"] + word["end"]) / 2
        if word["end"] - word["start"] > LONGEST_WORD_S:
            begins_sentence = not placed or placed[-1].text.endswith((".", "!", "?"))
            at_s = word["end"] if begins_sentence else word["start"]
        placed.append(Word(word["word"], at_s, float(word["probability"])))
    return tuple(placed)


def pad_for_whisper(waveform: Waveform) -> Waveform:
    """[T] with silence after it, to a whole number of half seconds, but never beyond a window of 30 s."""
    speech_s = len(waveform) / SPEECH_SAMPLE_RATE
    wanted_s = math.ceil(max(speech_s + TAIL_S, MIN_WINDOW_S) * 2) / 2
    length = round(min(wanted_s, FULL_WINDOW_S) * SPEECH_SAMPLE_RATE)
    return np.pad(waveform, (0, length - len(waveform)))


def import_without_pyav(name: str) -> types.ModuleType:
    """Import a module of faster-whisper with an empty `av` in PyAV's place.

    faster-whisper imports PyAV at the top, to decode files. It is handed arrays here, and PyAV bundles
    codecs under the GPL: it must not be loaded.
    """
    sys.modules.setdefault("av", types.ModuleType("av"))
    return importlib.import_module(name)
