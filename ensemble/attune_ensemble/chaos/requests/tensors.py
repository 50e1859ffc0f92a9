"""Faults of tensors: types, shapes, names, contents that do not fit, and parameters that are closed."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

from attune_client.protocol.models import LEASE
from attune_client.protocol.tensors import DType, ModelSpec, bytes_tensor
from attune_ensemble.chaos.requests.building import (
    CONTENTS,
    Draw,
    Fault,
    Message,
    always,
    as_raw,
    given_inputs,
    raw_contents,
    sound_value,
)

__all__ = ["FAULTS"]


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
    as_raw(message, model)
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
        message.raw_input_contents.append(raw_contents(bytes_tensor("x")))
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
    field = getattr(tensor.contents, CONTENTS[model.input(tensor.name).dtype])
    field.append(field[0])
    return f"{tensor.name} of {len(field)} elements"


def _lying_prefix(draw: Draw, model: ModelSpec, message: Message) -> str:
    """A BYTES tensor whose length prefix is not the length of what follows."""
    as_raw(message, model)
    indices = [place for place, tensor in enumerate(message.inputs) if tensor.datatype == "BYTES"]
    index = draw(st.sampled_from(indices))
    text = message.raw_input_contents[index][4:]
    length = draw(st.sampled_from([0, 1, len(text) - 1, len(text) + 1, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1]))
    message.raw_input_contents[index] = struct.pack("<I", length) + text
    return f"{message.inputs[index].name} of {len(text)} bytes says {length}"


def _mixed(draw: Draw, model: ModelSpec, message: Message) -> str:
    as_raw(message, model)
    _, tensor = _any_input(draw, message)
    spec = model.input(tensor.name)
    getattr(tensor.contents, CONTENTS[spec.dtype]).extend(sound_value(spec).ravel().tolist())
    return f"{tensor.name} has both"


def _wrong_raw_count(draw: Draw, model: ModelSpec, message: Message) -> str:
    as_raw(message, model)
    if len(message.raw_input_contents) > 1 and draw(st.booleans()):
        del message.raw_input_contents[-1]
    else:
        message.raw_input_contents.extend([b""] * draw(st.sampled_from([1, 2, 1_000])))
    return f"{len(message.raw_input_contents)} for {len(message.inputs)} inputs"


def _wrong_field(draw: Draw, model: ModelSpec, message: Message) -> str:
    """Typed contents in the field of another type."""
    del message.raw_input_contents[:]
    _, tensor = _any_input(draw, message)
    right = CONTENTS[model.input(tensor.name).dtype]
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


def _needs_inputs(model: ModelSpec) -> bool:
    return any(not tensor.optional for tensor in model.inputs)


def _has_text(model: ModelSpec) -> bool:
    return any(tensor.dtype is DType.BYTES for tensor in given_inputs(model))


FAULTS: dict[str, Fault] = {
    "type": (always, _wrong_type),
    "shape": (always, _wrong_shape),
    "wrapping shape": (always, _wrapping),
    "missing input": (_needs_inputs, _missing),
    "extra input": (always, _extra),
    "the same input twice": (always, _twice),
    "length": (always, _wrong_length),
    "length prefix": (_has_text, _lying_prefix),
    "raw and typed contents": (always, _mixed),
    "raw contents": (always, _wrong_raw_count),
    "contents of another type": (always, _wrong_field),
    "shared memory": (always, _shared_memory),
    "parameter of a tensor": (always, _tensor_parameter),
}
