"""A stand-in for `attune serve` that speaks its events and a little of its gRPC, and misbehaves as it is told:
`python tests/fake_serve.py FAULT --repository DIR --log-file FILE`.

It answers `music_prompt`, and `music_therapy` with two chunks. FAULT is what it does wrong (see `FAULTS`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from tests.fake_triton import FakeTriton, Tensors, inputs_of, response_of
from tests.unit.test_client import FOUND, MUSIC

FAULTS = ("none", "hangs", "loses", "inside", "plain", "stays", "forgets", "dies", "deaf", "mute")
"""
hangs: never answers. loses: streams end in silence before their length. inside: errors show a file of the server.
plain: errors are clean. stays: a process of it survives it. forgets: a file in its temporary folder does.
dies: it ends at the first request, exit status 3. deaf: does not end at SIGTERM. mute: never says that it is ready.
"""


class FakeFrontDoor(FakeTriton):
    """As clients see it: one request a stream, which the client leaves open, and a mark after its last response."""

    def ModelStreamInfer(  # noqa: N802
        self, requests: Iterator[service_pb2.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[service_pb2.ModelStreamInferResponse]:
        self.peers.add(context.peer())
        request = next(requests)
        try:
            for response in self._answer(request.model_name, inputs_of(request)):
                if not context.is_active():
                    return
                yield response_of(response)
            last = service_pb2.ModelStreamInferResponse()
            last.infer_response.parameters["triton_final_response"].bool_param = True
            yield last
        finally:
            self.ended.append(not context.is_active())

    def ModelInfer(  # noqa: N802
        self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        [response] = self._answer(request.model_name, inputs_of(request))
        if isinstance(response, str):
            context.abort(grpc.StatusCode.INTERNAL, response)
        return response_of(response).infer_response


RATE = int(MUSIC["sample_rate"][0])


def answer(fault: str, model: str) -> Iterator[Tensors | str]:
    """The responses of a request."""
    match fault:
        case "hangs":
            time.sleep(600)
        case "inside":
            yield 'server_error: Traceback: File "/opt/attune/model.py", line 7'
            return
        case "plain":
            yield "server_unavailable: the model is away"
            return
        case "dies":
            os._exit(3)
    if model == "music_prompt":
        yield FOUND | {name: MUSIC[name] for name in ("prompt", "prompt_writer", "music_spec")}
        return
    yield FOUND | MUSIC | {"duration_s": np.array([1.0], np.float32)}
    yield {"music": np.zeros((RATE // 2, 2), np.float32)}
    if fault != "loses":
        yield {"music": np.zeros((RATE // 2, 2), np.float32)}


def main() -> None:
    """Serve until SIGTERM."""
    fault = sys.argv[1]
    triton = FakeFrontDoor(lambda model, inputs: answer(fault, model))
    (Path(os.environ["TMPDIR"]) / "attune-serve-fake").mkdir()
    if fault == "stays":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)

    def stop(number: int, frame: FrameType | None) -> None:
        if fault in ("deaf", "mute"):
            return
        if fault != "forgets":
            (Path(os.environ["TMPDIR"]) / "attune-serve-fake").rmdir()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    event = {"time": "2026-01-01T00:00:00Z", "event": "ready", "grpc": triton.url, "http": triton.url}
    print("not an event", file=sys.stderr, flush=True)
    if fault != "mute":
        print(json.dumps(event), file=sys.stderr, flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
