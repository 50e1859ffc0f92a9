"""What training takes from the packages above it, found by entry point and never imported by name.

The group is `attune.providers`; each entry is a module of which a function or two are needed here, so that training and
serving do the same thing: `knowledge` reads the anchors of the emotions and names octants, `transcription` finds speech
and transcribes it, `overall` makes the whole of segments, `choice` chooses an emotion by VAD and words, `containers`
detects truncated recordings, and `report` describes the machine. The base package `attune_weights` is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from attune_weights import fetch

__all__ = [
    "BY_DURATION",
    "GROUP",
    "FindSpeech",
    "ProviderError",
    "RecognisedSegment",
    "Transcribe",
    "anchors",
    "by_vad",
    "choice_files",
    "combined",
    "hardware",
    "is_cut_off",
    "octant_of",
    "overall_rules",
    "overall_shares",
    "overall_vad",
    "read_choice",
    "segmenter",
    "served_overall_rule",
    "transcriber",
]

GROUP = "attune.providers"
_TRANSCRIBER_WEIGHTS = "whisper-base-ct2"
_INSTALL = "install the extra train"


class ProviderError(RuntimeError):
    """A provider is not installed, or lacks something that it needs."""


FindSpeech = Callable[[npt.NDArray[np.float32]], list[tuple[int, int]]]
"""Finds the speech segments of waveform [T], 16 kHz mono, as (first sample, sample after the last)."""


@dataclass(frozen=True, slots=True)
class RecognisedSegment:
    """Samples `start` up to `end` of a waveform, and the words recognised in it."""

    start: int
    end: int
    transcript: str


class Transcribe(Protocol):
    """Transcribes waveform [T], 16 kHz mono, into segments with their words; empty without speech."""

    def __call__(self, waveform: npt.NDArray[np.float32]) -> list[RecognisedSegment]:
        """Transcribe one recording."""
        ...


def anchors(path: Path | None = None) -> dict[str, tuple[float, float, float]]:
    """Return the anchor, VAD on 1..5, of every emotion by its label, in class order.

    They are those of `path`, a file like that of the knowledge base, or of the knowledge base itself.

    Raises:
        ProviderError: no provider is installed.
        ValueError: the file cannot be read, or an entry lacks its label or anchor.
    """
    knowledge = _module("knowledge")
    try:
        found: dict[str, tuple[float, float, float]] = knowledge.read_anchors(path)
    except knowledge.KnowledgeError as error:
        raise ValueError(str(error)) from error
    return found


def octant_of(vad: tuple[float, float, float]) -> str:
    """Return the octant of a point on 1..5: a letter for each dimension, H where it is above the middle, otherwise L.

    Raises:
        ProviderError: no provider is installed.
    """
    octant: str = _module("knowledge").octant_of(vad)
    return octant


def combined(
    from_vad: npt.NDArray[np.float32], from_words: npt.NDArray[np.float32], vad_exponent: float, words_exponent: float
) -> npt.NDArray[np.float32]:
    """Return the product of two tables of probabilities [N, K], as `attune_ensemble.speech.choice.combined` does.

    Raises:
        ProviderError: no provider is installed.
    """
    joint: npt.NDArray[np.float32] = _module("choice").combined(from_vad, from_words, vad_exponent, words_exponent)
    return joint


def by_vad() -> str:
    """Return the name of the paper's way to choose an emotion, by VAD alone.

    Raises:
        ProviderError: no provider is installed.
    """
    name: str = _module("choice").BY_VAD
    return name


def choice_files() -> tuple[str, str]:
    """Return the names of the two files of a fitted choice: its record, and the layer over the words.

    Raises:
        ProviderError: no provider is installed.
    """
    module = _module("choice")
    return module.CHOICE_FILE, module.WORDS_FILE


def read_choice(folder: Path) -> Any:
    """Return the `EmotionChoice` stored in a folder, as it is served.

    Raises:
        ProviderError: no provider is installed.
        ValueError: the folder holds none.
    """
    return _module("choice").read_choice(folder)


def overall_rules() -> tuple[str, ...]:
    """Return the names of the rules by which the whole of a narration follows from its segments.

    Raises:
        ProviderError: no provider is installed.
    """
    return tuple(_module("overall").OverallRule)


def served_overall_rule() -> str:
    """Return the name of the rule that is served.

    Raises:
        ProviderError: no provider is installed.
    """
    rule: str = _module("overall").SERVED
    return rule


BY_DURATION = "duration"
"""The rule for the whole that needs not know all dimensions: each segment counts as long as it lasts."""


def overall_shares(vad: npt.ArrayLike, num_samples: npt.ArrayLike, rule: str | None = None) -> npt.NDArray[np.float64]:
    """Return how much each segment counts in the whole, [S], with the sum 1; arguments and errors: `overall_vad`."""
    module = _module("overall")
    found: npt.NDArray[np.float64] = module.shares(vad, num_samples, module.OverallRule(rule or module.SERVED))
    return found


def overall_vad(vad: npt.ArrayLike, num_samples: npt.ArrayLike, rule: str | None = None) -> npt.NDArray[np.float32]:
    """Return the values [N] of the whole, from those of its segments [S, N] on 1..5 and their lengths [S] at 16 kHz.

    The rule is the served one unless another is named.

    Raises:
        ProviderError: no provider is installed.
        ValueError: there is no such rule, or there are no segments, or not as many lengths.
    """
    module = _module("overall")
    whole: npt.NDArray[np.float32] = module.overall_vad(vad, num_samples, module.OverallRule(rule or module.SERVED))
    return whole


def is_cut_off(encoded: bytes) -> bool:
    """Return whether a recording is shorter than its header announces, by the server's rule.

    Raises:
        ProviderError: no provider is installed.
    """
    containers = _module("containers")
    try:
        containers.check_complete(encoded)
    except containers.TruncatedAudio:
        return True
    return False


def hardware() -> str:
    """Return a one-line description of the machine, as in benchmarks: processor, cores, memory, system and Python.

    Raises:
        ProviderError: no provider is installed.
    """
    line: str = _module("report").hardware()
    return line


def segmenter() -> FindSpeech:
    """Return the segmenter that is also served.

    Raises:
        ProviderError: a provider is not installed, or lacks a dependency; raised before hours of training.
    """
    find = _module("transcription").find_speech
    try:
        find(np.zeros(1600, np.float32))
    except ImportError as error:
        raise ProviderError(f"finding speech needs more than is installed ({error}): {_INSTALL}") from error
    return lambda waveform: [(span.start, span.end) for span in find(waveform)]


def transcriber(**decoding: Any) -> Transcribe:
    """Return the transcriber that is also served, with its pinned weights.

    `decoding` are settings of `attune_ensemble.speech.whisper.Decoding` that shall not be the served ones.

    Raises:
        ProviderError: a provider is not installed.
        WeightsError: the weights cannot be fetched.
    """
    transcription = _module("transcription")
    made = transcription.Transcriber(fetch(_TRANSCRIBER_WEIGHTS), decoding=transcription.Decoding(**decoding))

    def transcribe(waveform: npt.NDArray[np.float32]) -> list[RecognisedSegment]:
        try:
            found = made.transcribe(waveform)
        except transcription.NoSpeech:
            return []
        return [RecognisedSegment(item.span.start, item.span.end, item.transcript) for item in found]

    return transcribe


@cache
def _module(name: str) -> Any:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise ProviderError(f"nothing provides {name!r} (entry points {GROUP!r}): {_INSTALL}")
    try:
        return found[0].load()
    except ImportError as error:
        raise ProviderError(f"{found[0].value} cannot be imported ({error}): {_INSTALL}") from error
