"""From utterances to padded batches: examples in memory, their tokens, and batches of similar length.

Dimensions: B batch, T samples, L tokens, N target columns.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from attune_training.config import DIMENSIONS, SAMPLE_RATE, TARGET_NAMES, Target, TextTowerConfig
from attune_training.data.audio import read_speech, trim_silence
from attune_training.data.utterance import Utterance
from attune_training.models.towers import MIN_SAMPLES

__all__ = [
    "Batch",
    "Collator",
    "Example",
    "TextTokens",
    "as_int16",
    "length_batches",
    "read_examples",
    "similar_length_batches",
]

_FULL_SCALE = 32_767


@dataclass(frozen=True, slots=True)
class Example:
    """One example in memory; `waveform` ([T], 16-bit) is None for text without audio.

    `vad` is on 1..5, NaN where there is no label; `category` is an index, -1 where unknown; `corpus` is the index of
    its corpus in the run.
    """

    waveform: npt.NDArray[np.int16] | None
    transcript: str
    vad: npt.NDArray[np.float32]  # [3]
    weight: float = 1.0
    category: int = -1
    corpus: int = 0

    def size(self) -> int:
        """Return the length that determines its cost: samples, or characters for text without audio."""
        return len(self.transcript) if self.waveform is None else len(self.waveform)

    def samples(self) -> npt.NDArray[np.float32]:
        """Return the waveform [T] in -1..1; for text without audio, silence of the minimum length."""
        if self.waveform is None:
            return np.zeros(MIN_SAMPLES, np.float32)
        return self.waveform.astype(np.float32) / np.float32(_FULL_SCALE)


class Batch(NamedTuple):
    """A model's inputs and its targets."""

    waveform: Tensor  # [B, T]
    num_samples: Tensor  # [B, 1]
    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L]
    audio_present: Tensor  # [B]
    target: Tensor  # [B, N], NaN where there is no label
    weight: Tensor  # [B, 1]
    category: Tensor  # [B]
    corpus: Tensor  # [B]


class TextTokens:
    """BERT's tokenizer, without padding."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int = TextTowerConfig().max_tokens) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    @classmethod
    def of_folder(cls, folder: Path, max_tokens: int = TextTowerConfig().max_tokens) -> TextTokens:
        """Read `tokenizer.json` of a BERT folder.

        Raises:
            ValueError: the folder has no `tokenizer.json`.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{folder} holds no tokenizer.json")
        return cls(Tokenizer.from_file(str(path)), max_tokens)

    @classmethod
    def of_letters(cls) -> TextTokens:
        """Return a character tokenizer of fewer than 100 tokens, for random towers."""
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        pieces = [*special, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
        vocabulary = {piece: index for index, piece in enumerate([*pieces, *string.digits, ".", ",", "?", "!", "'"])}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return cls(tokenizer)

    def __call__(self, transcript: str) -> list[int]:
        """Return the token ids with [CLS] and [SEP]."""
        ids: list[int] = self._tokenizer.encode(transcript).ids
        return ids


def read_examples(
    utterances: Sequence[Utterance],
    *,
    weight: float = 1.0,
    categories: Sequence[str] = (),
    corpus: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[Example]:
    """Read utterances into memory, silence trimmed at both ends; about 2 MB a minute of speech.

    `categories` maps each acted category to its index; `corpus` is the corpus's own. `progress` is called after each
    utterance.

    Raises:
        ValueError: an audio file cannot be read.
    """
    indices = {name: index for index, name in enumerate(categories)}

    def read(utterance: Utterance) -> Example:
        example = Example(
            _waveform(utterance),
            utterance.transcript,
            np.asarray(utterance.vad(), np.float32),
            weight,
            indices.get(utterance.category, -1),
            corpus,
        )
        progress()
        return example

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, utterances))


def _waveform(utterance: Utterance) -> npt.NDArray[np.int16] | None:
    if utterance.audio is None:
        return None
    return as_int16(trim_silence(read_speech(utterance.audio)))


def as_int16(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """Return [T] as 16-bit integers, clipped to full scale."""
    return np.round(waveform.clip(-1.0, 1.0) * _FULL_SCALE).astype(np.int16)


def similar_length_batches(
    examples: Sequence[Example], batch_size: int, random: np.random.Generator | None
) -> list[list[Example]]:
    """Group examples into batches of similar length.

    With `random` the lengths are jittered by up to a tenth and the batches shuffled; without it the order is that of
    the lengths.
    """
    sizes = np.array([example.size() for example in examples], float)
    if random is not None:
        sizes *= random.uniform(0.9, 1.1, len(sizes))
    batches = [[examples[index] for index in rows] for rows in length_batches(sizes, batch_size)]
    if random is None:
        return batches
    return [batches[index] for index in random.permutation(len(batches))]


def length_batches(sizes: npt.ArrayLike, batch_size: int) -> list[npt.NDArray[np.intp]]:
    """Return the indices of `sizes` in batches, shortest first."""
    order = np.argsort(sizes, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class Collator:
    """Pads examples to one batch for a model of one target."""

    def __init__(self, tokens: TextTokens, target: Target, max_s: float) -> None:
        """Take the tokenizer, the target, and the maximum length of audio, in seconds; longer audio is truncated."""
        self._tokens = tokens
        self._columns = [DIMENSIONS.index(name) for name in TARGET_NAMES[target]]
        self._max_samples = int(max_s * SAMPLE_RATE)

    def __call__(self, examples: Sequence[Example], waveforms: Sequence[npt.NDArray[np.float32]] = ()) -> Batch:
        """Return the batch of `examples`; `waveforms`, if given, replace their own."""
        audio = [samples[: self._max_samples] for samples in waveforms or [item.samples() for item in examples]]
        tokens = [self._tokens(item.transcript) for item in examples]
        waveform = torch.zeros(len(examples), max(MIN_SAMPLES, *map(len, audio)))
        input_ids = torch.zeros(len(examples), max(map(len, tokens)), dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, (samples, ids) in enumerate(zip(audio, tokens, strict=True)):
            waveform[row, : len(samples)] = torch.from_numpy(samples)
            input_ids[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        return Batch(
            waveform=waveform,
            num_samples=torch.tensor([[len(samples)] for samples in audio]),
            input_ids=input_ids,
            attention_mask=mask,
            audio_present=torch.tensor([float(item.waveform is not None) for item in examples]),
            target=torch.from_numpy(np.stack([item.vad[self._columns] for item in examples])),
            weight=torch.tensor([[item.weight] for item in examples]),
            category=torch.tensor([item.category for item in examples]),
            corpus=torch.tensor([item.corpus for item in examples]),
        )
