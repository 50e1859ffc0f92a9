"""From utterances to padded batches: examples in memory, their tokens, and batches of similar length.

Letters: B batch, T samples, L tokens, N target columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from attune_training.config import Target, TextTowerConfig
from attune_training.data.audio import read_speech, trim_silence
from attune_training.data.utterance import Utterance
from attune_training.towers import MIN_SAMPLES

__all__ = ["Batch", "Example", "Examples", "TextTokens", "collate", "similar_length_batches"]

_TARGET_COLUMNS: dict[str, tuple[int, ...]] = {"valence": (0,), "arousal_dominance": (1, 2)}


@dataclass(frozen=True, slots=True)
class Example:
    """One training example; ``waveform`` (float16, [T]) is None where there are words alone."""

    waveform: npt.NDArray[np.float16] | None
    tokens: list[int]
    target: npt.NDArray[np.float32]  # [N], 1..5
    weight: float = 1.0

    def size(self) -> int:
        """Return the length that drives its cost: samples, or tokens where there is no audio."""
        return len(self.tokens) if self.waveform is None else len(self.waveform)


@dataclass(frozen=True, slots=True)
class Batch:
    """The regressor's inputs and what it should say."""

    waveform: Tensor  # [B, T]
    num_samples: Tensor  # [B, 1]
    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L]
    audio_present: Tensor  # [B]
    target: Tensor  # [B, N]
    weight: Tensor  # [B, 1]


class TextTokens:
    """BERT's tokenizer, without padding."""

    def __init__(self, folder: Path, max_tokens: int = TextTowerConfig().max_tokens) -> None:
        """Read ``tokenizer.json`` of a BERT folder.

        Raises:
            ValueError: the folder has no ``tokenizer.json``.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{folder} holds no tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def __call__(self, transcript: str) -> list[int]:
        """Return the token ids with [CLS] and [SEP]."""
        return self._tokenizer.encode(transcript).ids


class Examples:
    """Makes examples of utterances for one of the two models, reading each audio file once."""

    def __init__(self, target: Target, tokens: TextTokens, max_samples: int) -> None:
        self._columns = list(_TARGET_COLUMNS[target])
        self._tokens = tokens
        self._max_samples = max_samples

    def of(self, utterance: Utterance, weight: float = 1.0) -> Example:
        """Return the utterance with silence trimmed and tokens made.

        Raises:
            ValueError: its audio cannot be read.
        """
        target = np.asarray(utterance.vad(), np.float32)[self._columns]
        return Example(self._waveform(utterance.audio), self._tokens(utterance.transcript), target, weight)

    def _waveform(self, path: Path | None) -> npt.NDArray[np.float16] | None:
        if path is None:
            return None
        return trim_silence(read_speech(path))[: self._max_samples].astype(np.float16)


def similar_length_batches(
    examples: Sequence[Example], batch_size: int, random: np.random.Generator | None
) -> list[list[Example]]:
    """Cut examples into batches of similar length.

    With ``random`` the lengths are jittered by up to a tenth and the batches shuffled; without it the order is fixed
    by length alone.
    """
    sizes = np.array([example.size() for example in examples], float)
    if random is not None:
        sizes *= random.uniform(0.9, 1.1, len(sizes))
    order = np.argsort(sizes, kind="stable")
    batches = [
        [examples[index] for index in order[start : start + batch_size]] for start in range(0, len(order), batch_size)
    ]
    if random is None:
        return batches
    return [batches[index] for index in random.permutation(len(batches))]


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples to one batch; where there are words alone, the shortest possible silence stands for the audio."""
    audio = [
        np.zeros(MIN_SAMPLES, np.float16) if example.waveform is None else example.waveform for example in examples
    ]
    waveform = torch.zeros(len(examples), max(MIN_SAMPLES, *map(len, audio)))
    tokens = torch.zeros(len(examples), max(len(example.tokens) for example in examples), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, (example, samples) in enumerate(zip(examples, audio, strict=True)):
        waveform[row, : len(samples)] = torch.from_numpy(samples)
        tokens[row, : len(example.tokens)] = torch.tensor(example.tokens)
        mask[row, : len(example.tokens)] = 1
    return Batch(
        waveform=waveform,
        num_samples=torch.tensor([[len(samples)] for samples in audio]),
        input_ids=tokens,
        attention_mask=mask,
        audio_present=torch.tensor([float(example.waveform is not None) for example in examples]),
        target=torch.from_numpy(np.stack([example.target for example in examples])),
        weight=torch.tensor([[example.weight] for example in examples]),
    )
