"""What training needs from the rooms above it, found by entry point and never imported by name.

The group is ``attune.providers``: ``weights`` is a callable from the name of pinned weights to the folder that holds
them; ``anchors`` is the path of the knowledge base, which lists the 40 emotions; ``transcriber`` makes the
transcriber that is also served, from the folder of Whisper's weights.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["GROUP", "ProviderError", "Transcribe", "anchors_file", "transcriber", "weights"]

GROUP = "attune.providers"
_TRANSCRIBER_WEIGHTS = "whisper-base-ct2"


class ProviderError(RuntimeError):
    """A provider is not installed, or cannot give what was asked for."""


class Transcribe(Protocol):
    """Give the words of waveform [T], 16 kHz mono; empty where there are none."""

    def __call__(self, waveform: npt.NDArray[np.float32]) -> str:
        """Transcribe one recording."""
        ...


def weights(name: str) -> Path:
    """Return the folder of the pinned weights ``name``, fetched on first use.

    Raises:
        ProviderError: no provider is installed, or the weights cannot be fetched.
    """
    fetch = _load("weights")
    try:
        folder: Path = fetch(name)
    except Exception as error:
        raise ProviderError(str(error)) from error
    return folder


def anchors_file() -> Path:
    """Return the file that lists the 40 emotions with their anchors.

    Raises:
        ProviderError: no provider is installed.
    """
    path: Path = _load("anchors")
    return path


def transcriber() -> Transcribe:
    """Return the transcriber that is also served, with its pinned weights.

    Raises:
        ProviderError: a provider is not installed, or the weights cannot be fetched.
    """
    made = _load("transcriber")(weights(_TRANSCRIBER_WEIGHTS))

    def transcribe(waveform: npt.NDArray[np.float32]) -> str:
        try:
            return " ".join(segment.transcript for segment in made.transcribe(waveform))
        except Exception as error:
            if getattr(error, "code", "") == "no_speech":
                return ""
            raise

    return transcribe


def _load(name: str) -> Any:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise ProviderError(f"nothing provides {name!r} (entry points {GROUP!r}): install the extras train and serve")
    try:
        return found[0].load()
    except ImportError as error:
        raise ProviderError(
            f"{found[0].value} cannot be imported ({error}): install the extras train and serve"
        ) from error
