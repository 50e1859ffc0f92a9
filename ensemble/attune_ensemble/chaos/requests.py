"""Requests as nobody should send them, built from the protocol's declarations: the same requests for the same seed.

    for request in bad_requests(count=10_000, seed=1):
        send(request.message)  # a serialised ModelInferRequest, or bytes that are none

Each is a whole request to one of the models with one thing wrong. What is wrong with its form (tensors, contents,
parameters, names) no model may see; with its values (options at and past their bounds, text, JSON) the model itself
answers: with an error that says what would be right, or, at a bound, with what was asked for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from attune_client.protocol import bounds
from attune_client.protocol.models import (
    AROUSAL_DOMINANCE_MODEL,
    ATTENTION_MASK,
    AUDIO_STATE,
    EMOTION_ENCODER,
    LEASE,
    MODELS,
    NUM_SAMPLES,
    SPEECH_INPUTS,
    TEXT_STATE,
    VALENCE_MODEL,
)
from attune_client.protocol.tensors import DType, ModelSpec, TensorSpec, bytes_tensor

__all__ = ["ASKED", "BadRequest", "bad_requests", "drawn", "request_with", "requests_of", "whole_request"]

Message = Any  # a ModelInferRequest of protobuf, whose classes are made at run time
Draw = Callable[[st.SearchStrategy[Any]], Any]

_BATCH = 5_000
_SAMPLES = 4_000
_SPEC = {"tempo_bpm": 72, "mode": "dorian", "tonic": "D", "instruments": ["piano"], "dynamics": "mp"}


_WIDTH = 256


def _as_shipped(model: ModelSpec) -> ModelSpec:
    """The model with the inputs that it has where the shipped regressors are served: of theirs the export decides."""
    if model == EMOTION_ENCODER:
        return replace(model, inputs=SPEECH_INPUTS)
    if model not in (VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL):
        return model
    states = (replace(state, shape=(-1, _WIDTH), optional=False) for state in (AUDIO_STATE, TEXT_STATE))
    return replace(model, inputs=(*states, NUM_SAMPLES, ATTENTION_MASK))


ASKED = {name: _as_shipped(model) for name, model in MODELS.items()}
"""The models to which requests are made, by name."""


@dataclass(frozen=True, slots=True)
class BadRequest:
    """One request: what is wrong with it, in words; whether that is its form; the model; and what is sent."""

    fault: str
    of_form: bool
    model: str
    message: bytes

    @property
    def streams(self) -> bool:
        """Whether its model answers with a stream."""
        return self.model in MODELS and MODELS[self.model].decoupled


def bad_requests(count: int, seed: int) -> Iterator[BadRequest]:
    """Make so many requests, no two of them the same, some thousands at a time."""
    seen: set[bytes] = set()
    for batch in itertools.count():
        # Some come twice. Large batches have the fewest of those, since each begins with the simplest.
        for request in drawn(requests_of(), min(_BATCH, count + count // 2), seed * 1_000 + batch):
            digest = hashlib.blake2b(request.message, digest_size=16).digest()
            if len(seen) < count and digest not in seen:
                seen.add(digest)
                yield request
        if len(seen) == count:
            return


def drawn(strategy: st.SearchStrategy[Any], count: int, number: int) -> list[Any]:
    """So many examples of a strategy, the same for the same number."""
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def take(example: Any) -> None:
        found.append(example)

    take()
    return found


@st.composite
def requests_of(draw: Draw, models: tuple[ModelSpec, ...] = tuple(ASKED.values())) -> BadRequest:
    """A request to one of the models with one fault."""
    model = draw(st.sampled_from(models))
    of_form = draw(st.booleans())
    message = whole_request(model, raw=draw(st.booleans()))
    kinds = _FORM if of_form else _VALUES
    name = draw(st.sampled_from([name for name, (fits, _) in kinds.items() if fits(model)]))
    told = kinds[name][1](draw, model, message)
    if isinstance(told, bytes):
        return BadRequest(name, of_form, model.name, told)
    return BadRequest(f"{name}: {told}", of_form, model.name, message.SerializeToString())


# --- a request with which nothing is wrong ---


def whole_request(model: ModelSpec, *, raw: bool = True) -> Message:
    """A request that the model answers, with the inputs that it needs and one of those that it may be given."""
    return request_with(model, {tensor.name: _sound_value(tensor) for tensor in _given(model)}, raw=raw)


def request_with(model: ModelSpec, values: Mapping[str, npt.NDArray[Any]], *, raw: bool = True) -> Message:
    """A request with these inputs, each without the batch."""
    message = service_pb2.ModelInferRequest(model_name=model.name)
    for name, value in values.items():
        _add(message, model, model.input(name), value, raw=raw)
    return message


_ENOUGH = {"music_prompt": ("text",), "music_therapy": ("text", "duration_s")}


def _given(model: ModelSpec) -> list[TensorSpec]:
    return [tensor for tensor in model.inputs if not tensor.optional or tensor.name in _ENOUGH.get(model.name, ())]


def _sound_value(tensor: TensorSpec) -> npt.NDArray[Any]:
    """Values with which a model can work."""
    shape = tuple(16 if size == -1 else size for size in tensor.shape)
    match tensor.name:
        case "waveform":
            return (0.1 * np.sin(np.arange(_SAMPLES) / 7)).astype(np.float32)
        case "num_samples":
            return np.array([_SAMPLES], np.int64)
        case "audio":
            return bytes_tensor(b"RIFF no recording")
        case "music_spec":
            return bytes_tensor(json.dumps(_SPEC))
        case "emotion":
            return bytes_tensor("calm")
        case "other_languages":
            return bytes_tensor("voice")
        case _ if tensor.dtype is DType.BYTES:
            return bytes_tensor("rain on the window")
        case _:
            return np.full(shape, 1, tensor.dtype.numpy)


def _add(message: Message, model: ModelSpec, tensor: TensorSpec, value: npt.NDArray[Any], *, raw: bool) -> None:
    """Add an input as raw or as typed contents; a value of one request becomes a batch of one row."""
    rows = [1] if model.max_batch_size else []
    added = message.inputs.add(name=tensor.name, datatype=tensor.dtype.value, shape=[*rows, *value.shape])
    if raw:
        message.raw_input_contents.append(_raw(value))
    else:
        getattr(added.contents, _CONTENTS[tensor.dtype]).extend(value.ravel().tolist())


_CONTENTS = {
    DType.FP32: "fp32_contents",
    DType.INT32: "int_contents",
    DType.INT64: "int64_contents",
    DType.BYTES: "bytes_contents",
}


def _raw(value: npt.NDArray[Any]) -> bytes:
    if value.dtype != np.object_:
        return value.tobytes()
    serialised: npt.NDArray[np.object_] = serialize_byte_tensor(value)
    return bytes(serialised.item())


# --- what can be wrong with the form ---


def _any_input(draw: Draw, message: Message) -> tuple[int, Any]:
    index = draw(st.integers(0, len(message.inputs) - 1))
    return index, message.inputs[index]


def _wrong_type(draw: Draw, model: ModelSpec, message: Message) -> str:
    _, tensor = _any_input(draw, message)
    names = ("BOOL", "UINT8", "INT8", "INT32", "INT64", "UINT64", "FP16", "BF16", "FP32", "FP64", "BYTES", "STRING")
    odd = ("", "fp32", "FP33", "TYPE_FP32", "float", "\0", "A" * 5_000, "../../etc/passwd")
    tensor.datatype = draw(st.sampled_from([name for name in (*names, *odd) if name != tensor.datatype]))
    return f"{tensor.name} is {tensor.datatype[:20]!r}"


_SIZES = (0, 1, 2, 3, 15, 17, 65, 2**16, 2**31 - 1, 2**31, 2**32, 2**61, 2**62, 2**62 + 16_000, 2**63 - 1, -1, -(2**63))


def _wrong_shape(draw: Draw, model: ModelSpec, message: Message) -> str:
    """Another shape than the contents have: sizes whose product wraps, none, negative ones, too few and too many."""
    _, tensor = _any_input(draw, message)
    before = list(tensor.shape)
    shape = draw(st.lists(st.sampled_from(_SIZES), max_size=8) | _one_size_changed(before))
    if shape == before:
        shape = [*before, 1]
    tensor.shape[:] = shape
    return f"{tensor.name} of shape {shape}"


def _one_size_changed(before: list[int]) -> st.SearchStrategy[list[int]]:
    def changed(place: int, size: int) -> list[int]:
        return [*before[:place], size, *before[place + 1 :]]

    return st.builds(changed, st.integers(0, len(before) - 1), st.sampled_from(_SIZES))


def _wrapping(draw: Draw, model: ModelSpec, message: Message) -> str:
    """A shape whose product wraps in 64 bits to the number of bytes that are there, or to none."""
    _as_raw(message, model)
    index, tensor = _any_input(draw, message)
    length, size = draw(
        st.sampled_from([(0, 2**62), (64_000, 2**62 + 16_000), (0, 2**61), (64_000, 2**61 + 8_000), (0, 2**63 - 1)])
    )
    message.raw_input_contents[index] = bytes(length)
    tensor.shape[:] = draw(st.sampled_from([[1, size], [size], [4, 2**60], [2**32, 2**32], [1, size, 4]]))
    return f"{tensor.name} of shape {list(tensor.shape)} with {length} bytes"


def _missing(draw: Draw, model: ModelSpec, message: Message) -> str:
    needed = [index for index, each in enumerate(message.inputs) if not model.input(each.name).optional]
    index = draw(st.sampled_from(needed))
    name = message.inputs[index].name
    del message.inputs[index]
    if message.raw_input_contents:
        del message.raw_input_contents[index]
    return name


def _extra(draw: Draw, model: ModelSpec, message: Message) -> str:
    names = ("volume", "", "Audio", LEASE.name, "a" * 10_000, "text\0", "../config.pbtxt", "text ", "‮text", "'; --")
    known = {tensor.name for tensor in model.inputs} - {LEASE.name}
    name = draw(st.sampled_from([name for name in names if name not in known]) | st.text(min_size=1, max_size=20))
    if name in known:
        name += "?"
    message.inputs.add(name=name, datatype="BYTES", shape=[1])
    if message.raw_input_contents:
        message.raw_input_contents.append(_raw(bytes_tensor("x")))
    else:
        message.inputs[-1].contents.bytes_contents.append(b"x")
    return repr(name[:20])


def _twice(draw: Draw, model: ModelSpec, message: Message) -> str:
    index, tensor = _any_input(draw, message)
    message.inputs.add().CopyFrom(tensor)
    if message.raw_input_contents:
        message.raw_input_contents.append(message.raw_input_contents[index])
    return str(tensor.name)


def _wrong_length(draw: Draw, model: ModelSpec, message: Message) -> str:
    """More or fewer bytes, or elements, than the shape says."""
    index, tensor = _any_input(draw, message)
    if message.raw_input_contents:
        before = message.raw_input_contents[index]
        cut = draw(st.integers(0, len(before) - 1))
        message.raw_input_contents[index] = draw(st.sampled_from([before[:cut], before + b"\0", before * 3, b""]))
        return f"{tensor.name} of {len(message.raw_input_contents[index])} bytes"
    field = getattr(tensor.contents, _CONTENTS[model.input(tensor.name).dtype])
    field.append(field[0])
    return f"{tensor.name} of {len(field)} elements"


def _lying_prefix(draw: Draw, model: ModelSpec, message: Message) -> str:
    """A BYTES tensor whose length prefix is not the length of what follows."""
    _as_raw(message, model)
    indices = [place for place, tensor in enumerate(message.inputs) if tensor.datatype == "BYTES"]
    index = draw(st.sampled_from(indices))
    text = message.raw_input_contents[index][4:]
    length = draw(st.sampled_from([0, 1, len(text) - 1, len(text) + 1, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1]))
    message.raw_input_contents[index] = struct.pack("<I", length) + text
    return f"{message.inputs[index].name} of {len(text)} bytes says {length}"


def _as_raw(message: Message, model: ModelSpec) -> None:
    if not message.raw_input_contents:
        for tensor in message.inputs:
            message.raw_input_contents.append(_raw(_sound_value(model.input(tensor.name))))
            tensor.ClearField("contents")


def _mixed(draw: Draw, model: ModelSpec, message: Message) -> str:
    _as_raw(message, model)
    _, tensor = _any_input(draw, message)
    spec = model.input(tensor.name)
    getattr(tensor.contents, _CONTENTS[spec.dtype]).extend(_sound_value(spec).ravel().tolist())
    return f"{tensor.name} has both"


def _wrong_raw_count(draw: Draw, model: ModelSpec, message: Message) -> str:
    _as_raw(message, model)
    if len(message.raw_input_contents) > 1 and draw(st.booleans()):
        del message.raw_input_contents[-1]
    else:
        message.raw_input_contents.extend([b""] * draw(st.sampled_from([1, 2, 1_000])))
    return f"{len(message.raw_input_contents)} for {len(message.inputs)} inputs"


def _wrong_field(draw: Draw, model: ModelSpec, message: Message) -> str:
    """Typed contents in the field of another type."""
    del message.raw_input_contents[:]
    _, tensor = _any_input(draw, message)
    right = _CONTENTS[model.input(tensor.name).dtype]
    others = ("bool_contents", "int_contents", "int64_contents", "uint64_contents", "fp32_contents", "fp64_contents")
    wrong = draw(st.sampled_from([name for name in others if name != right]))
    for other in message.inputs:
        other.ClearField("contents")
    getattr(tensor.contents, wrong).extend([1] * 16)
    return f"{tensor.name} in {wrong}"


def _shared_memory(draw: Draw, model: ModelSpec, message: Message) -> str:
    output = draw(st.booleans())
    tensor = message.outputs.add(name=model.outputs[0].name) if output else _any_input(draw, message)[1]
    tensor.parameters["shared_memory_region"].string_param = draw(st.sampled_from(["region", "", "/etc/passwd"]))
    tensor.parameters["shared_memory_byte_size"].int64_param = draw(st.sampled_from([0, 64, 2**40, -1]))
    if draw(st.booleans()):
        tensor.parameters["shared_memory_offset"].int64_param = draw(st.sampled_from([0, 2**62, -1]))
    return f"{'output' if output else 'input'} {tensor.name}"


def _tensor_parameter(draw: Draw, model: ModelSpec, message: Message) -> str:
    _, tensor = _any_input(draw, message)
    name = draw(st.sampled_from(["binary_data_size", "classification", "x", ""]))
    tensor.parameters[name].int64_param = draw(st.sampled_from([0, 1, -1, 2**62]))
    return f"{name!r} of {tensor.name}"


def _request_parameter(draw: Draw, model: ModelSpec, message: Message) -> str:
    """Parameters that Triton acts upon, in the wrong field, and those of the server itself."""
    name = draw(
        st.sampled_from(["timeout", "priority", "triton_enable_empty_final_response", "sequence_id", "sequence_start"])
        | st.sampled_from(["binary_data_output", "shared_memory_region", "xla", "headers", "triton_"])
    )
    message.parameters[name].string_param = draw(st.sampled_from(["1", "", "true", "x" * 1_000]))
    return repr(name)


def _too_many_parameters(draw: Draw, model: ModelSpec, message: Message) -> str:
    count = draw(st.sampled_from([17, 1_000]))
    for number in range(count):
        message.parameters[f"p{number}"].int64_param = number
    return str(count)


def _unknown_output(draw: Draw, model: ModelSpec, message: Message) -> str:
    if draw(st.booleans()):
        message.outputs.add(name=model.outputs[0].name)
        message.outputs.add(name=model.outputs[0].name)
        return f"{model.outputs[0].name} twice"
    name = draw(st.sampled_from(["nothing", "", "x" * 10_000, "../1"]))
    message.outputs.add(name=name)
    return repr(name[:20])


def _classification(draw: Draw, model: ModelSpec, message: Message) -> str:
    output = message.outputs.add(name=model.outputs[0].name)
    value = draw(st.sampled_from([-1, -(2**63), 2**63 - 1, 2**31]))
    output.parameters["classification"].int64_param = value
    return f"{value} classes of {output.name}"


def _unknown_model(draw: Draw, model: ModelSpec, message: Message) -> str:
    names = (
        "",
        "music",
        "speech-emotion",
        "../speech_emotion",
        "speech_emotion\0",
        "m" * 100_000,
        "‮",
        "SPEECH_EMOTION",
    )
    message.model_name = draw(st.sampled_from(names))
    return repr(message.model_name[:20])


def _unknown_version(draw: Draw, model: ModelSpec, message: Message) -> str:
    message.model_version = draw(st.sampled_from(["0", "2", "-1", "1.0", "latest", "9" * 1_000, "1 ", "\0"]))
    return repr(message.model_version[:20])


def _long_id(draw: Draw, model: ModelSpec, message: Message) -> str:
    message.id = "i" * draw(st.sampled_from([257, 65_536]))
    return f"{len(message.id)} characters"


def _batch(draw: Draw, model: ModelSpec, message: Message) -> str:
    """Other numbers of rows in each input, or more rows than a batch holds; the contents fit."""
    _as_raw(message, model)
    uneven = len(message.inputs) > 1 and draw(st.booleans())
    rows = draw(
        st.integers(2, model.max_batch_size)
        if uneven
        else st.integers(1, 3).map(lambda more: model.max_batch_size + more)
    )
    count = draw(st.integers(1, len(message.inputs) - 1)) if uneven else len(message.inputs)
    for index, tensor in enumerate(message.inputs[:count]):
        tensor.shape[0] = rows
        message.raw_input_contents[index] = message.raw_input_contents[index] * rows
    return f"{rows} rows in {count} inputs"


def _nothing(draw: Draw, model: ModelSpec, message: Message) -> bytes:
    return b""


def _garbage(draw: Draw, model: ModelSpec, message: Message) -> bytes:
    """Bytes that are no message, or a part of one."""
    whole: bytes = message.SerializeToString()
    junk = st.sampled_from([b"\xff" * 100, b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\x0a\xff\xff\xff\xff\x0f", b"{}"])
    cut = st.integers(1, len(whole) - 1).map(lambda end: b"\x82" + whole[:end] + b"\xff\xff")
    made: bytes = draw(st.binary(min_size=1, max_size=300) | junk | cut)
    return made if made[:1] > b"\x7f" else b"\xff" + made


def _always(model: ModelSpec) -> bool:
    return True


def _needs_inputs(model: ModelSpec) -> bool:
    return any(not tensor.optional for tensor in model.inputs)


def _has_text(model: ModelSpec) -> bool:
    return any(tensor.dtype is DType.BYTES for tensor in _given(model))


def _batches(model: ModelSpec) -> bool:
    return model.max_batch_size > 0


Fault = tuple[Callable[[ModelSpec], bool], Callable[[Draw, ModelSpec, Message], str | bytes]]
"""For which models there is such a fault, and what puts it into a request (or makes the bytes) and tells it."""

_FORM: dict[str, Fault] = {
    "type": (_always, _wrong_type),
    "shape": (_always, _wrong_shape),
    "wrapping shape": (_always, _wrapping),
    "missing input": (_needs_inputs, _missing),
    "extra input": (_always, _extra),
    "the same input twice": (_always, _twice),
    "length": (_always, _wrong_length),
    "length prefix": (_has_text, _lying_prefix),
    "raw and typed contents": (_always, _mixed),
    "raw contents": (_always, _wrong_raw_count),
    "contents of another type": (_always, _wrong_field),
    "shared memory": (_always, _shared_memory),
    "parameter of a tensor": (_always, _tensor_parameter),
    "parameter of the request": (_always, _request_parameter),
    "too many parameters": (_always, _too_many_parameters),
    "output": (_always, _unknown_output),
    "classification": (_always, _classification),
    "model": (_always, _unknown_model),
    "version": (_always, _unknown_version),
    "id": (_always, _long_id),
    "batch": (_batches, _batch),
    "nothing": (_always, _nothing),
    "garbage": (_always, _garbage),
}


# --- what can be wrong with the values ---

_HUGE = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-45, 1e38, 3.4e38)


def _edges(*numbers: float) -> tuple[float, ...]:
    """Each number, and what lies just beside it as a 32-bit float."""
    near = [float(np.nextafter(np.float32(number), np.float32(to))) for number in numbers for to in (-np.inf, np.inf)]
    return (*numbers, *near, *_HUGE)


_NUMBERS: dict[str, tuple[float, ...]] = {
    "duration_s": _edges(bounds.MIN_MUSIC_S, bounds.MAX_MUSIC_S),
    "deadline_s": _edges(bounds.MAX_DEADLINE_S),
    "temperature": _edges(bounds.MAX_TEMPERATURE),
    "top_p": _edges(1.0),
    "guidance": _edges(bounds.MIN_GUIDANCE, bounds.MAX_GUIDANCE),
    "vad": _edges(*bounds.VAD_LIMITS),
    "valence": _edges(*bounds.VAD_LIMITS),
    "arousal_dominance": _edges(*bounds.VAD_LIMITS),
    "waveform": _HUGE,
    "seed": (0, -1, bounds.MAX_SEED, -(2**63)),
    "top_k": (0, 1, -1, 2**31 - 1, -(2**31)),
    "gentle": (0, 1, -1, 2**31 - 1),
    "check_only": (1, -1, 2**31 - 1),
    "num_samples": (0, 1, -1, _SAMPLES + 1, 2**31, 2**62, 2**63 - 1, -(2**63)),
    "input_ids": (-1, 30_521, 30_522, 2**31, 2**62, -(2**63)),
    "sentence_ids": (-1, 30_521, 30_522, 2**31, 2**62, -(2**63)),
    "attention_mask": (0, -1, 2, 2**62),
    "sentence_mask": (0, -1, 2, 2**62),
}
"""By input: values at and past the bounds."""


_OF_TYPE: dict[DType, st.SearchStrategy[float]] = {
    DType.FP32: st.floats(width=32),
    DType.INT32: st.integers(-(2**31), 2**31 - 1),
    DType.INT64: st.integers(-(2**63), 2**63 - 1),
}


def _odd_number(draw: Draw, model: ModelSpec, message: Message) -> str:
    """One of the numbers at or past a bound; of a tensor of several, all of them or the first."""
    spec = draw(st.sampled_from([tensor for tensor in model.inputs if tensor.name in _NUMBERS]))
    number = draw(st.sampled_from(_NUMBERS[spec.name]) | _OF_TYPE[spec.dtype])
    value = _sound_value(spec)
    if draw(st.booleans()):
        value[...] = number
    else:
        value.flat[0] = number
    _set(message, model, spec, value)
    return f"{spec.name} of {number}"


def _set(message: Message, model: ModelSpec, spec: TensorSpec, value: npt.NDArray[Any]) -> None:
    """Put a value in the place of the input's own, or beside the others."""
    raw = bool(message.raw_input_contents)
    for index, tensor in enumerate(message.inputs):
        if tensor.name == spec.name:
            del message.inputs[index]
            if raw:
                del message.raw_input_contents[index]
            break
    _add(message, model, spec, value, raw=raw)


_LONG = "rain and again rain "
_WORDS = st.sampled_from(
    [
        *("", " ", "\0", "\n\n\n", "x", "‮⁦", "é" * 2_001, "🥲" * 2_001, "a" * 2_000, "a" * 2_001),
        *("\x1b[31mred", "{{7*7}}", "%s%n", "../../etc/passwd", "<script>", "'; DROP TABLE emotions; --"),
        *("NaN", "None", "hangry", "CALM", " calm ", "calm,hopeful", "K" * 60 + "́" * 1_000),
    ]
)
_NO_WORDS = st.sampled_from([b"\xff\xfe", b"\xed\xa0\x80", b"caf\xe9", b"\x80" * 100, b"a\xc0\x80"])


def _long_text(draw: Draw) -> str:
    return _LONG * draw(st.sampled_from([101, 1_000, 10_000]))


def _odd_text(draw: Draw, model: ModelSpec, message: Message) -> str:
    """Text of no words, too many, in no encoding, or of another meaning."""
    named = ("text", "emotion", "engine", "prompt", "transcript", "other_languages", "audio")
    spec = draw(st.sampled_from([tensor for tensor in model.inputs if tensor.name in named]))
    kind = draw(st.integers(0, 9))
    text = _long_text(draw) if kind == 0 else draw(_NO_WORDS if kind < 3 else _WORDS | st.text(max_size=30))
    encoded = text.encode() if isinstance(text, str) else text
    _set(message, model, spec, bytes_tensor(encoded[: spec.max_bytes]))  # longer ones no model may see
    return f"{spec.name} of {text[:20]!r}, {len(text)} long"


def _odd_json(draw: Draw, model: ModelSpec, message: Message) -> str:
    spec = model.input("music_spec")
    text = draw(_json_text())
    _set(message, model, spec, bytes_tensor(text))
    return f"music_spec of {text[:40]!r}, {len(text)} long"


_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def _json_text(draw: Draw) -> str | bytes:
    """JSON of any shape: not an object, with fields of other types, nested, huge, doubled, or not JSON at all."""
    kind = draw(st.sampled_from(["any", "one field", "fixed", "fixed", "deep"]))
    if kind == "any":
        return json.dumps(draw(_ANY_JSON))
    if kind == "one field":
        return json.dumps(_SPEC | {draw(st.sampled_from(list(_SPEC))): draw(_ANY_JSON)})
    if kind == "deep":
        bracket = draw(st.sampled_from(["[", '{"a":', '{"tempo_bpm":', '[{"mode":']))
        return bracket * draw(st.sampled_from([1, 500, 5_000, 50_000]))
    whole = json.dumps(_SPEC)
    made: str | bytes = draw(
        st.sampled_from(
            [
                *(
                    "",
                    "null",
                    "{",
                    "}",
                    "[]",
                    "NaN",
                    "{}",
                    '"' * 99,
                    whole[:-1],
                    whole * 2,
                    whole + "\0",
                    "\ufeff" + whole,
                ),
                *(whole.replace("72", number) for number in ("NaN", "-Infinity", "1e999", "9" * 5_000, "-0", "0x48")),
                *(whole.replace("72", number) for number in ("40", "39.999", "180", "180.001", '"72"', "true", "[72]")),
                whole.replace('"mode"', '"tempo_bpm": 60, "tempo_bpm": 6000, "mode"'),
                whole.replace('["piano"]', json.dumps(["piano"] * 10_000)),
                whole.replace('["piano"]', "[]"),
                whole.replace('"piano"', "[[[[]]]]"),
                whole.replace("piano", "\\ud800"),
                whole.replace("dorian", "d" * 2**17),
                whole.encode("utf-16"),
                whole.replace("piano", "pian\xf6").encode("latin-1"),
            ]
        )
    )
    return made


def _odd_sources(draw: Draw, model: ModelSpec, message: Message) -> str:
    """Inputs that do not belong together, or none of those that say what is wanted."""
    sources = [tensor for tensor in model.inputs if tensor.name in ("text", "emotion", "music_spec", "audio")]
    chosen = draw(st.lists(st.sampled_from(sources), unique_by=lambda tensor: tensor.name))
    del message.inputs[:], message.raw_input_contents[:]
    raw = draw(st.booleans())
    for spec in chosen:
        _add(message, model, spec, _sound_value(spec), raw=raw)
    return " and ".join(spec.name for spec in chosen) or "none"


def _has(*names: str) -> Callable[[ModelSpec], bool]:
    return lambda model: any(tensor.name in names for tensor in model.inputs)


_VALUES: dict[str, Fault] = {
    "number": (_has(*_NUMBERS), _odd_number),
    "text": (_has("text", "emotion", "prompt", "transcript", "audio"), _odd_text),
    "JSON": (_has("music_spec"), _odd_json),
    "sources": (lambda model: model.name in _ENOUGH, _odd_sources),
}
