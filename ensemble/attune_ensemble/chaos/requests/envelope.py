"""Faults of the message around the tensors: parameters, outputs, names, rows, and bytes that are no message."""

from __future__ import annotations

from hypothesis import strategies as st

from attune_client.protocol.tensors import ModelSpec
from attune_ensemble.chaos.requests.building import Draw, Fault, Message, always, as_raw

__all__ = ["FAULTS"]


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
    as_raw(message, model)
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
    whole: bytes = message.SerializeToString(deterministic=True)
    junk = st.sampled_from([b"\xff" * 100, b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\x0a\xff\xff\xff\xff\x0f", b"{}"])
    cut = st.integers(1, len(whole) - 1).map(lambda end: b"\x82" + whole[:end] + b"\xff\xff")
    made: bytes = draw(st.binary(min_size=1, max_size=300) | junk | cut)
    return made if made[:1] > b"\x7f" else b"\xff" + made


def _batches(model: ModelSpec) -> bool:
    return model.max_batch_size > 0


FAULTS: dict[str, Fault] = {
    "parameter of the request": (always, _request_parameter),
    "too many parameters": (always, _too_many_parameters),
    "output": (always, _unknown_output),
    "classification": (always, _classification),
    "model": (always, _unknown_model),
    "version": (always, _unknown_version),
    "id": (always, _long_id),
    "batch": (_batches, _batch),
    "nothing": (always, _nothing),
    "garbage": (always, _garbage),
}
