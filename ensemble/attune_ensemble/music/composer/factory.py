"""What the composer brings to the place where it is served: no settings, no metrics, nothing that may be missing."""

from __future__ import annotations

from collections.abc import Mapping

from attune_ensemble.music.engine import EngineOptions, MusicEngine

__all__ = ["ComposerFactory"]


class ComposerFactory:
    """Makes composers; implements `EngineFactory`."""

    metrics: Mapping[str, str] = {}
    missing: str | None = None
    left_out = False

    def __init__(self, options: EngineOptions) -> None:
        """The composer takes none of the options: it runs on the CPU, and its samples are part of the package."""

    def create(self) -> MusicEngine:
        """Create a composer."""
        from attune_ensemble.music.composer.engine import ComposerEngine

        return ComposerEngine()
