"""The served models by name, in the order of the pipeline."""

from __future__ import annotations

from attune_export.models import (
    arousal_dominance,
    emotion_classifier,
    emotion_encoder,
    emotion_recognition,
    music_generator,
    music_prompt,
    music_therapy,
    sentence_encoder,
    speech_emotion,
    speech_to_text,
    text_tokenizer,
    valence,
)
from attune_export.served_model import ServedModel

__all__ = ["SERVED_MODELS"]

SERVED_MODELS: dict[str, ServedModel] = {
    model.spec.name: model
    for model in (
        speech_to_text.MODEL,
        text_tokenizer.MODEL,
        emotion_encoder.MODEL,
        valence.MODEL,
        arousal_dominance.MODEL,
        emotion_classifier.MODEL,
        emotion_recognition.MODEL,
        sentence_encoder.MODEL,
        music_prompt.MODEL,
        music_generator.MODEL,
        speech_emotion.MODEL,
        music_therapy.MODEL,
    )
}
