"""The Lightning module: losses, optimiser, averaged weights, and metrics on the validation part.

Dimensions: B batch, N outputs.
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
from attune_training.models.losses import agreement_loss, arousal_dominance_loss, smooth_mse
from attune_training.models.regressor import AUDIO_STREAM, TEXT_STREAM

__all__ = ["SCORE", "RegressionModule", "objective"]

SCORE = "score"
"""Name of the metric that selects the best epoch: the mean PCC over the corpora and the dimensions."""

_UNKNOWN = -1

_AUDIO_PREFIXES = tuple(f"model.{part}." for part in AUDIO_STREAM)
_TEXT_PREFIXES = tuple(f"model.{part}." for part in TEXT_STREAM)


def objective(target: Target, predicted: Tensor, batch: Batch, recipe: Recipe) -> Tensor:
    """Return the recipe's loss of predicted [B, N]: agreement, or the paper's (equations 14, 19; or their sum)."""
    if recipe.loss == "agreement":
        relative = torch.tensor([item.relative for item in recipe.corpora.values()], device=predicted.device)
        return agreement_loss(predicted, batch.target, batch.weight, batch.corpus, relative, recipe.agreement)
    if target == "valence":
        return smooth_mse(predicted, batch.target, batch.weight, recipe.smoothing)
    if target == "arousal_dominance":
        return arousal_dominance_loss(predicted, batch.target, batch.weight, recipe.weighting)
    valence = smooth_mse(predicted[:, :1], batch.target[:, :1], batch.weight, recipe.smoothing)
    return valence + arousal_dominance_loss(predicted[:, 1:], batch.target[:, 1:], batch.weight, recipe.weighting)


class RegressionModule(pl.LightningModule):
    """Trains one model of any architecture; checkpoints hold the trainable parameters alone."""

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
        """Seed dropout and masks by step, so that a resumed run repeats an uninterrupted one."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one batch with its front end's output masked."""
        model, settings = self.model, self.recipe.optimisation
        with torch.no_grad(), full_precision(self.device):
            masking = self.recipe.augmentation.masking
            inputs = model.audio_tower.front_end(batch.waveform, batch.num_samples)
            inputs = mask_spectrogram(inputs, masking.time_masks, masking.channel_masks, masking.share)
        with self._frozen_streams():
            features, frame_mask = model.audio_tower.encode(inputs, batch.num_samples)
            encoded = model.pool(features, frame_mask, batch.input_ids, batch.attention_mask, batch.audio_present)
        loss = objective(model.config.target, model.regress(encoded).float(), batch, self.recipe)
        if self.categories is not None:
            loss = loss + settings.categories * self.category_loss(encoded.audio, batch)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.waveform), sync_dist=True)
        return loss

    def category_loss(self, audio: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the acted category, predicted from the pooled audio [B, d].

        It is computed over all rows with unknown categories ignored, which avoids a synchronisation with the GPU.
        """
        assert self.categories is not None
        known = (batch.category >= 0) & (batch.audio_present > 0)
        category = torch.where(known, batch.category, _UNKNOWN)
        total = functional.cross_entropy(
            self.categories(audio).float(), category, ignore_index=_UNKNOWN, label_smoothing=0.1, reduction="sum"
        )
        return total / known.sum().clamp(min=1)

    def on_fit_start(self) -> None:
        """Move the averages of a resumed run to the model's device: a checkpoint is loaded onto the CPU."""
        self._average = {name: value.to(self.device) for name, value in self._average.items()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Update the exponential moving average of the weights, with a lower decay in the first steps."""
        decay = min(self.recipe.optimisation.averaging, (1 + self.global_step) / (10 + self.global_step))
        for name, parameter in trained_parameters(self.model).items():
            if name in self._average:
                self._average[name].lerp_(parameter.detach(), 1 - decay)
            else:
                self._average[name] = parameter.detach().clone()

    @contextmanager
    def _frozen_streams(self) -> Iterator[None]:
        """Freeze streams whose learning rate is 0: still trained parameters by name, but without a backward pass."""
        settings = self.recipe.optimisation
        audio, text, _ = self._parameter_groups()
        frozen = [*(audio if not settings.voice_rate else ()), *(text if not settings.words_rate else ())]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def configure_optimizers(self) -> Any:
        """Return AdamW over the trainable parameters, and the one-cycle learning rate schedule of the whole run."""
        settings = self.recipe.optimisation
        rates = [settings.learning_rate * share for share in (settings.voice_rate, settings.words_rate, 1.0)]
        groups = [{"params": group} for group in self._parameter_groups()]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        steps = settings.epochs * -(-self._batches_per_epoch // self.trainer.world_size) + 1
        # At least one and a half steps of warm-up: OneCycleLR divides by the number of warm-up steps minus one.
        warm_up = max(settings.warm_up, 1.5 / steps)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=warm_up)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> tuple[list[nn.Parameter], ...]:
        """Return the trainable parameters of the audio stream, of the text stream, and of all after them."""
        audio: list[nn.Parameter] = []
        text: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in trained_parameters(self).items():
            group = audio if name.startswith(_AUDIO_PREFIXES) else text if name.startswith(_TEXT_PREFIXES) else others
            group.append(parameter)
        return audio, text, others

    # Validation, with the averaged weights

    def on_validation_start(self) -> None:
        """Replace the weights by the averaged ones."""
        self._current = {name: value.detach().clone() for name, value in trained_parameters(self.model).items()}
        self._fill(self._average)

    def on_validation_end(self) -> None:
        """Restore the current weights; callbacks have used the averaged ones."""
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
        """Keep the trainable parameters and their averages; the frozen towers are loaded from their own files."""
        trained = trained_parameters(self)
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        checkpoint["average"] = self._average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the averaged weights."""
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
