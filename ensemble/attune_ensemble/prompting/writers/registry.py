"""The prompt writers by name."""

from __future__ import annotations

from collections.abc import Callable

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import InvalidOption
from attune_ensemble.prompting.writers.template import TEMPLATE, TemplatePromptWriter
from attune_ensemble.prompting.writers.writer import PromptWriter

__all__ = ["WRITERS", "create_writer"]

WRITERS: dict[str, Callable[[], PromptWriter]] = {TEMPLATE: TemplatePromptWriter}
"""What makes each writer; which of them writes is a setting of `music_prompt`."""


def create_writer(name: str = TEMPLATE) -> PromptWriter:
    """A new prompt writer of that name; raises `InvalidOption`, naming those there are, when there is none."""
    if name not in WRITERS:
        raise InvalidOption(f"prompt writer must be one of {', '.join(WRITERS)}; got {quote(name)}")
    return WRITERS[name]()
