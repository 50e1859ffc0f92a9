"""Between the protocol's tensors and tritonclient's messages; shared by both clients.

Whatever a caller hands over that cannot be sent becomes the `AttuneError` that fits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferResult
from tritonclient.utils import InferenceServerException

from attune_client.protocol.bounds import MAX_AUDIO_BYTES
from attune_client.protocol.checks import (
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
    AttuneError,
    AudioTooLong,
    InvalidOption,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
    UnreadableFile,
    from_wire,
)
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.tensors import DType, ModelSpec, Tensors, TensorSpec, bytes_tensor

AudioSource = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""An encoded recording, the path of one, or a file that is open for reading bytes."""

SpecSource = MusicSpec | Mapping[str, Any] | str
"""A musical specification, or a mapping or JSON object with its fields."""

_BY_STATUS: dict[str, type[AttuneError]] = {
    "StatusCode.UNAVAILABLE": ServerUnavailable,
    "StatusCode.DEADLINE_EXCEEDED": RequestTimeout,
    "StatusCode.CANCELLED": RequestCancelled,
}

_Answer = TypeVar("_Answer")


# --- what a caller hands over ---


def check_connection(url: str, timeout_s: float) -> None:
    """Raise `InvalidOption` for an address or a timeout that no connection can use."""
    check_text("url", url)
    check_timeout(timeout_s)


def audio_tensor(audio: AudioSource) -> npt.NDArray[np.object_]:
    """The recording as a BYTES tensor [1].

    Raises `UnreadableFile` when the file cannot be read, `AudioTooLong` when it is larger than any server takes.
    """
    encoded = _read_audio(audio)
    if len(encoded) > MAX_AUDIO_BYTES:
        raise AudioTooLong(f"the recording has more than {MAX_AUDIO_BYTES // 2**20:,} MiB, the largest that is sent")
    return bytes_tensor(encoded)


def _read_audio(audio: Any) -> bytes:
    """All bytes of a recording, or one more than may be sent: a device has no end."""
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
    except (ValueError, TypeError) as error:  # no path may hold NUL or half a character; a closed file cannot be read
        raise UnreadableFile(f"cannot read {printable(str(name))}: {printable(str(error))}") from error
    if not isinstance(encoded, bytes):
        raise InvalidOption(f"audio must be open for reading bytes (mode 'rb'), and gave a {type(encoded).__name__}")
    return encoded


def text_inputs(text: str) -> Tensors:
    """The inputs of `music_prompt` for words; raises `InvalidOption` for words that cannot be searched by."""
    return {"text": bytes_tensor(check_text("text", text))}


def speech_inputs(audio: AudioSource, other_languages: str | None = None) -> Tensors:
    """The inputs of `speech_emotion`; raises as `audio_tensor` does."""
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
) -> Tensors:
    """The inputs of `music_therapy`; raises `InvalidOption` for what is out of range, before a recording is read."""
    given = {"audio": audio, "text": text, "emotion": emotion, "vad": vad, "music_spec": spec}
    check_sources([name for name, value in given.items() if value is not None])
    inputs: Tensors = {}
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


# --- messages ---


def infer_inputs(model: ModelSpec, values: Mapping[str, npt.NDArray[Any]]) -> list[InferInput]:
    """The request's inputs; `InvalidOption` for one that the model does not declare, or of another type or shape."""
    return [_infer_input(model, name, value) for name, value in values.items()]


def _infer_input(model: ModelSpec, name: str, value: npt.NDArray[Any]) -> InferInput:
    spec = next((tensor for tensor in model.inputs if tensor.name == name), None)
    if spec is None:
        known = ", ".join(tensor.name for tensor in model.inputs)
        raise InvalidOption(f"{model.name} has no input {quote(name)}; it has {known}")
    _check_array(model, spec, value)
    tensor = InferInput(name, list(value.shape), spec.dtype.value)
    try:
        tensor.set_data_from_numpy(value)
    except (InferenceServerException, ValueError, TypeError) as error:  # half a character, an object of any kind
        raise InvalidOption(f"{model.name}: input {name} cannot be sent: {printable(str(error))}") from error
    return tensor


def _check_array(model: ModelSpec, spec: TensorSpec, value: Any) -> None:
    dtype = np.dtype(spec.dtype.numpy)
    shape = (*([-1] if model.max_batch_size else []), *spec.shape)
    if not isinstance(value, np.ndarray) or value.dtype != dtype or not _fits(value.shape, shape):
        raise InvalidOption(f"{model.name}: input {spec.name} must be an array {shape} of {dtype}, not {quote(value)}")
    if spec.dtype is DType.BYTES and not all(isinstance(item, bytes | str) for item in value.flat):
        raise InvalidOption(f"{model.name}: input {spec.name} must hold bytes or str")


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, size) for size, want in zip(shape, wanted, strict=True))


def read_outputs(result: InferResult) -> Tensors:
    """Every tensor that a response carries, by name; `ServerError` for one that is not what it says it is."""
    return {output.name: _read_output(result, output.name) for output in result.get_response().outputs}


def _read_output(result: InferResult, name: str) -> npt.NDArray[Any]:
    try:
        values: npt.NDArray[Any] = result.as_numpy(name)
    except ValueError as error:
        raise ServerError(f"the server's answer cannot be read: {name}: {error}") from error
    return values


def read_answer(kind: type[_Answer], tensors: Tensors) -> _Answer:
    """A result made of an answer's tensors; `ServerError` when they are not those of this protocol."""
    try:
        answer: _Answer = kind.from_tensors(tensors)  # type: ignore[attr-defined]
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, InvalidRequest) as error:
        raise ServerError(
            f"the server's answer is not one of this protocol ({error!r}); is its version of Attune another one?"
        ) from error
    return answer


def is_final(result: InferResult) -> bool:
    """Whether this response ends its stream."""
    parameters = result.get_response().parameters
    return "triton_final_response" in parameters and bool(parameters["triton_final_response"].bool_param)


def answered(error: InferenceServerException) -> bool:
    """Whether an error is a stream's last response, and not the end of its connection.

    Such a request is over and must not be cancelled: Triton 2.51 then holds it for ever now and then, and waits for it
    when it stops.
    """
    return error.status() is None


def translate(error: InferenceServerException, url: str) -> AttuneError:
    """The error of our own tree for one of tritonclient's."""
    told = from_wire(error.message())
    if type(told) is not ServerError:  # the server's own words say more than a status
        return told
    kind = _BY_STATUS.get(error.status() or "")
    if kind is ServerUnavailable:
        return ServerUnavailable(f"no server answers at {url}, its gRPC host:port; start one with `attune serve`")
    if kind is not None:
        return kind(error.message())
    return told
