"""Streams in parts (`attune_ensemble.serving.parts`): the guard asks for one after the other, clients see one stream.

Also what the guard adds to requests, the lease and the number of the part.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from attune_client.protocol.models import LEASE, NEXT_PART, PART
from attune_client.protocol.tensors import bytes_tensor
from attune_ensemble.serving.guard.requests import Request
from attune_ensemble.serving.guard.signatures import Signature
from attune_ensemble.serving.lease import Lease

__all__ = ["PartedStream", "continuation", "with_lease"]

Stream = Any
"""A call of grpc.aio that yields messages of bytes."""

_NEXT_PART = NEXT_PART.name.encode()
_LARGEST_END = 1024
"""Bytes of a response that holds nothing but the number of the next part, an id of any length besides."""


class PartedStream:
    """The responses of all parts, as one call that can be cancelled.

    Args:
        ask_for: begins the call for the part of that number.
        is_wanted: whether anybody still needs the rest; no further part is asked for where nobody does.
    """

    def __init__(self, ask_for: Callable[[int], Stream], is_wanted: Callable[[], bool]) -> None:
        self._ask_for, self._is_wanted = ask_for, is_wanted
        self._call = ask_for(0)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The responses but those that end a part; whatever the calls raise."""
        part: int | None = 0
        while part is not None:
            part = None
            async for response in self._call:
                following = _next_part(response)
                if following is None:
                    yield response
                else:
                    part = following
            if part is not None:
                if not self._is_wanted():
                    return
                self._call = self._ask_for(part)

    def cancel(self) -> None:
        """Cancel the call for the current part."""
        self._call.cancel()


def _next_part(response: bytes) -> int | None:
    """The number of the part to ask for, where the response ends a part."""
    if len(response) > _LARGEST_END or _NEXT_PART not in response:
        return None
    parsed = service_pb2.ModelStreamInferResponse.FromString(response).infer_response
    if [output.name for output in parsed.outputs] != [NEXT_PART.name]:
        return None
    return int(np.frombuffer(parsed.raw_output_contents[0], np.int32)[0])


def with_lease(request: Request, lease: Lease, part: int | None = None) -> bytes:
    """The message of a request with a lease, and the number of a part, among its inputs: two messages in a row are one
    that has all fields.
    """
    more = service_pb2.ModelInferRequest()
    is_typed = bool(request.head.inputs) and not request.raw
    added = more.inputs.add(name=LEASE.name, datatype="BYTES", shape=[1])
    if is_typed:
        added.contents.bytes_contents.append(lease.token.encode())
    else:
        serialised: Any = serialize_byte_tensor(np.asarray(bytes_tensor(lease.token)))
        more.raw_input_contents.append(bytes(serialised.item()))
    if part is not None:
        added = more.inputs.add(name=PART.name, datatype="INT32", shape=[1])
        if is_typed:
            added.contents.int_contents.append(part)
        else:
            more.raw_input_contents.append(np.array([part], np.int32).tobytes())
        if request.head.outputs:  # a model's response has none but those that were asked for
            more.outputs.add(name=NEXT_PART.name)
    return request.message + more.SerializeToString()


def continuation(request: Request, signature: Signature) -> Request:
    """The request for a further part: as the first one, but with the inputs alone that no request may leave out."""
    head = request.head
    further = service_pb2.ModelInferRequest(model_name=head.model_name, id=head.id, outputs=head.outputs)
    for number, tensor in enumerate(head.inputs):
        if not signature.inputs[tensor.name].optional:
            further.inputs.append(tensor)
            if request.raw:
                further.raw_input_contents.append(bytes(request.raw[number]))
    return Request.of(further.SerializeToString())
