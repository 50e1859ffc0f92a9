"""The clips that every row answers: speech of mixed lengths with its words, and labelled clips of a test part."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attune_client.protocol.bounds import MAX_SEGMENT_S
from attune_export.bench_encoders.clip import MAX_SAMPLES, Clip
from attune_training.config import SAMPLE_RATE
from attune_training.data.audio import read_speech, trim_silence
from attune_training.data.corpus import open_corpus
from attune_training.data.utterance import Utterance
from attune_training.models.towers import MIN_SAMPLES

__all__ = ["Tokens", "cut_clips", "labelled_clips", "lengths", "random_tokens"]

Tokens = Callable[[str], list[int]]
"""Makes token ids of words."""

_SPREAD = 0.15
_RECORDINGS = {
    "sense_and_sensibility_0870.wav": "And Mr. John Dashwood had then leisure to consider how much there might be "
    "prudently in his power to do for them.",
    "sense_and_sensibility_0890.wav": "Unless to be rather cold hearted and rather selfish is to be ill disposed.",
    "sense_and_sensibility_0920.wav": "Had he married a more amiable woman, he might have been made still more "
    "respectable than he was.",
}
_SAMPLES = Path(__file__).parents[3] / "samples"
_FIRST_ID, _OPENING, _CLOSING = 1000, 101, 102  # of BERT's vocabulary


def lengths(seconds: Sequence[float], count: int) -> list[float]:
    """Return the lengths of `count` clips, in seconds: those given in turn, spread by 15 %, none above 8 s."""
    rounds = math.ceil(count / len(seconds))
    factors = np.linspace(1 - _SPREAD, 1 + _SPREAD, rounds) if rounds > 1 else np.ones(1)
    spread = [float(factor) * length for factor in factors for length in seconds]
    return [min(MAX_SEGMENT_S, length) for length in spread[:count]]


def cut_clips(seconds: Sequence[float], count: int, tokens: Tokens, folder: Path | None = None) -> list[Clip]:
    """Cut clips out of the sample recordings, one after the other, each with the share of the words that it spans.

    Raises:
        ValueError: the recordings are not there.
    """
    folder = folder or _SAMPLES
    speech, words = _read_recordings(folder), " ".join(_RECORDINGS.values()).split()
    clips, start = [], 0
    for length_s in lengths(seconds, count):
        size = round(length_s * SAMPLE_RATE)
        taken = np.arange(start, start + size) % len(speech)  # what follows the last recording is the first
        first, last = (round((start + end) / len(speech) * len(words)) for end in (0, size))
        said = " ".join(words[index % len(words)] for index in range(first, last))
        clips.append(Clip(speech[taken], tuple(tokens(said))))
        start = (start + size) % len(speech)
    return clips


def _read_recordings(folder: Path) -> npt.NDArray[np.float32]:
    missing = [name for name in _RECORDINGS if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}: clips are cut out of the repository's sample recordings"
        )
    return np.concatenate([trim_silence(read_speech(folder / name)) for name in _RECORDINGS])


def random_tokens(vocab_size: int) -> Tokens:
    """Return a maker of token ids for random weights: one for each word, always the same, and two around them."""
    first = min(_FIRST_ID, vocab_size // 2)

    def tokens(words: str) -> list[int]:
        ids = [random.Random(word).randrange(first, vocab_size) for word in words.split()]
        return [min(_OPENING, first), *ids, min(_CLOSING, first)]

    return tokens


def labelled_clips(kind: str, path: Path, limit: int, tokens: Tokens) -> list[Clip]:
    """Return clips of a corpus, `limit` at most, evenly from all of it, silence trimmed at both ends.

    `kind` is one of `CORPUS_KINDS`. Where the corpus has a test part of its own they are of that. Texts alone come with
    silence of the minimum length; voice is cut at 8 s.

    Raises:
        ValueError: it is not such a corpus, or a recording cannot be read.
    """
    utterances = open_corpus(kind, path).utterances
    test = [utterance for utterance in utterances if utterance.split == "test"] or list(utterances)
    chosen = [test[index * len(test) // limit] for index in range(limit)] if len(test) > limit else test
    return [_labelled(utterance, tokens) for utterance in chosen]


def _labelled(utterance: Utterance, tokens: Tokens) -> Clip:
    if utterance.audio is None:
        waveform = np.zeros(MIN_SAMPLES, np.float32)
    else:
        waveform = trim_silence(read_speech(utterance.audio))[:MAX_SAMPLES]
        waveform = np.pad(waveform, (0, max(0, MIN_SAMPLES - len(waveform))))
    return Clip(waveform, tuple(tokens(utterance.transcript)), utterance.vad())
