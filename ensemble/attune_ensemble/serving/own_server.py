"""The models of this server that stream, asked over its own gRPC port.

    own_server = OwnServer(own_url(os.environ), answered, log)
    for tensors in own_server.ask(MUSIC_GENERATOR, {"prompt": prompt, "music_spec": spec}):
        ...

Triton's way for one model to call another one that streams, `InferenceRequest.exec(decoupled=True)`, deadlocks in
release 2.51 as soon as a process makes two such calls at once: `ResponseIterator::Next` holds the iterator's mutex and
waits for the GIL, the thread that receives the responses holds the map's mutex and waits for the iterator's, and
`GetResponseIterator` holds the GIL and waits for the map's. gRPC waits without the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from attune_client.messages import infer_request
from attune_client.protocol.errors import AttuneError, ServerError, ServerUnavailable
from attune_client.protocol.models import LEASE, NEXT_PART, PART
from attune_client.protocol.tensors import ModelSpec, Tensors

__all__ = ["CHANNEL_OPTIONS", "OWN_URL", "OwnServer", "Responses", "own_url"]

OWN_URL = "ATTUNE_OWN_URL"
"""Environment variable of the server's processes: the address of the server's own gRPC, for its models."""

_UNLIMITED = -1
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # what the environment says of proxies is not meant for this
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

_LINGER_S = 10.0
"""How long responses that nobody reads any more may go on before the call is cancelled."""


def own_url(environment: Mapping[str, str]) -> str:
    """The server's own address; `ServerUnavailable` where the environment does not tell it."""
    if url := environment.get(OWN_URL):
        return url
    raise ServerUnavailable(
        f"{OWN_URL} is not set: whoever starts tritonserver sets it to the host:port at which its gRPC is reached from "
        "its own processes, such as 127.0.0.1:8001"
    )


class OwnServer:
    """One connection, made when it is first needed, kept until `close`, and shared by every call.

    Args:
        url: address of the server's gRPC: `host:port`, or `unix:` and the path of a socket.
        answered: makes the error of the model of that name, and of the message with which it answered.
        log: takes a line about a connection that failed; whoever asked is not told its details.
    """

    def __init__(self, url: str, answered: Callable[[str, str], AttuneError], log: Callable[[str], None]) -> None:
        self._url = url
        self._answered = answered
        self._log = log
        self._channel = grpc.insecure_channel(url, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def ask(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]], request_id: str = "") -> Responses:
        """Ask a model that streams; the inputs have their declared types. With a lease among them, the stream comes in
        parts, each of which is asked for when the one before has been read.
        """

        def ask_for(part: int) -> Any:
            more = {PART.name: np.array([part], np.int32)} if LEASE.name in inputs else {}
            # The stream of requests ends with the only one, so that of the responses ends with the last of its own.
            return self._stub.ModelStreamInfer(iter([infer_request(model, {**inputs, **more}, request_id)]))

        return Responses(ask_for, partial(self._answered, model.name), partial(self._unreachable, model.name))

    def close(self) -> None:
        """Close the connection; calls that go on end with an error."""
        self._channel.close()

    def _unreachable(self, name: str, error: grpc.RpcError) -> AttuneError:
        self._log(f"{name} was asked at {self._url} ({OWN_URL}): {error.code()}: {error.details()}")
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return ServerUnavailable(f"{name} cannot be reached; see the server's log")
        return ServerError(f"{name} failed; see the server's log")


class Responses:
    """The responses to one request as they come, tensors by name; for one thread to iterate over, once.

    `ask_for` begins the call for the part of that number.

    Raises the `AttuneError` that the model answered, and `ServerUnavailable` where the server cannot be reached.
    """

    def __init__(
        self,
        ask_for: Callable[[int], Any],
        answered: Callable[[str], AttuneError],
        unreachable: Callable[[grpc.RpcError], AttuneError],
    ) -> None:
        self._ask_for, self._answered, self._unreachable = ask_for, answered, unreachable
        self._lock = threading.Lock()
        self._abandoned = False
        self._call = ask_for(0)

    def __iter__(self) -> Iterator[Tensors]:
        try:
            part: int | None = 0
            while part is not None:
                part = yield from self._responses()
                if part is not None and not self._go_on(part):
                    return
        except grpc.RpcError as error:
            raise self._unreachable(error) from None

    def _responses(self) -> Generator[Tensors, None, int | None]:
        """Those of one part; returns the number of the next one, None after the last."""
        following = None
        for response in self._call:
            if response.error_message:
                raise self._answered(response.error_message)
            tensors = _tensors(response.infer_response)
            if NEXT_PART.name in tensors:
                following = int(tensors[NEXT_PART.name][0])
            else:
                yield tensors
        return following

    def _go_on(self, part: int) -> bool:
        """Ask for that part, unless nobody needs the rest."""
        with self._lock:
            if not self._abandoned:
                self._call = self._ask_for(part)
            return not self._abandoned

    def abandon(self) -> None:
        """Say, from any thread, that nobody needs the rest. It is for the caller to tell the model; a call that does
        not end by itself is cancelled after `_LINGER_S`.

        Not at once: a request whose call is cancelled at the moment of its end is now and then never released by Triton
        2.51, which then cannot unload its model.
        """
        with self._lock:
            self._abandoned, call = True, self._call
        timer = threading.Timer(_LINGER_S, call.cancel)
        timer.daemon = True
        if call.add_callback(timer.cancel):  # no, where it has ended
            timer.start()


def _tensors(response: service_pb2.ModelInferResponse) -> Tensors:
    result = InferResult(response)
    return {output.name: result.as_numpy(output.name) for output in response.outputs}
