"""What training needs from the rooms above it, found by entry point and never imported by name.

The group is ``attune.providers``: ``weights`` is a callable from the name of pinned weights to the folder that holds
them; ``anchors`` is the path of the knowledge base, which lists the 40 emotions; ``segmenter`` finds the segments of
speech in a waveform as they are served; ``transcriber`` makes the transcriber that is also served, from the folder of
Whisper's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "GROUP",
    "FindSpeech",
    "HeardSegment",
    "ProviderError",
    "Transcribe",
    "anchors_file",
    "segmenter",
    "transcriber",
    "weights",
]

GROUP = "attune.providers"
_TRANSCRIBER_WEIGHTS = "whisper-base-ct2"
_INSTALL = "install the extra train"


class ProviderError(RuntimeError):
    """A provider is not installed, or cannot give what was asked for."""


FindSpeech = Callable[[npt.NDArray[np.float32]], list[tuple[int, int]]]
"""Finds the segments of speech in waveform [T], 16 kHz mono: of each the first sample, and the one after its last."""


@dataclass(frozen=True, slots=True)
class HeardSegment:
    """Samples ``start`` up to ``end`` of a waveform, and the words that were heard in it."""

    start: int
    end: int
    transcript: str


class Transcribe(Protocol):
    """Give the segments and their words of waveform [T], 16 kHz mono; none where there is no speech."""

    def __call__(self, waveform: npt.NDArray[np.float32]) -> list[HeardSegment]:
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


def segmenter() -> FindSpeech:
    """Return the finding of speech that is also served.

    Raises:
        ProviderError: a provider is not installed, or lacks something: said at once, not after hours of training.
    """
    find = _load("segmenter")
    try:
        find(np.zeros(1600, np.float32))
    except ImportError as error:
        raise ProviderError(f"finding speech needs more than is installed ({error}): {_INSTALL}") from error
    return lambda waveform: [(span.start, span.end) for span in find(waveform)]


def transcriber() -> Transcribe:
    """Return the transcriber that is also served, with its pinned weights.

    Raises:
        ProviderError: a provider is not installed, or the weights cannot be fetched.
    """
    made = _load("transcriber")(weights(_TRANSCRIBER_WEIGHTS))

    def transcribe(waveform: npt.NDArray[np.float32]) -> list[HeardSegment]:
        try:
            found = made.transcribe(waveform)
        except Exception as error:
            if getattr(error, "code", "") == "no_speech":
                return []
            raise
        return [HeardSegment(item.span.start, item.span.end, item.transcript) for item in found]

    return transcribe


def _load(name: str) -> Any:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise ProviderError(f"nothing provides {name!r} (entry points {GROUP!r}): {_INSTALL}")
    try:
        return found[0].load()
    except ImportError as error:
        raise ProviderError(f"{found[0].value} cannot be imported ({error}): {_INSTALL}") from error
