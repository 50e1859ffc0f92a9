"""The service behind `music_prompt`: from an emotion or free text to a music description and a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from attune_client.protocol.checks import check_emotion, check_sources, check_text, check_vad
from attune_client.protocol.errors import InvalidOption
from attune_client.protocol.models import GENTLE
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.tensors import Tensors, text_of
from attune_ensemble.call import Call, CallContext
from attune_ensemble.prompting.embedding import embed
from attune_ensemble.prompting.gentle import gentle_emotions, nearest_emotion
from attune_ensemble.prompting.knowledge import Emotion
from attune_ensemble.prompting.retrieval import KnowledgeIndex, Retrieved, query_text
from attune_ensemble.prompting.specification import Vad, music_spec
from attune_ensemble.prompting.writers.template import specification_prompt
from attune_ensemble.prompting.writers.writer import CALLER, Material, Prompt, PromptWriter


class MusicDescriber:
    """Retrieves the description nearest to an emotion or a text, and writes the prompt for it."""

    def __init__(self, emotions: Sequence[Emotion], index: KnowledgeIndex, writer: PromptWriter) -> None:
        self._by_label = {emotion.label: emotion for emotion in emotions}
        self._gentle = gentle_emotions(emotions)
        self._index = index
        self._writer = writer

    def close(self) -> None:
        """Close the index and the writer."""
        self._index.close()
        self._writer.close()

    def describe(self, inputs: Tensors, call: Call, *, context: CallContext) -> dict[str, Any]:
        """Return the outputs of `music_prompt` by name.

        An emotion is searched for in its own octant (paper, section III-E), free text everywhere; a specification is
        taken as it is, and what was retrieved is missing. With `gentle`, an emotion becomes the gentle one nearest to
        its VAD, a text finds a gentle one, and VAD shades nothing.

        Raises `InvalidOption` for an unknown emotion, empty text, both or neither of them, a VAD outside 1..5, or a
        specification that cannot be played; what `CallContext.check` raises.
        """
        if "music_spec" in inputs:
            return _as_specified(inputs)
        vad, words = _vad(inputs), None
        if GENTLE.name in inputs and inputs[GENTLE.name].any():
            found, vad = self._find_gentle(inputs, vad, call, context), None
        else:
            query, octant = self._query(inputs)
            found = self._index.search(embed([query], call, context=context)[0], octant)
            words = query if "text" in inputs else None
        spec = music_spec(found.emotion, vad)
        prompt = self._writer.write(Material(found.emotion, vad, spec, found.summary, words), context=context)
        return {
            "retrieved_emotion": found.emotion.label,
            "similarity": [found.similarity],
            "description": found.emotion.description,
            "prompt": prompt.text,
            "prompt_writer": prompt.writer,
            "music_spec": spec.to_json(),
        }

    def _find_gentle(self, inputs: Tensors, vad: Vad | None, call: Call, context: CallContext) -> Retrieved:
        query, _octant = self._query(inputs)
        candidates = self._gentle
        if "emotion" in inputs:
            wanted = nearest_emotion(candidates, vad or self._asked(inputs).anchor)
            query, candidates = query_text(wanted.label), (wanted,)
        labels = [emotion.label for emotion in candidates]
        return self._index.search(embed([query], call, context=context)[0], None, labels)

    def _query(self, inputs: Tensors) -> tuple[str, str | None]:
        """Return the text to embed, and the octant to search in (None: all)."""
        if ("emotion" in inputs) == ("text" in inputs):
            raise InvalidOption("send either an emotion or text, and not both" if "text" in inputs else _NEITHER)
        if "text" in inputs:
            return _free_text(inputs["text"]), None
        asked = self._asked(inputs)
        return query_text(asked.label), asked.octant

    def _asked(self, inputs: Tensors) -> Emotion:
        return self._by_label[check_emotion(text_of(inputs["emotion"]), tuple(self._by_label))]


_NEITHER = "send an emotion or text"


def _as_specified(inputs: Tensors) -> dict[str, Any]:
    check_sources(inputs)  # an emotion beside it would be ignored
    spec = MusicSpec.from_json(text_of(inputs["music_spec"]))
    prompt = Prompt(_free_text(inputs["text"]), CALLER) if "text" in inputs else specification_prompt(spec)
    return {"prompt": prompt.text, "prompt_writer": prompt.writer, "music_spec": spec.to_json()}


def _free_text(tensor: npt.NDArray[Any]) -> str:
    return check_text("text", text_of(tensor))


def _vad(inputs: Tensors) -> Vad | None:
    return check_vad(inputs["vad"]) if "vad" in inputs else None
