"""Train one of the two ``embedded`` regressors on RAVDESS and EmoBank.

    python -m attune_training.train valence --ravdess DIR --emobank CSV --whisper FILE --bert DIR --output DIR
    python -m attune_training.train arousal-dominance --ravdess DIR --emobank CSV --whisper FILE --bert DIR --output DIR

RAVDESS: actors 1-16 train, 17-20 choose the epoch, 21-24 are not read. Its targets are derived from category and
intensity. EmoBank's sentences come without audio, their audio stream masked. So that both streams are used together,
half of the RAVDESS clips are paired with a random EmoBank sentence in place of their own words, and the target is the
sum of what voice and words say about 3. Started again on the same output folder, a killed run goes on after its last
epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attune_training.augmentation import mask_spectrogram
from attune_training.checkpoints import save_regressor, trained_parameters
from attune_training.config import PretrainedSources, RegressorConfig, Target, embedded_config
from attune_training.data.batches import Batch, Example, Examples, TextTokens, collate, similar_length_batches
from attune_training.data.emobank import read_emobank
from attune_training.data.ravdess import read_ravdess
from attune_training.evaluate import TRAIN_ACTORS, VALIDATION_ACTORS, evaluate_examples
from attune_training.losses import NEUTRAL, DynamicWeighting, ValenceSmoothing, arousal_dominance_loss, smooth_mse
from attune_training.regressor import Regressor, build_regressor

__all__ = ["Corpus", "TrainSettings", "Trainer", "epoch_examples", "main", "paired", "read_corpus"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train; ``text_weight`` lifts EmoBank's narrow targets (sd .2 to .35) beside RAVDESS's wide ones."""

    epochs: int = 10
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    speech_batch: int = 16
    text_batch: int = 32
    text_samples_per_epoch: int = 2560
    paired_share: float = 0.5
    text_weight: float = 4.0
    seed: int = 0
    bfloat16: bool = False
    smoothing: ValenceSmoothing = field(default_factory=ValenceSmoothing)
    weighting: DynamicWeighting = field(default_factory=DynamicWeighting)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Examples to train on and to choose the epoch by."""

    speech: list[Example]
    text: list[Example]
    validation_speech: list[Example]
    validation_text: list[Example]


def read_corpus(config: RegressorConfig, settings: TrainSettings, ravdess: Path, emobank: Path, bert: Path) -> Corpus:
    """Read both corpora's train and validation parts into memory.

    Raises:
        ValueError: a corpus or the tokenizer is not where it should be.
    """
    examples = Examples(config.target, TextTokens(bert, config.text.max_tokens), config.audio.max_samples)
    return Corpus(
        speech=[examples.of(utterance) for utterance in read_ravdess(ravdess, TRAIN_ACTORS)],
        text=[examples.of(utterance, settings.text_weight) for utterance in read_emobank(emobank, "train")],
        validation_speech=[examples.of(utterance) for utterance in read_ravdess(ravdess, VALIDATION_ACTORS)],
        validation_text=[examples.of(utterance) for utterance in read_emobank(emobank, "dev")],
    )


def paired(speech: Example, text: Example) -> Example:
    """Return the voice of one example with the words of another; the targets add up about 3, clipped to 1..5."""
    target = np.clip(NEUTRAL + (speech.target - NEUTRAL) + (text.target - NEUTRAL), 1.0, 5.0)
    return replace(speech, tokens=text.tokens, target=target.astype(np.float32))


def epoch_examples(
    corpus: Corpus, settings: TrainSettings, random: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """Return one epoch's speech examples, a share of them paired with random sentences, and its text examples."""
    partners = random.integers(len(corpus.text), size=len(corpus.speech))
    chosen = random.random(len(corpus.speech)) < settings.paired_share
    speech = [
        paired(example, corpus.text[partner]) if pair else example
        for example, partner, pair in zip(corpus.speech, partners, chosen, strict=True)
    ]
    count = min(settings.text_samples_per_epoch, len(corpus.text))
    return speech, [corpus.text[index] for index in random.choice(len(corpus.text), count, replace=False)]


class Trainer:
    """A plain loop: AdamW, one cycle, clipped gradients, a checkpoint after each epoch, the best epoch kept."""

    def __init__(self, model: Regressor, corpus: Corpus, settings: TrainSettings, output: Path) -> None:
        self.model, self.corpus, self.settings, self.output = model, corpus, settings, output
        self.epoch, self.best_score = 0, -1.0
        parameters = list(trained_parameters(model).values())
        self.optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, settings.learning_rate, total_steps=settings.epochs * len(self._batches(0)) + 1
        )

    def run(self) -> None:
        """Train up to the last epoch, from where a former run stopped."""
        self._resume()
        while self.epoch < self.settings.epochs:
            started = time.monotonic()
            loss = self._train_epoch()
            self.epoch += 1
            score, report = self._validate()
            if score > self.best_score:
                self.best_score = score
                save_regressor(self.model, self.output / "best")
            self._checkpoint()
            self._log({"epoch": self.epoch, "loss": loss, "score": score, **report}, time.monotonic() - started)

    def _batches(self, epoch: int) -> list[list[Example]]:
        """Return the epoch's batches; speech and text are never in one batch, so neither waits for the other."""
        random = np.random.default_rng([self.settings.seed, epoch])
        speech, text = epoch_examples(self.corpus, self.settings, random)
        batches = [
            *similar_length_batches(speech, self.settings.speech_batch, random),
            *similar_length_batches(text, self.settings.text_batch, random),
        ]
        return [batches[index] for index in random.permutation(len(batches))]

    def _train_epoch(self) -> float:
        self.model.train()
        losses = [self._step(collate(examples)) for examples in self._batches(self.epoch)]
        return float(np.mean(losses))

    def _step(self, batch: Batch) -> float:
        loss = self._loss(self._predict(batch), batch)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained_parameters(self.model).values(), self.settings.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def _predict(self, batch: Batch) -> Tensor:
        """Return predictions [B, N] with the front end's output masked."""
        tower = self.model.audio_tower
        with torch.no_grad():
            inputs = mask_spectrogram(tower.front_end(batch.waveform, batch.num_samples))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.bfloat16):
            features, frame_mask = tower.encode(inputs, batch.num_samples)
            predicted = self.model.predict(
                features, frame_mask, batch.input_ids, batch.attention_mask, batch.audio_present
            )
        return predicted.float()

    def _loss(self, predicted: Tensor, batch: Batch) -> Tensor:
        if self.model.config.target == "valence":
            return smooth_mse(predicted, batch.target, batch.weight, self.settings.smoothing)
        return arousal_dominance_loss(predicted, batch.target, batch.weight, self.settings.weighting)

    def _validate(self) -> tuple[float, dict[str, float]]:
        """Return the mean PCC over both corpora and all dimensions, and each PCC by name."""
        self.model.eval()
        report = {
            f"{corpus}_{name}": value.pcc
            for corpus, examples in (
                ("ravdess", self.corpus.validation_speech),
                ("emobank", self.corpus.validation_text),
            )
            for name, value in evaluate_examples(self.model, examples).items()
        }
        return float(np.mean(list(report.values()))), report

    def _checkpoint(self) -> None:
        state = {
            "epoch": self.epoch,
            "best_score": self.best_score,
            "parameters": {name: value.detach() for name, value in trained_parameters(self.model).items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
        }
        # Written beside and moved, so that a kill never leaves half a checkpoint.
        partial = self.output / "last.pt.partial"
        torch.save(state, partial)
        partial.replace(self.output / "last.pt")

    def _resume(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / "last.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for name, parameter in trained_parameters(self.model).items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        self.epoch, self.best_score = state["epoch"], state["best_score"]

    def _log(self, record: dict[str, float], wall_s: float) -> None:
        line = json.dumps({name: round(value, 4) for name, value in record.items()} | {"wall_s": round(wall_s, 1)})
        print(line, flush=True)
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train one of the two embedded regressors.")
    parser.add_argument("model", choices=["valence", "arousal-dominance"])
    parser.add_argument("--ravdess", type=Path, required=True, help="folder of RAVDESS clips")
    parser.add_argument("--emobank", type=Path, required=True, help="emobank.csv")
    parser.add_argument("--whisper", type=Path, required=True, help="OpenAI's tiny.en.pt")
    parser.add_argument("--bert", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--output", type=Path, required=True, help="run folder; best/ in it holds the best epoch")
    parser.add_argument("--epochs", type=int, default=TrainSettings().epochs)
    parser.add_argument("--seed", type=int, default=TrainSettings().seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision on the CPU")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments, train, and print one line of JSON after each epoch."""
    arguments = _parse()
    target: Target = arguments.model.replace("-", "_")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    settings = TrainSettings(epochs=arguments.epochs, seed=arguments.seed, bfloat16=arguments.bfloat16)
    config = embedded_config(target)
    print(json.dumps(asdict(settings)), flush=True)
    corpus = read_corpus(config, settings, arguments.ravdess, arguments.emobank, arguments.bert)
    model = build_regressor(config, PretrainedSources(arguments.whisper, arguments.bert))
    Trainer(model, corpus, settings, arguments.output).run()


if __name__ == "__main__":
    main()
