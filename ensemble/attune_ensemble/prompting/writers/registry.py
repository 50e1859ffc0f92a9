"""The prompt writers by name."""

from __future__ import annotations

from collections.abc import Callable

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import InvalidOption
from attune_ensemble.prompting.writers.template import TEMPLATE, TemplatePromptWriter
from attune_ensemble.prompting.writers.writer import PromptWriter

__all__ = ["WRITERS", "create_writer"]

WRITERS: dict[str, Callable[[], PromptWriter]] = {TEMPLATE: TemplatePromptWriter}
"""Factory of each writer, by name. The setting `prompt_writer` of `music_prompt` selects one."""


def create_writer(name: str = TEMPLATE) -> PromptWriter:
    """Create the prompt writer `name`; raises `InvalidOption`, listing the known names, if it is unknown."""
    if name not in WRITERS:
        raise InvalidOption(f"prompt writer must be one of {', '.join(WRITERS)}; got {quote(name)}")
    return WRITERS[name]()
