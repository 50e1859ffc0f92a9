"""From an emotion, or free words, to a music description and a prompt: what `music_prompt` serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import InvalidOption, quoted
from attune_ensemble.knowledge import Emotion
from attune_ensemble.pipeline import Call
from attune_ensemble.prompts import PromptWriter, music_spec
from attune_ensemble.retrieval import KnowledgeIndex, query_text
from attune_ensemble.tensors import Tensors, bytes_tensor, text_of

MIN_VAD, MAX_VAD = 1.0, 5.0


class MusicDescriber:
    """Retrieves the description nearest to an emotion or a text, and writes the prompt for it."""

    def __init__(self, emotions: Sequence[Emotion], index: KnowledgeIndex, writer: PromptWriter) -> None:
        self._by_label = {emotion.label: emotion for emotion in emotions}
        self._index = index
        self._writer = writer

    def describe(self, inputs: Tensors, call: Call) -> dict[str, Any]:
        """The outputs of `music_prompt` by name.

        An emotion is searched for in its own octant (paper, section III-E), free text everywhere. Raises
        `InvalidOption` for an unknown emotion, empty text, both or neither of them, or a VAD outside 1..5.
        """
        query, octant = self._query(inputs)
        vad = _vad(inputs)
        found = self._index.search(embed(query, call), octant)
        spec = music_spec(found.emotion, vad)
        prompt = self._writer.write(found.emotion, vad, spec)
        return {
            "retrieved_emotion": found.emotion.label,
            "similarity": [found.similarity],
            "description": found.emotion.description,
            "prompt": prompt.text,
            "prompt_writer": prompt.writer,
            "music_spec": spec.to_json(),
        }

    def _query(self, inputs: Tensors) -> tuple[str, str | None]:
        """What to embed, and the octant to search in."""
        if ("emotion" in inputs) == ("text" in inputs):
            raise InvalidOption("send either an emotion or text, and not both" if "text" in inputs else _NEITHER)
        if "text" in inputs:
            return _free_text(inputs["text"]), None
        label = text_of(inputs["emotion"])
        if label not in self._by_label:
            raise InvalidOption(f"{quoted(label)} is not one of the emotions {', '.join(self._by_label)}")
        return query_text(label), self._by_label[label].octant


_NEITHER = "send an emotion or text"


def _free_text(tensor: npt.NDArray[Any]) -> str:
    text = text_of(tensor).strip()
    if not text:
        raise InvalidOption("the text is empty; send some words to search by")
    return text


def _vad(inputs: Tensors) -> tuple[float, float, float] | None:
    if "vad" not in inputs:
        return None
    valence, arousal, dominance = (float(value) for value in inputs["vad"])
    if not all(MIN_VAD <= value <= MAX_VAD for value in (valence, arousal, dominance)):
        raise InvalidOption(f"valence, arousal and dominance must lie between {MIN_VAD:g} and {MAX_VAD:g}")
    return valence, arousal, dominance


def embed(text: str, call: Call) -> npt.NDArray[np.float32]:
    """The sentence embedding [384] of a text, through `text_tokenizer` and `sentence_encoder`."""
    tokens = call("text_tokenizer", {"transcript": bytes_tensor(text)[None]})
    embedding: npt.NDArray[np.float32] = call("sentence_encoder", tokens)["embedding"][0]
    return embedding
