"""The two regressors of a pair of towers: trained ones, or random ones of the same sizes, and their files.

Random ones share what trained ones share, have adapters that change what the layers compute, and are calibrated so that
their answers to speech spread as trained ones' do: a deviation means something then. (As they are initialised, all
answers lie within a hundredth of each other.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from attune_client.protocol.models import AROUSAL_DOMINANCE_MODEL, VALENCE_MODEL
from attune_export.bench_encoders.batches import Batching, padded
from attune_export.bench_encoders.clip import Clip
from attune_export.bench_encoders.clips import Tokens, cut_clips, random_tokens
from attune_export.digests import Digests, digests_of, digests_of_weights
from attune_export.parts import ExportOptions, shipped_artifacts
from attune_export.regressor import REGRESSORS, TOWERS, tower_kinds
from attune_training.config import (
    Calibration,
    PretrainedSources,
    RegressorConfig,
    Target,
    embedded_config,
    paper_config,
    tiny_config,
)
from attune_training.data.batches import TextTokens
from attune_training.models.checkpoints import load_regressor
from attune_training.models.regressor import AUDIO_STREAM, TEXT_STREAM, Regressor, build_regressor
from attune_weights import fetch

__all__ = ["NAMES", "Tower", "TowerName", "configs", "load_models", "save_models"]

TowerName = Literal["shipped", "paper", "tiny"]
NAMES: tuple[TowerName, ...] = ("shipped", "paper", "tiny")
"""Those that ship, the paper's HuBERT-base and BERT-base, and small ones for rehearsals alone."""

_SEED = 0
_ADAPTER_STD = 0.02
_ANSWERS_STD = 0.5  # of raw outputs; where the sigmoid is steepest they and V, A, D spread alike
_CALIBRATION_S = (2.0, 3.5, 5.0, 6.5, 8.0)
_VOCABULARY = 30_000  # the export's check draws words up to there

_TARGETS: tuple[Target, Target] = ("valence", "arousal_dominance")
_CONFIGS: Mapping[TowerName, Callable[[Target], RegressorConfig]] = {
    "shipped": embedded_config,
    "paper": paper_config,
    "tiny": lambda target: replace(
        (tiny := tiny_config(target, "hubert")), text=replace(tiny.text, vocab_size=_VOCABULARY)
    ),
}
_SHARED: Mapping[TowerName, tuple[str, ...]] = {
    "shipped": (*AUDIO_STREAM, *TEXT_STREAM),  # the last stage of training leaves both streams at rest
    "paper": ("audio_tower", "text_tower"),
    "tiny": ("audio_tower", "text_tower"),
}
"""Submodules that are the same in both; adapters are so for the shipped towers alone."""


@dataclass(frozen=True, slots=True)
class Tower:
    """A pair of regressors. `artifacts` is a folder of saved ones; None: those that ship."""

    name: TowerName
    random_weights: bool = False
    artifacts: Path | None = None

    def tokens(self) -> Tokens:
        """Return the maker of token ids.

        Raises:
            WeightsError: the tokenizer cannot be fetched.
        """
        if self.random_weights:
            return random_tokens(configs(self.name)[0].text.vocab_size)
        return TextTokens.of_folder(fetch(self._weights()[0][1]))

    def build(self) -> list[Regressor]:
        """Return both regressors in evaluation mode, in the order of `REGRESSORS`, with their adapters unmerged.

        Raises:
            ExportError: there are no saved regressors.
            WeightsError: the towers' weights cannot be fetched.
        """
        if self.random_weights:
            clips = cut_clips(_CALIBRATION_S, len(_CALIBRATION_S), self.tokens())
            return [calibrated(model.eval(), clips) for model in _random_models(self.name)]
        folders = (self._artifacts() / spec.name for spec in REGRESSORS)
        sources = [PretrainedSources(fetch(audio), fetch(text)) for audio, text in self._weights()]
        return [load_regressor(folder, source) for folder, source in zip(folders, sources, strict=True)]

    def made_from(self) -> Digests:
        """Return what tells the regressors of one build from those of another."""
        told = {"tower": str({name: str(value) for name, value in asdict(self).items()})}
        if self.random_weights:
            return told
        saved = {
            name: digest for spec in REGRESSORS for name, digest in digests_of(self._artifacts() / spec.name).items()
        }
        return told | saved | digests_of_weights(*{name for names in self._weights() for name in names})

    def _artifacts(self) -> Path:
        return self.artifacts or shipped_artifacts() / "embedded"

    def _weights(self) -> list[tuple[str, str]]:
        """Return the names of both towers' weights, for each regressor."""
        options = ExportOptions(Path(), artifacts=self._artifacts())
        return [TOWERS[tower_kinds(spec, options)] for spec in (VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL)]


def configs(name: TowerName) -> list[RegressorConfig]:
    """Return the configurations of both regressors."""
    return [_CONFIGS[name](target) for target in _TARGETS]


def _random_models(name: TowerName) -> list[Regressor]:
    with _seeded():
        first, second = (build_regressor(config, None) for config in configs(name))
        _move_adapters(first)
        _move_adapters(second)
    for part in _SHARED[name]:
        _copy_shared(getattr(first, part), getattr(second, part), adapters=name == "shipped")
    return [first, second]


def _move_adapters(model: Regressor) -> None:
    """Draw the adapters' second matrices, which begin at zero and would change nothing."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.normal_(std=_ADAPTER_STD)


def _copy_shared(source: nn.Module | None, target: nn.Module | None, adapters: bool) -> None:
    if source is None or target is None:
        return
    state = {name: value for name, value in source.state_dict().items() if adapters or ".lora_" not in name}
    target.load_state_dict(state, strict=adapters)


def calibrated(model: Regressor, clips: Sequence[Clip]) -> Regressor:
    """Return the model with a calibration by which its answers to the clips have their mean at 3 and spread by 0.5."""
    with torch.inference_mode():
        raw = torch.cat([_raw_output(model, clip) for clip in clips]).double()
    spread = raw.std(dim=0).clamp(min=1e-6)
    scale = _ANSWERS_STD / spread
    model.config = replace(
        model.config, calibration=Calibration(tuple(scale.tolist()), tuple((-raw.mean(dim=0) * scale).tolist()))
    )
    return model


def _raw_output(model: Regressor, clip: Clip) -> Tensor:
    """Return [1, N] before calibration and the sigmoid."""
    inputs = {name: torch.from_numpy(value) for name, value in padded([clip], Batching()).items()}
    features, frame_mask = model.audio_tower(inputs["waveform"], inputs["num_samples"])
    return model.raw_outputs(model.pool(features, frame_mask, inputs["input_ids"], inputs["attention_mask"]))


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


def save_models(models: Sequence[Regressor], folder: Path) -> None:
    """Write both regressors whole, as `load_models` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for spec, model in zip(REGRESSORS, models, strict=True):
        torch.save({"config": model.config.to_json(), "state": model.state_dict()}, folder / f"{spec.name}.pt")


def load_models(folder: Path) -> list[Regressor]:
    """Return both regressors in evaluation mode; processes share their weights, mapped from the files."""
    models = []
    for spec in REGRESSORS:
        saved = torch.load(folder / f"{spec.name}.pt", mmap=True, weights_only=True)
        model = build_regressor(RegressorConfig.from_json(saved["config"]), None)
        model.load_state_dict(saved["state"], assign=True)
        models.append(model.eval())
    return models
