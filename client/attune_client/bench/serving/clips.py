"""The recordings of a load: files as they are, or the samples and cuts of them, so that lengths are mixed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile as sf

from attune_client.protocol.checks import printable
from attune_client.protocol.errors import UnreadableFile

__all__ = ["CUTS_S", "Clip", "clips_of_length", "mixed_clips", "read_clips"]

CUTS_S = (2.0, 4.5, 8.0)
"""Lengths of the cuts, in seconds: a short answer, the mean of IEMOCAP's utterances, the longest segment."""

Mono = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """An encoded recording and its length."""

    name: str
    seconds: float
    encoded: bytes = field(repr=False)


def read_clips(paths: Iterable[Path]) -> list[Clip]:
    """The files as they are.

    Raises:
        UnreadableFile: a file is missing, or libsndfile cannot read it, so that its length is not known.
    """
    return [_clip(path) for path in paths]


def mixed_clips(paths: Iterable[Path]) -> list[Clip]:
    """The files as they are, and cuts of `CUTS_S`, from the beginning of each; one that is too short is repeated.

    Raises as `read_clips` does.
    """
    paths = list(paths)
    cuts = [
        _encoded(f"{path.stem}, {seconds:g} s", np.resize(samples, round(seconds * rate)), rate)
        for path in paths
        for samples, rate in [_mono(path)]
        for seconds in CUTS_S
    ]
    return read_clips(paths) + cuts


def clips_of_length(paths: Sequence[Path], lengths_s: Iterable[float], pause_s: float = 0.5) -> list[Clip]:
    """One clip of each length: the recordings one after the other, with pauses between, again and again.

    Raises as `read_clips` does, and `UnreadableFile` for recordings of several sample rates.
    """
    read = [_mono(path) for path in paths]
    rates = {rate for _, rate in read}
    if len(rates) > 1:
        raise UnreadableFile(f"the recordings have several sample rates, {sorted(rates)}, and cannot be joined")
    [rate] = rates
    pause = np.zeros(round(pause_s * rate), np.float32)
    joined = np.concatenate([part for samples, _ in read for part in (samples, pause)])
    return [_encoded(f"{seconds:g} s", np.resize(joined, round(seconds * rate)), rate) for seconds in lengths_s]


def _clip(path: Path) -> Clip:
    encoded = _bytes_of(path)
    try:
        return Clip(path.name, float(sf.info(io.BytesIO(encoded)).duration), encoded)
    except sf.LibsndfileError as error:
        raise _no_length(path, error) from error


def _mono(path: Path) -> tuple[Mono, int]:
    """Samples [T] and their rate in Hz."""
    try:
        samples, rate = sf.read(io.BytesIO(_bytes_of(path)), dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise _no_length(path, error) from error
    return samples.mean(axis=1), rate


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"cannot read {printable(str(path))}: {error.strerror or error}") from error


def _no_length(path: Path, error: Exception) -> UnreadableFile:
    return UnreadableFile(f"{printable(str(path))} is not read here, so its length is not known: {error}")


def _encoded(name: str, samples: Mono, rate: int) -> Clip:
    file = io.BytesIO()
    sf.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    return Clip(name, len(samples) / rate, file.getvalue())
