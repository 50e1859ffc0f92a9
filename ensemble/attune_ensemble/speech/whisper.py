"""Whisper in single passes: encode a window of speech, identify its language, decode its text.

faster-whisper's own `transcribe` decodes a window up to six times at rising temperatures if the text is repetitive or
improbable, each time up to the maximum length: minutes, for a repetitive recording. Here a window is decoded once, and
the number of tokens is bounded by the duration of its speech. `Decoding` has what else Whisper is often used with; the
defaults are what is served, and `attune evaluate transcription` measures the others.
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
    "DecodedText",
    "Decoding",
    "Encoded",
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
"""Seconds of silence after the speech in the encoder's input, whose minimum length is `MIN_WINDOW_S`.

Padding to the usual 30 s costs four times as much for a sentence, without a lower word error rate.
"""

TOKENS_PER_S = 12
"""Maximum tokens per second of speech: the fastest of 362 English clips has 9. Longer output is a repetition loop."""

TIMESTAMP_S = 0.02
"""What one step between Whisper's timestamp tokens stands for, in seconds."""

LONGEST_WORD_S = 0.8
_SPARE_TOKENS = 16  # allowance for a short clip: timestamps, punctuation
_MAX_WINDOW_TOKENS = 444
_MOST_TOKENS = 448  # of Whisper's decoder, the prompt included
_MAX_PREVIOUS_TOKENS = 223

MIN_FALLBACK_LOGPROB = -1.0
"""With a fallback, text with a lower mean log-probability, or without an end, is decoded again (as OpenAI's does)."""

_CANDIDATES = 5  # sampled at each temperature of a fallback; the most probable one counts
_PREPENDED, _APPENDED = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True, slots=True)
class Decoding:
    """How text is decoded.

    `prompt` is text that Whisper takes for what was said before. `fallback` are temperatures, in order, at which a
    window of doubtful text is sampled again. `condition_on_previous` gives a window the text of those before as well.
    """

    beam_size: int = 1
    prompt: str = ""
    fallback: tuple[float, ...] = ()
    condition_on_previous: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """The encoder's output for a window with `speech_s` seconds of speech in `num_frames` frames of 10 ms."""

    output: ctranslate2.StorageView
    num_frames: int
    speech_s: float


@dataclass(frozen=True, slots=True)
class Word:
    """A word, a time within it in seconds from the window's start, and Whisper's probability of it, 0..1."""

    text: str
    at_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class DecodedText:
    """Decoded text of one window.

    `mean_logprob` is the mean log-probability of its tokens, `no_speech` the probability that there is no speech;
    `reached_limit` is True if decoding reached its limit of tokens. `words` is empty unless requested.
    """

    text: str
    words: tuple[Word, ...]
    mean_logprob: float
    no_speech: float
    reached_limit: bool


class Whisper:
    """Whisper through faster-whisper (CTranslate2), on arrays; faster-whisper's audio decoder is never loaded."""

    # `device`: cpu, or a GPU such as cuda:1.
    def __init__(self, model_dir: Path, device: str, compute_type: str, threads: int, decoding: Decoding) -> None:
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
        # The weights are multilingual; the text tower is English.
        self._tokenizer = tokenizer(self._model.hf_tokenizer, True, task="transcribe", language=ENGLISH)
        self._merge_punctuations = import_without_pyav("faster_whisper.transcribe").merge_punctuations
        self._decoding = decoding

    def close(self) -> None:
        """Release the memory of the weights; the model cannot be used afterwards."""
        self._model.model.unload_model()

    def encode(self, waveform: Waveform) -> Encoded:
        """Encode a window [T] of at most 30 s at 16 kHz."""
        features: npt.NDArray[np.float32] = self._model.feature_extractor(pad_for_whisper(waveform))[:, :-1]
        output = self._model.encode(features)
        return Encoded(output, features.shape[1], len(waveform) / SPEECH_SAMPLE_RATE)

    def languages(self, window: Encoded) -> dict[str, float]:
        """Return the probability of each language, by its code."""
        return {token[2:-2]: float(p) for token, p in self._model.model.detect_language(window.output)[0]}

    def decode(self, window: Encoded, *, words: bool, previous: str = "") -> DecodedText:
        """Decode the window as English; `words` requests the single words with their times.

        `previous` is the text before it, of which use is made if the decoding is conditioned on it.
        """
        prompt = self._prompt(previous)
        tried = [self._decode(window, prompt, words, {"beam_size": self._decoding.beam_size})]
        for temperature in self._decoding.fallback:
            if not _is_doubtful(tried[-1]):
                break
            tried.append(self._decode(window, prompt, words, _sampling(temperature)))
        return max(tried, key=lambda found: (not found.reached_limit, found.mean_logprob))

    def _prompt(self, previous: str) -> list[int]:
        """Return the tokens in front of the text: what was said before, if anything, and Whisper's own."""
        before = [self._decoding.prompt, previous if self._decoding.condition_on_previous else ""]
        start: list[int] = list(self._tokenizer.sot_sequence)
        said = " ".join(filter(None, before))
        if not said:
            return start
        return [self._tokenizer.sot_prev, *self._tokenizer.encode(f" {said}")[-_MAX_PREVIOUS_TOKENS:], *start]

    def _decode(self, window: Encoded, prompt: list[int], words: bool, search: dict[str, Any]) -> DecodedText:
        wanted = _SPARE_TOKENS + math.ceil(TOKENS_PER_S * window.speech_s)
        limit = min(wanted, _MAX_WINDOW_TOKENS, _MOST_TOKENS - len(prompt))
        result = self._model.model.generate(
            window.output,
            [prompt],
            max_length=len(prompt) + limit,
            return_scores=True,
            return_no_speech_prob=True,
            **search,
        )[0]
        decoded: list[int] = result.sequences_ids[0]
        tokens = self._within_speech(decoded, window.speech_s)
        return DecodedText(
            text=self._tokenizer.decode(tokens).strip(),
            words=self._words(window, tokens) if words else (),
            mean_logprob=result.scores[0] * len(decoded) / (len(decoded) + 1),
            no_speech=result.no_speech_prob,
            reached_limit=len(tokens) >= limit,
        )

    def _within_speech(self, tokens: list[int], speech_s: float) -> list[int]:
        """Return the tokens up to the first timestamp after the speech.

        In the silence that follows, Whisper sometimes says everything once more, and again.
        """
        first = self._tokenizer.timestamp_begin
        for row, token in enumerate(tokens):
            if (token - first) * TIMESTAMP_S >= speech_s:
                return tokens[: row + 1]
        return tokens

    def _words(self, window: Encoded, tokens: list[int]) -> tuple[Word, ...]:
        text = [token for token in tokens if token < self._tokenizer.eot]
        aligned: list[list[dict[str, Any]]] = self._model.find_alignment(
            self._tokenizer, [text], window.output, window.num_frames
        )
        if not text or not aligned:
            return ()
        self._merge_punctuations(aligned[0], _PREPENDED, _APPENDED)
        return place_words([word for word in aligned[0] if word["word"]])


def _is_doubtful(decoded: DecodedText) -> bool:
    return decoded.reached_limit or decoded.mean_logprob < MIN_FALLBACK_LOGPROB


def _sampling(temperature: float) -> dict[str, Any]:
    return {
        "beam_size": 1,
        "num_hypotheses": _CANDIDATES,
        "sampling_topk": 0,
        "sampling_temperature": temperature,
    }


def place_words(aligned: list[dict[str, Any]]) -> tuple[Word, ...]:
    """Assign one time to each word of faster-whisper's alignment (`word`, `start`, `end`, `probability`).

    The alignment has no pauses: one of the two words around a pause spans it. It is either the first of a sentence,
    whose end is right, or the last, whose start is right.
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
    """Pad [T] with silence to a multiple of half a second, at most to a window of 30 s."""
    speech_s = len(waveform) / SPEECH_SAMPLE_RATE
    wanted_s = math.ceil(max(speech_s + TAIL_S, MIN_WINDOW_S) * 2) / 2
    length = round(min(wanted_s, FULL_WINDOW_S) * SPEECH_SAMPLE_RATE)
    return np.pad(waveform, (0, length - len(waveform)))


def import_without_pyav(name: str) -> types.ModuleType:
    """Import a module of faster-whisper with an empty `av` in PyAV's place.

    faster-whisper imports PyAV at module level, to decode files. Here it gets arrays only, and PyAV, which bundles
    codecs under the GPL, must not be loaded.
    """
    sys.modules.setdefault("av", types.ModuleType("av"))
    return importlib.import_module(name)
