"""The prompt writers by name."""

from __future__ import annotations

from collections.abc import Callable

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import InvalidOption
from attune_ensemble.prompting.writers.bart import BartPromptWriter
from attune_ensemble.prompting.writers.template import TemplatePromptWriter
from attune_ensemble.prompting.writers.writer import BART, TEMPLATE, PromptWriter, WriterOptions

__all__ = ["WRITERS", "create_writer"]

WRITERS: dict[str, Callable[[WriterOptions], PromptWriter]] = {
    TEMPLATE: lambda options: TemplatePromptWriter(),
    BART: BartPromptWriter.load,
}
"""What makes each writer, by name. The setting `prompt_writer` of `music_prompt` selects one."""


def create_writer(name: str, options: WriterOptions) -> PromptWriter:
    """Create the prompt writer `name`; raises `InvalidOption`, listing the known names, if it is unknown."""
    if name not in WRITERS:
        raise InvalidOption(f"prompt writer must be one of {', '.join(WRITERS)}; got {quote(name)}")
    return WRITERS[name](options)
