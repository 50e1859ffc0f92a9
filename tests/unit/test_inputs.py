"""Whether a request's tensors are its model's, by the declarations alone: `pytest tests/unit/test_inputs.py`."""

from __future__ import annotations

import numpy as np
import pytest

from attune_client.protocol import models
from attune_client.protocol.errors import InvalidOption
from attune_client.protocol.inputs import check_inputs


def texts(*values) -> np.ndarray:
    return np.array(values, dtype=np.object_)


def tokens(rows: int, length: int = 16) -> np.ndarray:
    return np.zeros((rows, length), np.int64)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (models.MUSIC_PROMPT, {"text": texts("rain")}),
        (models.MUSIC_PROMPT, {}),  # all of them are optional; the model says which it needs
        (models.SENTENCE_ENCODER, {"sentence_ids": tokens(8), "sentence_mask": tokens(8)}),
        (models.TEXT_TOKENIZER, {"transcript": texts([b"one"], [b"two"])}),
    ],
)
def test_inputs_as_declared_are_taken(model, inputs):
    check_inputs(model, inputs)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (models.MUSIC_PROMPT, {"words": texts("rain")}, "has no input 'words'; it has emotion"),
        (models.MUSIC_GENERATOR, {"lease": texts("1-2-3")}, r"has no input 'lease'; it has (?!.*\blease\b)"),
        (models.SPEECH_EMOTION, {}, "speech_emotion needs the input audio"),
        (models.MUSIC_PROMPT, {"vad": np.ones(3)}, r"input vad must be an array \(3,\) of float32"),
        (models.MUSIC_PROMPT, {"vad": np.ones(2, np.float32)}, "input vad must be an array"),
        (models.MUSIC_PROMPT, {"text": "rain"}, "input text must be an array"),
        (models.MUSIC_PROMPT, {"text": texts(3)}, "input text must hold bytes or str"),
        (models.MUSIC_PROMPT, {"text": texts("\ud800")}, "input text cannot be sent"),
        (models.SENTENCE_ENCODER, {"sentence_ids": tokens(9), "sentence_mask": tokens(9)}, "1 to 8 rows"),
        (models.SENTENCE_ENCODER, {"sentence_ids": tokens(0), "sentence_mask": tokens(0)}, "1 to 8 rows"),
        (models.SENTENCE_ENCODER, {"sentence_ids": tokens(1), "sentence_mask": tokens(2)}, "equally many rows"),
    ],
)
def test_inputs_that_are_not_the_models_are_refused_with_words(model, inputs, words):
    with pytest.raises(InvalidOption, match=words):
        check_inputs(model, inputs)
