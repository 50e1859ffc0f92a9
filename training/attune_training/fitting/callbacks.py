"""What a run does at the end of an epoch: keep the best model, say how it went, and count the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from attune_training.fitting.module import SCORE, RegressionModule
from attune_training.models.checkpoints import save_model
from attune_weights.files import recover_folder, replace_folder

__all__ = ["EpochClock", "KeepBest"]


class KeepBest(Callback):
    """Saves the model of the best validation score so far, in one step, so that a kill leaves the one before.

    Of several processes that train together the first one saves.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.best = folder, float("-inf")
        recover_folder(folder)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where the score is a new best."""
        value = float(trainer.callback_metrics[SCORE])
        if not value > self.best:  # so that a score that is no number is none
            return
        self.best = value
        if trainer.is_global_zero:
            assert isinstance(pl_module, RegressionModule)
            partial = self._folder.with_name(".model.partial")
            save_model(pl_module.model, partial)
            replace_folder(partial, self._folder)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.best = state_dict["best"]


class EpochClock(Callback):
    """Says one line after each epoch, and adds up their ``seconds`` over all starts of a run."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._started, self.seconds = say, 0.0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the epoch went."""
        took = time.monotonic() - self._started
        self.seconds += took
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        correlations = " ".join(f"{name[:-4]} {value:.3f}" for name, value in metrics.items() if name.endswith("_pcc"))
        self._say(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {metrics['loss']:.4f}  "
            f"score {metrics[SCORE]:.4f}  PCC: {correlations}  {took:.0f} s"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.seconds = state_dict["seconds"]
