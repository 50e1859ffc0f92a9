"""The Lightning module: losses, optimiser, averaged weights, and agreement on the validation part.

Letters: B batch, N outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import ConcordanceCorrCoef, MeanSquaredError, MetricCollection, PearsonCorrCoef

from attune_training.augmentation import mask_spectrogram
from attune_training.config import Target
from attune_training.data.batches import Batch
from attune_training.fitting.settings import Recipe
from attune_training.models.building import Model
from attune_training.models.checkpoints import trained_parameters
from attune_training.models.layers import full_precision
from attune_training.models.losses import arousal_dominance_loss, smooth_mse
from attune_training.models.regressor import VOICE_STREAM, WORDS_STREAM

__all__ = ["SCORE", "RegressionModule", "objective"]

SCORE = "score"
"""What chooses the best epoch: the mean PCC over the corpora and the dimensions."""

_UNKNOWN = -1

_VOICE = tuple(f"model.{part}." for part in VOICE_STREAM)
_WORDS = tuple(f"model.{part}." for part in WORDS_STREAM)


def objective(target: Target, predicted: Tensor, batch: Batch, recipe: Recipe) -> Tensor:
    """Return the paper's loss of predicted [B, N]; the joint target takes the sum of both (equations 14 and 19)."""
    if target == "valence":
        return smooth_mse(predicted, batch.target, batch.weight, recipe.smoothing)
    if target == "arousal_dominance":
        return arousal_dominance_loss(predicted, batch.target, batch.weight, recipe.weighting)
    valence = smooth_mse(predicted[:, :1], batch.target[:, :1], batch.weight, recipe.smoothing)
    return valence + arousal_dominance_loss(predicted[:, 1:], batch.target[:, 1:], batch.weight, recipe.weighting)


class RegressionModule(pl.LightningModule):
    """Trains one model, of any of the architectures; only what is trained goes into its checkpoints."""

    def __init__(
        self, model: Model, recipe: Recipe, corpora: Sequence[str], num_categories: int, batches_per_epoch: int
    ) -> None:
        super().__init__()
        self.strict_loading = False
        self.model, self.recipe, self.corpora = model, recipe, tuple(corpora)
        self._batches_per_epoch = batches_per_epoch
        self.categories = _category_layer(model, num_categories) if recipe.optimisation.categories else None
        self.agreement = nn.ModuleDict(
            {corpus: nn.ModuleDict({name: _agreement() for name in self._names}) for corpus in corpora}
        )
        self._average: dict[str, Tensor] = {}
        self._current: dict[str, Tensor] = {}

    @property
    def _names(self) -> tuple[str, ...]:
        names: tuple[str, ...] = self.model.config.output_names
        return names

    # Training

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Seed dropout and masks by step, so that a resumed run repeats what an unbroken one does."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one batch with its front end's output masked."""
        model, settings = self.model, self.recipe.optimisation
        with torch.no_grad(), full_precision(self.device):
            masking = self.recipe.augmentation.masking
            inputs = model.audio_tower.front_end(batch.waveform, batch.num_samples)
            inputs = mask_spectrogram(inputs, masking.time_masks, masking.channel_masks, masking.share)
        with self._resting():
            features, frame_mask = model.audio_tower.encode(inputs, batch.num_samples)
            encoded = model.pool(features, frame_mask, batch.input_ids, batch.attention_mask, batch.audio_present)
        loss = objective(model.config.target, model.answer(encoded).float(), batch, self.recipe)
        if self.categories is not None:
            loss = loss + settings.categories * self.category_loss(encoded.audio, batch)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.waveform), sync_dist=True)
        return loss

    def category_loss(self, voice: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of the acted category, told from the pooled voice [B, d]; the mean of those known.

        It is reckoned for all rows, and those without a category count nothing: nothing has to be fetched from a GPU.
        """
        assert self.categories is not None
        known = (batch.category >= 0) & (batch.audio_present > 0)
        category = torch.where(known, batch.category, _UNKNOWN)
        total = functional.cross_entropy(
            self.categories(voice).float(), category, ignore_index=_UNKNOWN, label_smoothing=0.1, reduction="sum"
        )
        return total / known.sum().clamp(min=1)

    def on_fit_start(self) -> None:
        """Bring averages of a resumed run to the model: a checkpoint is read onto the CPU."""
        self._average = {name: value.to(self.device) for name, value in self._average.items()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Move the averaged weights towards the current ones; early on, more quickly."""
        decay = min(self.recipe.optimisation.averaging, (1 + self.global_step) / (10 + self.global_step))
        for name, parameter in trained_parameters(self.model).items():
            if name in self._average:
                self._average[name].lerp_(parameter.detach(), 1 - decay)
            else:
                self._average[name] = parameter.detach().clone()

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """Leave out of the graph what has no rate: it is trained by name, and costs no backward pass."""
        settings = self.recipe.optimisation
        voice, words, _ = self._parameter_groups()
        resting = [*(voice if not settings.voice_rate else ()), *(words if not settings.words_rate else ())]
        for parameter in resting:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in resting:
                parameter.requires_grad_(True)

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained, one cycle of the learning rate over the whole run."""
        settings = self.recipe.optimisation
        rates = [settings.learning_rate * share for share in (settings.voice_rate, settings.words_rate, 1.0)]
        groups = [{"params": group} for group in self._parameter_groups()]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        steps = settings.epochs * -(-self._batches_per_epoch // self.trainer.world_size) + 1
        # At least one and a half steps of warming up: OneCycleLR divides by the steps that are left of them.
        warm_up = max(settings.warm_up, 1.5 / steps)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=warm_up)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> tuple[list[nn.Parameter], ...]:
        """What is trained of the voice, of the words, and from where they meet."""
        voice: list[nn.Parameter] = []
        words: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in trained_parameters(self).items():
            group = voice if name.startswith(_VOICE) else words if name.startswith(_WORDS) else others
            group.append(parameter)
        return voice, words, others

    # Validation, with the averaged weights

    def on_validation_start(self) -> None:
        """Put the averaged weights in place."""
        self._current = {name: value.detach().clone() for name, value in trained_parameters(self.model).items()}
        self._fill(self._average)

    def on_validation_end(self) -> None:
        """Put the current weights back; callbacks have seen the averaged ones."""
        self._fill(self._current)
        self._current = {}

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Collect predictions of one batch."""
        predicted = self.model(
            batch.waveform, batch.num_samples, batch.input_ids, batch.attention_mask, batch.audio_present
        )
        for column, metrics in enumerate(self._metrics(self.corpora[dataloader_idx]).values()):
            target = batch.target[:, column]
            known = ~target.isnan()
            if known.any():
                metrics.update(predicted[known, column].float(), target[known])

    def on_validation_epoch_end(self) -> None:
        """Log PCC, CCC and RMSE of every dimension that a corpus has labels of, and the score."""
        logged = {}
        for corpus in self.corpora:
            for name, metrics in self._metrics(corpus).items():
                if any(metric.update_called for metric in metrics.values()):
                    for kind, value in metrics.compute().items():
                        logged[f"{corpus}_{name}_{kind}"] = value.float()
                metrics.reset()
        correlations = [value for name, value in logged.items() if name.endswith("_pcc")]
        self.log_dict({SCORE: torch.stack(correlations).nan_to_num().mean(), **logged}, sync_dist=True)

    def _metrics(self, corpus: str) -> dict[str, MetricCollection]:
        """Return the metrics of a corpus by dimension, in the order of the outputs."""
        metrics: Any = self.agreement[corpus]
        return {name: metrics[name] for name in self._names}

    def _fill(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.model.get_parameter(name).copy_(value)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and its average; the frozen towers come from their own files."""
        trained = trained_parameters(self)
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        checkpoint["average"] = self._average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the averaged weights up again."""
        self._average = checkpoint["average"]


def _category_layer(model: Model, num_categories: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(model.config.dropout), nn.Linear(model.config.hidden_dim, num_categories))


def _agreement() -> MetricCollection:
    """Metrics of one dimension; each process validates everything, so that none has to ask the others."""
    metrics: dict[str, Any] = {
        "pcc": PearsonCorrCoef(sync_on_compute=False),
        "ccc": ConcordanceCorrCoef(sync_on_compute=False),
        "rmse": MeanSquaredError(squared=False, sync_on_compute=False),
    }
    return MetricCollection(metrics, compute_groups=False)
