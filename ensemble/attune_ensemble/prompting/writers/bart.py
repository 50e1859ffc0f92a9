"""The BART writer: the template's prompt, with BART's summary in it (paper, section III-F)."""

from __future__ import annotations

from attune_ensemble.call import CallContext
from attune_ensemble.prompting.summarising import BartSummariser
from attune_ensemble.prompting.writers.template import structured_prompt
from attune_ensemble.prompting.writers.writer import BART, Material, Prompt, Summary, WriterOptions

__all__ = ["MODEL_DIR", "BartPromptWriter", "load_summariser"]

MODEL_DIR = "bart"
"""The folder of the converted model, beside the index. It is missing where the weights could not be had."""

_COMPUTE_TYPES = {"cpu": "int8", "cuda": "float16"}
_THREADS = "2"


class BartPromptWriter:
    """Writes structured prompts with BART's summaries: the index's for an emotion, a live one for free text.

    Where the export had no weights, the summaries of the index are the template's. They are taken, for free text too,
    and the prompt says that the template wrote it.
    """

    name = BART

    def __init__(self, summariser: BartSummariser | None) -> None:
        self._summariser = summariser

    @classmethod
    def load(cls, options: WriterOptions) -> BartPromptWriter:
        """Load the model that was exported, if one was."""
        return cls(load_summariser(options))

    def close(self) -> None:
        """Release the model's memory."""
        if self._summariser is not None:
            self._summariser.close()

    def write(self, material: Material, *, context: CallContext) -> Prompt:
        """Write the prompt; only free text takes longer than an instant: see `BartSummariser.summarise`."""
        summary = self._summary(material, context)
        return Prompt(structured_prompt(material, summary.text), summary.writer)

    def _summary(self, material: Material, context: CallContext) -> Summary:
        if material.words is None or self._summariser is None:
            return material.summary
        # Words alone may be shorter than a summary, and say nothing of the music.
        text = f"{_as_sentence(material.words)} {material.emotion.description}"
        return Summary(self._summariser.summarise(text, context=context), BART)


def load_summariser(options: WriterOptions) -> BartSummariser | None:
    """Load the model in the folder of `options`; None if there is none.

    The settings `compute_type` (of CTranslate2) and `threads` are optional: int8 on a CPU, float16 on a GPU, 2 threads.
    """
    folder = options.folder / MODEL_DIR
    if not folder.is_dir():
        return None
    usual = _COMPUTE_TYPES[options.device.partition(":")[0]]
    settings = options.settings
    return BartSummariser(
        folder, options.device, settings.get("compute_type", usual), int(settings.get("threads", _THREADS))
    )


def _as_sentence(words: str) -> str:
    return words if words.endswith((".", "!", "?", "…")) else f"{words}."
