"""Requests as they come: what stands in the bytes of one is looked at before any of it is unpacked.

A message of protobuf may cost fifty times its size once it is unpacked (millions of empty inputs, of two bytes each),
may hold any number of bytes that nobody understands, and each copy of a recording is 100 MiB more. So the fields of a
message are walked through first, bounded in number and size, none of them unknown; then all but the raw contents is
unpacked. The raw contents are looked at where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from attune_client.protocol.errors import InvalidRequest

__all__ = ["MAX_FIELDS", "Request", "parsed"]

MAX_FIELDS = 4_096
"""Most fields of a request's message, those of what it holds counted too, and each element of a BYTES tensor."""

_MAX_NAME_BYTES = 4_096
"""Longest name, id, shape or parameter."""

_MAX_TYPED_BYTES = 8 * 2**20
"""Most bytes in typed contents: unpacked they may take eight times as much."""

_CONTENTS = service_pb2.InferTensorContents.DESCRIPTOR.full_name
_RAW_CONTENTS = service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}
_WIRE_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: _FIXED64,
    FieldDescriptor.TYPE_FLOAT: _FIXED32,
    FieldDescriptor.TYPE_STRING: _DELIMITED,
    FieldDescriptor.TYPE_BYTES: _DELIMITED,
    FieldDescriptor.TYPE_MESSAGE: _DELIMITED,
}


class Request:
    """A request's message: `head` is all of it but the raw contents, once it was unpacked, and `raw` are these."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.head = service_pb2.ModelInferRequest()
        self.raw: tuple[memoryview, ...] = ()

    @classmethod
    def of(cls, message: bytes) -> Self:
        """A request that is unpacked already; `InvalidRequest` as of `unpack`."""
        request = cls(message)
        request.unpack()
        return request

    def unpack(self) -> None:
        """Fill `head` and `raw`; `InvalidRequest` for what is no request, or holds more than one may."""
        view = memoryview(self.message)
        kept, raw, since = [], [], 0
        for field in _Walk(view).fields(service_pb2.ModelInferRequest.DESCRIPTOR, 0, len(view)):
            if field.number == _RAW_CONTENTS:
                kept.append(view[since : field.start])
                raw.append(view[field.begin : field.end])
                since = field.end
        kept.append(view[since:])
        self.head = parsed(service_pb2.ModelInferRequest, b"".join(kept), len(view))
        self.raw = tuple(raw)

    def release(self) -> None:
        """Hold nothing any more."""
        self.message, self.raw = b"", ()
        self.head = service_pb2.ModelInferRequest()


def parsed(kind: Any, encoded: bytes, length: int | None = None) -> Any:
    """The message of that kind; `InvalidRequest` for bytes that are none (`length`: how many they were)."""
    try:
        return kind.FromString(encoded)
    except DecodeError:
        raise _no_message(kind.DESCRIPTOR, len(encoded) if length is None else length) from None


def _no_message(kind: Descriptor, length: int) -> InvalidRequest:
    return InvalidRequest(f"these {length} bytes are no {kind.name} of the protocol")


class _Found(NamedTuple):
    """A field in the bytes: from `start`, its value from `begin` to `end`."""

    number: int
    start: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the protocol says of a field."""

    name: str
    wire_type: int
    message: Descriptor | None
    is_repeated_number: bool
    is_bytes: bool


@cache
def _kinds(message: Descriptor) -> dict[int, _Kind]:
    return {
        field.number: _Kind(
            field.name,
            _WIRE_TYPES.get(field.type, _VARINT),
            field.message_type,
            bool(field.is_repeated) and _WIRE_TYPES.get(field.type) != _DELIMITED,
            field.type == FieldDescriptor.TYPE_BYTES,
        )
        for field in message.fields
    }


class _Walk:
    """A walk through a request's fields, in the order of their bytes, those of the messages within included."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._fields = 0
        self._typed_bytes = 0

    def fields(self, message: Descriptor, at: int, end: int) -> Iterator[_Found]:
        """The fields of a message in that part of the bytes; those within were walked through before each comes."""
        kinds = _kinds(message)
        while at < end:
            start = at
            tag, at = self._varint(at, end)
            kind = kinds.get(tag >> 3)
            if kind is None:
                raise InvalidRequest(
                    f"the request has a field {tag >> 3} in {message.name}, which the protocol has not"
                )
            self._count()
            begin, at = self._value(kind, tag & 7, at, end)
            self._check(message, kind, begin, at)
            if kind.message is not None:
                for _ in self.fields(kind.message, begin, at):
                    pass
            yield _Found(tag >> 3, start, begin, at)

    def _count(self) -> None:
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise InvalidRequest(
                f"the request has more than {MAX_FIELDS} fields; large tensors are given as raw contents"
            )

    def _value(self, kind: _Kind, wire_type: int, at: int, end: int) -> tuple[int, int]:
        """Where the value of a field begins and ends."""
        is_packed = wire_type == _DELIMITED and kind.is_repeated_number
        if wire_type != kind.wire_type and not is_packed:
            raise self._no_request()
        length = _WIDTHS.get(wire_type, 0)
        if wire_type == _VARINT:
            return at, self._varint(at, end)[1]
        if wire_type == _DELIMITED:
            length, at = self._varint(at, end)
        if at + length > end:
            raise self._no_request()
        return at, at + length

    def _check(self, message: Descriptor, kind: _Kind, begin: int, end: int) -> None:
        if kind.message is not None:
            return
        if message.full_name == _CONTENTS:
            self._typed_bytes += end - begin
            if self._typed_bytes > _MAX_TYPED_BYTES:
                raise InvalidRequest(f"more than {_MAX_TYPED_BYTES} bytes of contents have to be given as raw contents")
        elif end - begin > _MAX_NAME_BYTES and not kind.is_bytes:
            raise InvalidRequest(
                f"{kind.name} of the request has {end - begin} bytes: at most {_MAX_NAME_BYTES} are taken"
            )

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self._view[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise self._no_request()

    def _no_request(self) -> InvalidRequest:
        return _no_message(service_pb2.ModelInferRequest.DESCRIPTOR, len(self._view))
