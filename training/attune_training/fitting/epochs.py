"""The data of one epoch: examples drawn from each corpus, augmented at random, and grouped into batches.

All randomness is seeded by (seed, epoch, batch), so that a resumed run gets the same data as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from attune_training.augmentation import replace_synonyms
from attune_training.config import DIMENSIONS, MAX_VAD, MIN_VAD, NEUTRAL_VAD, SAMPLE_RATE
from attune_training.data.batches import Batch, Collator, Example, similar_length_batches
from attune_training.fitting.settings import Augmentation, CorpusSettings, Recipe

__all__ = ["EpochData", "LoadedCorpus", "draw", "draw_epoch", "with_foreign_words"]


@dataclass(frozen=True, slots=True)
class LoadedCorpus:
    """One corpus in memory, its settings, and its parts."""

    settings: CorpusSettings
    train: list[Example]
    validation: list[Example]


def with_foreign_words(
    voice: Example, words: Example, neutral: Sequence[float] = (NEUTRAL_VAD,) * len(DIMENSIONS)
) -> Example:
    """Return the audio of one example with the words of another; their deviations from neutral add up, clipped to 1..5.

    `neutral` is the VAD of a voice that says nothing of a feeling: beside it the words' own VAD stays as it is.
    That voice and words add up is an assumption; it makes the model use both. A dimension that one of them has no label
    of has none.
    """
    vad = np.clip(voice.vad + words.vad - np.asarray(neutral, np.float32), MIN_VAD, MAX_VAD)
    return replace(voice, transcript=words.transcript, vad=vad.astype(np.float32))


def draw(corpus: LoadedCorpus, donors: Sequence[Example], random: np.random.Generator) -> list[Example]:
    """Return one epoch's examples of a corpus, with streams dropped and words exchanged as its settings say.

    The counts of each kind are the same in every epoch; the examples are drawn.
    """
    settings = corpus.settings
    count = min(settings.per_epoch or len(corpus.train), len(corpus.train))
    drawn = [corpus.train[index] for index in random.choice(len(corpus.train), count, replace=False)]
    shares = (settings.foreign_words, settings.without_words, settings.without_voice)
    foreign, wordless, voiceless = (round(share * count) for share in shares)
    for index in range(count):
        if index < foreign:
            donor = donors[int(random.integers(len(donors)))]
            drawn[index] = with_foreign_words(drawn[index], donor, settings.neutral)
        elif index < foreign + wordless:
            drawn[index] = replace(drawn[index], transcript="")
        elif index < foreign + wordless + voiceless:
            drawn[index] = replace(drawn[index], waveform=None)
        drawn[index] = _window(drawn[index], settings.longest_s, random)
    return drawn


def _window(example: Example, longest_s: float, random: np.random.Generator) -> Example:
    longest = int(longest_s * SAMPLE_RATE)
    if example.waveform is None or len(example.waveform) <= longest:
        return example
    start = random.integers(len(example.waveform) - longest + 1)
    return replace(example, waveform=example.waveform[start : start + longest])


def draw_epoch(corpora: Mapping[str, LoadedCorpus], recipe: Recipe, epoch: int) -> list[list[Example]]:
    """Return the epoch's batches in random order; a batch never mixes examples with and without audio."""
    random = np.random.default_rng([recipe.seed, epoch])
    drawn = [
        example for corpus in corpora.values() for example in draw(corpus, _donors(corpora, corpus.settings), random)
    ]
    spoken = [example for example in drawn if example.waveform is not None]
    silent = [example for example in drawn if example.waveform is None]
    batches = [
        *similar_length_batches(spoken, recipe.optimisation.batch_size, random),
        *similar_length_batches(silent, recipe.optimisation.words_batch_size, random),
    ]
    return [batches[index] for index in random.permutation(len(batches))]


def _donors(corpora: Mapping[str, LoadedCorpus], settings: CorpusSettings) -> Sequence[Example]:
    return corpora[settings.words_from].train if settings.foreign_words else ()


class _TrainingBatches(Dataset[Batch]):
    """One epoch's batches, augmented at random when they are read."""

    def __init__(
        self, batches: list[list[Example]], collate: Collator, augmentation: Augmentation, seed: list[int]
    ) -> None:
        self._batches, self._collate, self._augmentation, self._seed = batches, collate, augmentation, seed

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        random = np.random.default_rng([*self._seed, index])
        examples = [self._reworded(example, random) for example in self._batches[index]]
        return self._collate(examples, [self._heard(example, random) for example in examples])

    def _reworded(self, example: Example, random: np.random.Generator) -> Example:
        if not self._augmentation.synonyms or not example.transcript:
            return example
        return replace(example, transcript=replace_synonyms(example.transcript, self._augmentation.synonyms, random))

    def _heard(self, example: Example, random: np.random.Generator) -> npt.NDArray[np.float32]:
        samples = example.samples()
        return samples if example.waveform is None else self._augmentation.waveform.apply(samples, random)


class _PlainBatches(Dataset[Batch]):
    """Batches in order of length, without augmentation."""

    def __init__(self, examples: Sequence[Example], collate: Collator, batch_size: int) -> None:
        self._batches, self._collate = similar_length_batches(examples, batch_size, random=None), collate

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        return self._collate(self._batches[index])


class EpochData(pl.LightningDataModule):
    """The corpora of a run as a Lightning data module; an item is a whole batch, so any sampler may be used.

    On several GPUs Lightning gives each of them every n-th batch; each of them validates on all data.
    """

    def __init__(self, corpora: Mapping[str, LoadedCorpus], recipe: Recipe, collate: Collator, workers: int) -> None:
        super().__init__()
        self._corpora, self._recipe, self._collate, self._workers = corpora, recipe, collate, workers

    @property
    def batches_per_epoch(self) -> int:
        """The number of training batches, the same in every epoch."""
        return len(draw_epoch(self._corpora, self._recipe, 0))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the batches of the trainer's current epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        batches = draw_epoch(self._corpora, self._recipe, epoch)
        data = _TrainingBatches(batches, self._collate, self._recipe.augmentation, [self._recipe.seed, epoch])
        return self._loader(data)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return one loader for each corpus, in the order of the recipe."""
        size = self._recipe.optimisation.batch_size
        parts = [_PlainBatches(item.validation, self._collate, size) for item in self._corpora.values()]
        # A custom sampler, which Lightning does not replace: Lightning's distributed sampler repeats batches to make
        # the processes' shares equal, and repeated batches would count twice in the score.
        return [self._loader(part, DistributedSampler(part, 1, 0, shuffle=False)) for part in parts]

    def _loader(self, data: Dataset[Batch], sampler: DistributedSampler[Batch] | None = None) -> DataLoader[Batch]:
        return DataLoader(data, batch_size=None, num_workers=self._workers, sampler=sampler)
