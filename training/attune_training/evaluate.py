"""Evaluate saved regressors on RAVDESS's held-out actors and on EmoBank's test sentences.

    python -m attune_training.evaluate ARTIFACTS --ravdess DIR --emobank CSV --whisper FILE --bert DIR

ARTIFACTS holds ``valence`` and ``arousal_dominance``. RAVDESS targets are derived from category and intensity.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from attune_training.checkpoints import load_regressor
from attune_training.config import TARGET_NAMES, PretrainedSources
from attune_training.data.batches import Example, Examples, TextTokens, collate, similar_length_batches
from attune_training.data.emobank import read_emobank
from attune_training.data.ravdess import read_ravdess
from attune_training.metrics import Agreement, agreement
from attune_training.regressor import Regressor

__all__ = ["TEST_ACTORS", "TRAIN_ACTORS", "VALIDATION_ACTORS", "evaluate_examples", "main", "predict_examples"]

TRAIN_ACTORS = range(1, 17)
VALIDATION_ACTORS = range(17, 21)
TEST_ACTORS = range(21, 25)


@torch.inference_mode()
def predict_examples(
    model: Regressor, examples: Sequence[Example], batch_size: int = 16
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return predictions and targets, both [n, N], of ``model`` in evaluation mode; rows are in order of length."""
    predicted, target = [], []
    for batch in map(collate, similar_length_batches(examples, batch_size, random=None)):
        output = model(batch.waveform, batch.num_samples, batch.input_ids, batch.attention_mask, batch.audio_present)
        predicted.append(output.float().numpy())
        target.append(batch.target.numpy())
    return np.concatenate(predicted), np.concatenate(target)


def evaluate_examples(model: Regressor, examples: Sequence[Example]) -> dict[str, Agreement]:
    """Return the agreement of each dimension that ``model`` predicts."""
    predicted, target = predict_examples(model, examples)
    return {
        name: agreement(predicted[:, column], target[:, column])
        for column, name in enumerate(model.config.output_names)
    }


def _evaluate_folder(folder: Path, sources: PretrainedSources, ravdess: Path, emobank: Path) -> dict[str, dict]:
    """Return agreement by corpus and dimension for both models of ``folder``."""
    corpora = {
        "ravdess": read_ravdess(ravdess, TEST_ACTORS),
        "emobank": read_emobank(emobank, "test"),
    }
    results: dict[str, dict] = {name: {} for name in corpora}
    for target in TARGET_NAMES:
        model = load_regressor(folder / target, sources)
        examples = Examples(model.config.target, TextTokens(sources.text), model.config.audio.max_samples)
        for name, utterances in corpora.items():
            results[name] |= evaluate_examples(model, [examples.of(utterance) for utterance in utterances])
    return results


_TITLES = {
    "ravdess": "RAVDESS, actors 21-24, own words (targets derived from category and intensity)",
    "emobank": "EmoBank test, words alone",
}


def _print_tables(results: dict[str, dict]) -> None:
    for corpus, rows in results.items():
        print(f"\n{_TITLES[corpus]}\n\n| dimension | PCC | CCC | RMSE | n |\n|---|---|---|---|---|")
        for name, row in rows.items():
            print(f"| {name} | {row.pcc:.3f} | {row.ccc:.3f} | {row.rmse:.3f} | {row.count} |")
    print()
    print(json.dumps({corpus: {name: asdict(row) for name, row in rows.items()} for corpus, rows in results.items()}))


def main() -> None:
    """Parse the arguments and print a table for each corpus, then one line of JSON."""
    parser = argparse.ArgumentParser(description="Evaluate saved regressors on held-out speakers and sentences.")
    parser.add_argument("artifacts", type=Path, help="folder with valence/ and arousal_dominance/")
    parser.add_argument("--ravdess", type=Path, required=True, help="folder of RAVDESS clips")
    parser.add_argument("--emobank", type=Path, required=True, help="emobank.csv")
    parser.add_argument("--whisper", type=Path, required=True, help="OpenAI's tiny.en.pt")
    parser.add_argument("--bert", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    arguments = parser.parse_args()
    sources = PretrainedSources(arguments.whisper, arguments.bert)
    _print_tables(_evaluate_folder(arguments.artifacts, sources, arguments.ravdess, arguments.emobank))


if __name__ == "__main__":
    main()
