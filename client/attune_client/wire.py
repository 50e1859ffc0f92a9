"""What both clients share: the arguments of their callers as inputs, how long they wait, and their results.

Arguments that cannot be sent raise subclasses of `AttuneError`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from attune_client.connection import check_url
from attune_client.protocol.bounds import MAX_AUDIO_BYTES
from attune_client.protocol.checks import (
    check_deadline,
    check_duration,
    check_other_languages,
    check_seed,
    check_sources,
    check_text,
    check_timeout,
    check_vad,
    printable,
    quote,
)
from attune_client.protocol.errors import (
    AudioTooLong,
    InvalidOption,
    InvalidRequest,
    RequestTimeout,
    ServerError,
    UnreadableFile,
)
from attune_client.protocol.models import DEADLINE
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.tensors import Tensors, bytes_tensor

AudioSource = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""An encoded recording, the path of one, or a file that is open for reading bytes."""

SpecSource = MusicSpec | Mapping[str, Any] | str
"""A musical specification, or a mapping or JSON object with its fields."""

DEFAULT_TIMEOUT_S = 300.0
"""How long a client waits for a response where neither `timeout_s` nor a deadline says how long."""

GRACE_S = 1.0
"""How much longer than the deadline a client waits, in seconds: the answer of the server says what was not done."""

LAST_WORDS_S = 1.0
"""How long a server may take to end a stream after the error that is its last response, in seconds."""

STREAM_GRACE_S = 10.0
"""How much longer than the deadline a stream may take, in seconds: its listener may be slow."""

_Answer = TypeVar("_Answer")


# --- arguments of the caller ---


def check_connection(url: str, timeout_s: float | None) -> tuple[str, float | None]:
    """Return a client's address and timeout; raises `InvalidOption` for invalid ones."""
    return check_url(url), None if timeout_s is None else check_timeout(timeout_s)


def audio_tensor(audio: AudioSource) -> npt.NDArray[np.object_]:
    """Return the recording as a BYTES tensor [1].

    Raises:
        UnreadableFile: the file cannot be read.
        AudioTooLong: it is larger than a server accepts.
    """
    encoded = _read_audio(audio)
    if len(encoded) > MAX_AUDIO_BYTES:
        raise AudioTooLong(
            f"the recording has more than {MAX_AUDIO_BYTES // 2**20:,} MiB, the largest that is sent: encode it as "
            "FLAC or OGG, or with fewer samples a second"
        )
    return bytes_tensor(encoded)


def _read_audio(audio: Any) -> bytes:
    """Read a recording, at most one byte more than may be sent, since a device may be endless."""
    if isinstance(audio, bytes | bytearray | memoryview):
        return bytes(audio)
    name = getattr(audio, "name", "the open file")
    try:
        if isinstance(audio, str | os.PathLike):
            name = os.fspath(audio)
            with Path(audio).open("rb") as file:
                encoded = file.read(MAX_AUDIO_BYTES + 1)
        elif hasattr(audio, "read"):
            encoded = audio.read(MAX_AUDIO_BYTES + 1)
        else:
            raise InvalidOption(f"audio must be bytes, a path or a file open for reading, not {quote(audio)}")
    except OSError as error:
        raise UnreadableFile(f"cannot read {printable(str(name))}: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:  # a path with NUL or a lone surrogate, or a closed file
        raise UnreadableFile(f"cannot read {printable(str(name))}: {printable(str(error))}") from error
    if not isinstance(encoded, bytes):
        raise InvalidOption(f"audio must be open for reading bytes (mode 'rb'), and gave a {type(encoded).__name__}")
    return encoded


def deadline_inputs(deadline_s: float | None) -> Tensors:
    """The deadline as an input, or nothing where there is none; `InvalidOption` for one out of range."""
    return {} if deadline_s is None else {DEADLINE.name: np.array([check_deadline(deadline_s)], np.float32)}


def text_inputs(text: str) -> Tensors:
    """Return the inputs of `music_prompt` for a text; raises `InvalidOption` for an invalid query."""
    return {"text": bytes_tensor(check_text("text", text))}


def speech_inputs(audio: AudioSource, other_languages: str | None = None) -> Tensors:
    """Return the inputs of `speech_emotion`; raises as `audio_tensor` does."""
    option = {} if other_languages is None else {"other_languages": check_other_languages(other_languages)}
    return {name: bytes_tensor(value) for name, value in option.items()} | {"audio": audio_tensor(audio)}


def therapy_inputs(
    audio: AudioSource | None,
    *,
    text: str | None = None,
    emotion: str | None = None,
    vad: Iterable[float] | None = None,
    spec: SpecSource | None = None,
    duration_s: float | None = None,
    seed: int | None = None,
    engine: str | None = None,
    other_languages: str | None = None,
    deadline_s: float | None = None,
) -> Tensors:
    """Return the inputs of `music_therapy`; raises `InvalidOption` before a recording is read."""
    given = {"audio": audio, "text": text, "emotion": emotion, "vad": vad, "music_spec": spec}
    check_sources([name for name, value in given.items() if value is not None])
    inputs = deadline_inputs(deadline_s)
    if duration_s is not None:
        inputs["duration_s"] = np.array([check_duration(duration_s)], np.float32)
    if seed is not None:
        inputs["seed"] = np.array([check_seed(seed)], np.int64)
    if engine is not None:
        inputs["engine"] = bytes_tensor(check_text("engine", engine))
    if emotion is not None:
        inputs["emotion"] = bytes_tensor(check_text("emotion", emotion))
    if vad is not None:
        inputs["vad"] = np.array(check_vad(vad), np.float32)
    if spec is not None:
        inputs["music_spec"] = bytes_tensor(MusicSpec.of(spec).to_json())
    if text is not None:
        inputs |= text_inputs(text)
    if audio is not None:
        inputs |= speech_inputs(audio, other_languages)
    elif other_languages is not None:
        raise InvalidOption("other_languages is for a recording, and there is no audio")
    return inputs


# --- how long a client waits ---


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client waits for an answer, or for the next response of a stream.

    Where there is a deadline, that is until `GRACE_S` after it, and then `GRACE_S` each time: what was made in time may
    still be on its way to a listener who takes it slowly. A `timeout_s` that the caller chose is the longest wait in
    any case; where there is neither, `DEFAULT_TIMEOUT_S` is.
    """

    timeout_s: float
    deadline_s: float | None
    begun_s: float

    @classmethod
    def of(cls, timeout_s: float | None, inputs: Mapping[str, npt.NDArray[Any]]) -> Patience:
        """Of a request that begins now; `InvalidOption` for a deadline out of range."""
        deadline_s = check_deadline(inputs[DEADLINE.name].flat[0].item()) if DEADLINE.name in inputs else None
        if timeout_s is None:
            timeout_s = DEFAULT_TIMEOUT_S if deadline_s is None else math.inf
        return cls(timeout_s, deadline_s, time.monotonic())

    def left_s(self) -> float:
        """Return the remaining time, in seconds."""
        if self.deadline_s is None:
            return self.timeout_s
        return min(self.timeout_s, GRACE_S + max(0.0, self.begun_s + self.deadline_s - time.monotonic()))

    def stream_s(self) -> float | None:
        """Return how long a whole stream may take, in seconds; None for one without a deadline."""
        return None if self.deadline_s is None else self.deadline_s + STREAM_GRACE_S

    def ended(self) -> RequestTimeout:
        """Return the error of a timeout."""
        if self.deadline_s is not None and time.monotonic() > self.begun_s + self.deadline_s:
            return RequestTimeout(f"the deadline of {self.deadline_s:g} s passed, and nothing came")
        return RequestTimeout(f"nothing came for {self.timeout_s:g} s")


# --- results ---


def read_answer(kind: type[_Answer], tensors: Tensors) -> _Answer:
    """Convert a response's tensors to a result; raises `ServerError` if they are not those of this protocol."""
    try:
        answer: _Answer = kind.from_tensors(tensors)  # type: ignore[attr-defined]
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, InvalidRequest) as error:
        raise ServerError(
            f"the server's answer is not one of this protocol ({error!r}); is its version of Attune another one?"
        ) from error
    return answer
