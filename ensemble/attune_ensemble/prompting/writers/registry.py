"""The prompt writers by name."""

from __future__ import annotations

from collections.abc import Callable

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import InvalidOption
from attune_ensemble.prompting.writers.template import TEMPLATE, TemplatePromptWriter
from attune_ensemble.prompting.writers.writer import PromptWriter

__all__ = ["create_writer"]


def create_writer(name: str = TEMPLATE) -> PromptWriter:
    """A new prompt writer of that name; raises `InvalidOption`, naming those there are, when there is none."""
    if name not in _WRITERS:
        raise InvalidOption(f"prompt writer must be one of {', '.join(_WRITERS)}; got {quote(name)}")
    return _WRITERS[name]()


_WRITERS: dict[str, Callable[[], PromptWriter]] = {TEMPLATE: TemplatePromptWriter}
