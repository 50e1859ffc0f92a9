"""Whether a request may be handed to the server: all of its tensors as its model declares them, and nothing else.

Triton 2.51 multiplies the sizes of a shape in 64 bits, so that a shape such as [1, 2^62] passes for one without any
element and ends the model that is to read it. Here sizes are Python's integers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from typing import Any

from tritonclient.grpc import service_pb2

from attune_client.protocol.bounds import DEFAULT_MUSIC_S
from attune_client.protocol.checks import check_deadline, check_duration, quote
from attune_client.protocol.errors import InvalidRequest
from attune_client.protocol.models import DEADLINE
from attune_ensemble.serving.guard.signatures import Input, Signature

__all__ = ["check_request", "deadline_of", "inputs_of", "music_of"]

_BYTES, _DURATION = "BYTES", "duration_s"
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
_MAX_STRINGS = 65_536
"""Most elements of a BYTES tensor: each is looked at."""

_MAX_PARAMETERS = 16
_MAX_ID = 256
_CLASSIFICATION = "classification"
_FINAL_RESPONSE = "triton_enable_empty_final_response"
_UNDERSTOOD = {"timeout": "int64_param", "priority": "uint64_param", _FINAL_RESPONSE: "bool_param"}
"""Parameters of a request that Triton acts upon, with the field in which each has to be."""

_TRITONS = ("triton_", "sequence_", "binary_data", "shared_memory", "xla", "headers")


def check_request(request: service_pb2.ModelInferRequest, model: Signature) -> None:
    """Raise `InvalidRequest` unless the model can be given this request: says what is wrong and what would be right."""
    if len(request.id) > _MAX_ID:
        raise InvalidRequest(f"the request's id has {len(request.id)} characters: at most {_MAX_ID} are taken")
    _check_parameters(request.parameters)
    _check_names("input", [tensor.name for tensor in request.inputs], model.inputs, model.name)
    _check_names("output", [tensor.name for tensor in request.outputs], model.outputs, model.name)
    for output in request.outputs:
        _check_output(output)
    _check_nothing_is_missing(request, model)
    _check_contents_are_of_one_kind(request)
    batches = {_checked(request, index, model) for index in range(len(request.inputs))}
    if model.max_batch and len(batches) > 1:
        raise InvalidRequest(f"the inputs of {model.name} have different batch sizes: {sorted(batches)}")


def inputs_of(request: service_pb2.ModelInferRequest) -> frozenset[str]:
    """Names of a request's inputs."""
    return frozenset(tensor.name for tensor in request.inputs)


def music_of(request: service_pb2.ModelInferRequest, model: Signature) -> float:
    """The seconds of music that a request that was checked asks for; `InvalidOption` for what none may ask for."""
    if not model.decoupled or _DURATION not in model.inputs:
        return 0.0
    asked_s = _number(request, _DURATION)
    return DEFAULT_MUSIC_S if asked_s is None else check_duration(asked_s)


def deadline_of(request: service_pb2.ModelInferRequest) -> float | None:
    """The time that a request that was checked gives itself, in seconds; None where it says nothing.

    `InvalidOption` for one that no request may have.
    """
    deadline_s = _number(request, DEADLINE.name)
    return None if deadline_s is None else check_deadline(deadline_s)


def _number(request: service_pb2.ModelInferRequest, name: str) -> float | None:
    """The first element of an input of floats; None where the request does not have it."""
    for index, tensor in enumerate(request.inputs):
        if tensor.name == name:
            if request.raw_input_contents:
                return float(struct.unpack_from("<f", request.raw_input_contents[index])[0])
            return float(tensor.contents.fp32_contents[0])
    return None


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    if len(parameters) > _MAX_PARAMETERS:
        raise InvalidRequest(f"the request has {len(parameters)} parameters: at most {_MAX_PARAMETERS} are taken")
    for name, value in parameters.items():
        if (kind := _UNDERSTOOD.get(name)) is not None:
            if value.WhichOneof("parameter_choice") != kind:
                raise InvalidRequest(f"the parameter {name} has to be given as {kind}")
        elif name.startswith(_TRITONS):
            raise InvalidRequest(f"the parameter {quote(name)} is not taken here")


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


def _check_nothing_is_missing(request: service_pb2.ModelInferRequest, model: Signature) -> None:
    given = inputs_of(request)
    missing = [name for name, each in model.inputs.items() if not each.optional and name not in given]
    if missing:
        raise InvalidRequest(f"{model.name} needs {', '.join(missing)}, which the request does not have")


def _check_contents_are_of_one_kind(request: service_pb2.ModelInferRequest) -> None:
    raw = len(request.raw_input_contents)
    if not raw:
        return
    if raw != len(request.inputs):
        raise InvalidRequest(f"the request has {len(request.inputs)} inputs and raw contents for {raw}")
    if any(tensor.HasField("contents") for tensor in request.inputs):
        raise InvalidRequest("the request has raw contents and typed ones: one kind of them has to be chosen for all")


def _checked(request: service_pb2.ModelInferRequest, index: int, model: Signature) -> int:
    """The batch size of an input that is as declared."""
    tensor, declared = request.inputs[index], model.inputs[request.inputs[index].name]
    if tensor.parameters:
        name = next(iter(tensor.parameters))
        raise InvalidRequest(f"the parameter {quote(name)} of the input {tensor.name} is not taken here")
    if tensor.datatype != declared.datatype:
        raise InvalidRequest(f"{tensor.name} has to be {declared.datatype}, not {quote(tensor.datatype)}")
    shape = tuple(tensor.shape)
    _check_shape(tensor.name, shape, declared, model)
    count = math.prod(shape)
    if request.raw_input_contents:
        _check_raw(tensor.name, shape, count, request.raw_input_contents[index], declared.datatype)
    else:
        _check_typed(tensor, shape, count, declared.datatype)
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


def _shape_text(shape: tuple[int | str, ...]) -> str:
    shown = ", ".join(map(str, shape[:8]))
    return f"[{shown}{', …' if len(shape) > 8 else ''}]"


def _check_raw(name: str, shape: tuple[int, ...], count: int, raw: bytes, datatype: str) -> None:
    if datatype == _BYTES:
        _check_count(name, shape, count)
        _check_strings(name, count, raw)
    elif len(raw) != count * _SIZES[datatype]:
        raise InvalidRequest(
            f"{name} of shape {_shape_text(shape)} has {count * _SIZES[datatype]} bytes as {datatype}, not {len(raw)}"
        )


def _check_strings(name: str, count: int, raw: bytes) -> None:
    """Each element of a BYTES tensor is its length in 4 bytes, little endian, and as many bytes."""
    at = found = 0
    while at < len(raw) and found < count:
        if at + 4 > len(raw):
            break
        at += 4 + struct.unpack_from("<I", raw, at)[0]
        found += 1
    if at != len(raw) or found != count:
        raise InvalidRequest(
            f"the contents of {name} are not {count} elements, each of which is its length in 4 bytes, little endian, "
            "followed by as many bytes"
        )


def _check_typed(tensor: Any, shape: tuple[int, ...], count: int, datatype: str) -> None:
    _check_count(tensor.name, shape, count if datatype == _BYTES else 0)
    if (field := _CONTENTS.get(datatype)) is None:
        raise InvalidRequest(f"{tensor.name} has to be given as raw contents: {datatype} has no typed ones")
    for descriptor, _ in tensor.contents.ListFields():
        if descriptor.name != field:
            raise InvalidRequest(f"{tensor.name} has {descriptor.name}; {datatype} belongs into {field}")
    given = len(getattr(tensor.contents, field))
    if given != count:
        raise InvalidRequest(f"{tensor.name} of shape {_shape_text(shape)} has {count} elements, not {given}")


def _check_count(name: str, shape: tuple[int, ...], count: int) -> None:
    if count > _MAX_STRINGS:
        raise InvalidRequest(f"{name} of shape {_shape_text(shape)} has more than {_MAX_STRINGS} elements")
