"""Whether a request may be handed to the server: all of its tensors as its model declares them, and nothing else.

Triton 2.51 multiplies the sizes of a shape in 64 bits, so that a shape such as [1, 2^62] passes for one without any
element and ends the model that is to read it. Here sizes are Python's integers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from attune_client.protocol.checks import check_deadline, quote
from attune_client.protocol.errors import InvalidRequest
from attune_client.protocol.models import DEADLINE
from attune_ensemble.serving.guard.requests import MAX_FIELDS, Request
from attune_ensemble.serving.guard.signatures import Input, Signature

__all__ = ["MAX_ID", "check_request", "deadline_of", "inputs_of"]

_BYTES = "BYTES"
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_SIZES = {
    "BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FP16": 2, "BF16": 2, "INT32": 4, "UINT32": 4,
    "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8,
}  # fmt: skip
_MAX_STRINGS = MAX_FIELDS
"""Most elements of a BYTES tensor: each is looked at."""

_MAX_PARAMETERS = 16
MAX_ID = 256
"""Longest id of a request, in characters."""

_CLASSIFICATION = "classification"
_FINAL_RESPONSE = "triton_enable_empty_final_response"
_PARAMETERS = {"timeout": "int64_param", "priority": "uint64_param", _FINAL_RESPONSE: "bool_param"}
"""Parameters that a request may have, with the field in which each has to be."""


def check_request(request: Request, model: Signature) -> None:
    """Raise `InvalidRequest` unless the model can be given this request: says what is wrong and what would be right."""
    head = request.head
    if len(head.id) > MAX_ID:
        raise InvalidRequest(f"the request's id has {len(head.id)} characters: at most {MAX_ID} are taken")
    _check_parameters(head.parameters)
    _check_names("input", [tensor.name for tensor in head.inputs], model.inputs, model.name)
    _check_names("output", [tensor.name for tensor in head.outputs], model.outputs, model.name)
    for output in head.outputs:
        _check_output(output)
    _check_nothing_is_missing(head.inputs, model)
    _check_contents_are_of_one_kind(request)
    batches = {_batch_size(request, index, model) for index in range(len(head.inputs))}
    if model.max_batch and len(batches) > 1:
        raise InvalidRequest(f"the inputs of {model.name} have different batch sizes: {sorted(batches)}")


def inputs_of(request: Request) -> frozenset[str]:
    """Names of a request's inputs."""
    return frozenset(tensor.name for tensor in request.head.inputs)


def deadline_of(request: Request) -> float | None:
    """The time that a request that was checked gives itself, in seconds; None where it says nothing.

    `InvalidOption` for one that no request may have.
    """
    deadline_s = _number(request, DEADLINE.name)
    return None if deadline_s is None else check_deadline(deadline_s)


def _number(request: Request, name: str) -> float | None:
    """The first element of an input of floats; None where the request does not have it."""
    for index, tensor in enumerate(request.head.inputs):
        if tensor.name == name:
            if request.raw:
                return float(struct.unpack_from("<f", request.raw[index])[0])
            return float(tensor.contents.fp32_contents[0])
    return None


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    if len(parameters) > _MAX_PARAMETERS:
        raise InvalidRequest(f"the request has {len(parameters)} parameters: at most {_MAX_PARAMETERS} are taken")
    for name, value in parameters.items():
        if (kind := _PARAMETERS.get(name)) is None:
            raise InvalidRequest(f"the parameter {quote(name)} is not taken here, only {', '.join(_PARAMETERS)}")
        if value.WhichOneof("parameter_choice") != kind:
            raise InvalidRequest(f"the parameter {name} has to be given as {kind}")


def _check_names(kind: str, names: Collection[str], known: Collection[str], model: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name not in known:
            raise InvalidRequest(f"{model} has no {kind} {quote(name)}; it has {', '.join(sorted(known))}")
        if name in seen:
            raise InvalidRequest(f"{model} was given its {kind} {name} twice")
        seen.add(name)


def _check_output(output: Any) -> None:
    for name, value in output.parameters.items():
        if name != _CLASSIFICATION or value.WhichOneof("parameter_choice") != "int64_param":
            raise InvalidRequest(f"the parameter {quote(name)} of the output {output.name} is not taken here")
        if not 0 <= value.int64_param <= _MAX_STRINGS:
            raise InvalidRequest(f"{_CLASSIFICATION} must lie between 0 and {_MAX_STRINGS}")


def _check_nothing_is_missing(inputs: Iterable[Any], model: Signature) -> None:
    given = {tensor.name for tensor in inputs}
    missing = [name for name, each in model.inputs.items() if not each.optional and name not in given]
    if missing:
        raise InvalidRequest(f"{model.name} needs {', '.join(missing)}, which the request does not have")


def _check_contents_are_of_one_kind(request: Request) -> None:
    inputs, raw = request.head.inputs, len(request.raw)
    if not raw:
        return
    if raw != len(inputs):
        raise InvalidRequest(f"the request has {len(inputs)} inputs and raw contents for {raw}")
    if any(tensor.HasField("contents") for tensor in inputs):
        raise InvalidRequest("the request has raw contents and typed ones: one kind of them has to be chosen for all")


def _batch_size(request: Request, index: int, model: Signature) -> int:
    """The batch size of an input, which is as declared: else `InvalidRequest`."""
    tensor, declared = request.head.inputs[index], model.inputs[request.head.inputs[index].name]
    if tensor.parameters:
        name = next(iter(tensor.parameters))
        raise InvalidRequest(f"the parameter {quote(name)} of the input {tensor.name} is not taken here")
    if tensor.datatype != declared.datatype:
        raise InvalidRequest(f"{tensor.name} has to be {declared.datatype}, not {quote(tensor.datatype)}")
    shape = tuple(tensor.shape)
    _check_shape(tensor.name, shape, declared, model)
    count = math.prod(shape)
    if declared.datatype == _BYTES and count > _MAX_STRINGS:
        raise InvalidRequest(f"{tensor.name} of shape {_shape_text(shape)} has more than {_MAX_STRINGS} elements")
    if request.raw:
        _check_raw(tensor.name, shape, count, request.raw[index], declared)
    else:
        _check_typed(tensor, shape, count, declared)
    return shape[0] if model.max_batch else 1


def _check_shape(name: str, shape: tuple[int, ...], declared: Input, model: Signature) -> None:
    dims = (-1, *declared.dims) if model.max_batch else declared.dims
    fits = len(shape) == len(dims) and all(
        size > 0 and wanted in (-1, size) for size, wanted in zip(shape, dims, strict=True)
    )
    if not fits:
        wanted = _shape_text(tuple("any" if size == -1 else size for size in dims))
        raise InvalidRequest(f"{name} has to be of shape {wanted}, not {_shape_text(shape)}")
    if model.max_batch and shape[0] > model.max_batch:
        raise InvalidRequest(f"{model.name} takes at most {model.max_batch} rows at a time; {name} has {shape[0]}")
    _check_size(name, shape, declared, has_rows=bool(model.max_batch))


def _check_size(name: str, shape: tuple[int, ...], declared: Input, *, has_rows: bool) -> None:
    rows, sizes = (shape[:1], shape[1:]) if has_rows else ((), shape)
    most = declared.max_dims or sizes
    if any(size > limit for size, limit in zip(sizes, most, strict=True)):
        raise InvalidRequest(f"{name} may be at most of shape {_shape_text((*rows, *most))}, not {_shape_text(shape)}")


def _shape_text(shape: tuple[int | str, ...]) -> str:
    shown = ", ".join(map(str, shape[:8]))
    return f"[{shown}{', …' if len(shape) > 8 else ''}]"


def _check_raw(name: str, shape: tuple[int, ...], count: int, raw: memoryview, declared: Input) -> None:
    if declared.datatype == _BYTES:
        _check_strings(name, count, raw, declared.max_bytes)
        return
    size = count * _SIZES[declared.datatype]
    if len(raw) != size:
        raise InvalidRequest(
            f"{name} of shape {_shape_text(shape)} has {size} bytes as {declared.datatype}, not {len(raw)}"
        )


def _check_strings(name: str, count: int, raw: memoryview, max_bytes: int | None) -> None:
    """Each element of a BYTES tensor is its length in 4 bytes, little endian, and as many bytes."""
    at = found = 0
    while at < len(raw) and found < count:
        if at + 4 > len(raw):
            break
        length = struct.unpack_from("<I", raw, at)[0]
        _check_length(name, length, max_bytes)
        at += 4 + length
        found += 1
    if at != len(raw) or found != count:
        raise InvalidRequest(
            f"the contents of {name} are not {count} elements, each of which is its length in 4 bytes, little endian, "
            "followed by as many bytes"
        )


def _check_typed(tensor: Any, shape: tuple[int, ...], count: int, declared: Input) -> None:
    if (field := _CONTENTS.get(declared.datatype)) is None:
        raise InvalidRequest(f"{tensor.name} has to be given as raw contents: {declared.datatype} has no typed ones")
    for descriptor, _ in tensor.contents.ListFields():
        if descriptor.name != field:
            raise InvalidRequest(f"{tensor.name} has {descriptor.name}; {declared.datatype} belongs into {field}")
    given = getattr(tensor.contents, field)
    if len(given) != count:
        raise InvalidRequest(f"{tensor.name} of shape {_shape_text(shape)} has {count} elements, not {len(given)}")
    if declared.max_bytes is not None:
        for element in given:
            _check_length(tensor.name, len(element), declared.max_bytes)


def _check_length(name: str, length: int, max_bytes: int | None) -> None:
    if max_bytes is not None and length > max_bytes:
        raise InvalidRequest(f"an element of {name} has {length} bytes: at most {max_bytes} are taken")
