"""Converting BART for `attune_ensemble.prompting.summarising`, by CTranslate2's converter of transformers' checkpoints.

The converted folder holds `model.bin` with its configuration and vocabulary, and BART's own `tokenizer.json`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from attune_client.protocol.profiles import TOKENIZER_FILE
from attune_export.errors import ExportError

__all__ = ["STORED_AS", "convert_bart", "measure_deviation"]

STORED_AS = "float16"
"""How the weights are stored: half the size, and fine enough to be converted to any type of computation when loaded."""

MAX_DEVIATION = 0.05
"""Largest difference from PyTorch, in natural log-probability of a token, that counts as the same model."""

_CONFIG_FILE = "config.json"
# Asked for by the converter; the values of every BART that transformers runs. Some configurations leave them out.
_LAYER_NORMS = {"normalize_before": False, "normalize_embedding": True}
_START = "<s>"


def convert_bart(source: Path, target: Path, stored_as: str = STORED_AS) -> None:
    """Convert the checkpoint in `source`, in transformers' format with its `tokenizer.json`, into the folder `target`.

    `stored_as` is one of CTranslate2's types of weights.

    Raises:
        ExportError: there is no BART in `source`, or CTranslate2 does not convert it.
    """
    _check(source)
    from ctranslate2.converters import TransformersConverter

    try:
        with _quiet(), _completed(source) as folder:
            TransformersConverter(str(folder)).convert(str(target), quantization=stored_as)
    except (OSError, ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{source}: CTranslate2 does not convert it ({reason})") from error
    shutil.copyfile(source / TOKENIZER_FILE, target / TOKENIZER_FILE)


def measure_deviation(source: Path, converted: Path, texts: Sequence[str]) -> float:
    """Return the largest difference, in log-probability, between the converted model and PyTorch, both in float32.

    Each text is read by the encoder, and each of its tokens predicted by the decoder from those before it.

    Raises:
        ExportError: it is more than `MAX_DEVIATION`.
    """
    import ctranslate2
    import torch
    from tokenizers import Tokenizer
    from transformers import BartForConditionalGeneration

    tokenizer = Tokenizer.from_file(str(converted / TOKENIZER_FILE))
    translator = ctranslate2.Translator(str(converted), compute_type="float32")
    with _quiet():
        model = BartForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    largest = 0.0
    for text in texts:
        encoding = tokenizer.encode(text)
        [scored] = translator.score_batch([encoding.tokens], [encoding.tokens[:-1]])  # it adds the end itself
        ids = torch.tensor([encoding.ids])  # [1, T]
        start = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.inference_mode():
            logits = model(input_ids=ids, decoder_input_ids=torch.cat([start, ids[:, :-1]], 1)).logits  # [1, T, V]
        expected = logits.log_softmax(-1).gather(-1, ids[:, :, None]).flatten().numpy()
        largest = max(largest, float(np.abs(np.array(scored.log_probs) - expected).max()))
    if not largest <= MAX_DEVIATION:
        raise ExportError(f"{source}: converted, it differs from PyTorch by {largest:.2g} in log-probability")
    return largest


def _check(source: Path) -> None:
    try:
        config = json.loads((source / _CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{source} holds no checkpoint of BART: {_CONFIG_FILE} cannot be read") from error
    if not isinstance(config, dict) or config.get("model_type") != "bart":
        raise ExportError(f"{source} holds no checkpoint of BART: its {_CONFIG_FILE} is of another model")
    if not (source / TOKENIZER_FILE).is_file():
        raise ExportError(f"{source} has no {TOKENIZER_FILE}; transformers' fast tokenizer saves one")


@contextmanager
def _completed(source: Path) -> Iterator[Path]:
    """The same checkpoint as links, with a configuration that the converter understands."""
    with tempfile.TemporaryDirectory(prefix="attune-bart-") as name:
        folder = Path(name)
        for file in source.iterdir():
            if file.name != _CONFIG_FILE:
                (folder / file.name).symlink_to(file.resolve())
        config = _LAYER_NORMS | json.loads((source / _CONFIG_FILE).read_text(encoding="utf-8"))
        (folder / _CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        yield folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
