"""A server that does what the text of a request says, in a process of its own, so that it can die: for clients.

    with FakeServer() as server, AttuneClient(server.url) as client:
        client.play(text=steps(["session"], ["music", 32_000], ["die"]))

The steps of a request, one after the other:

    session, music N, prompt    a response: of music_therapy, N frames of music, of music_prompt
    sleep S, wait               so many seconds, or for ever
    error TEXT                  a response of a stream that is an error
    abort CODE TEXT             the call ends with that status
    refuse NAME N CODE TEXT     the same, for the first N requests of that NAME
    report, reset               a response of music_prompt whose prompt is the `Report`; and forget it
    freeze, die                 the process stops without a word, and ends without one
    answer                      what the model of the request usually answers

A request without a text is one to `answer`. The statistics say of each model how many requests came to their end, and
that each of them took as long as `USUAL_MS` says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from attune_client.protocol.tensors import bytes_tensor
from tests.conftest import ROOT
from tests.fake_triton import inputs_of
from tests.unit.test_client import FOUND, MUSIC, SESSION, SPEECH

PROMPT = FOUND | {name: MUSIC[name] for name in ("prompt", "prompt_writer", "music_spec")}

SEGMENTS = {
    "waveform": np.zeros((2, 32_000), np.float32),
    "num_samples": np.array([[32_000], [24_000]], np.int64),
    "transcript": np.array([[b"so it goes"], [b"and on"]], dtype=np.object_),
}
USUAL: dict[str, tuple[dict[str, np.ndarray], ...]] = {
    "speech_to_text": (SEGMENTS,),
    "emotion_recognition": ({"vad": np.array([[3.5, 2.0, 3.0]], np.float32)},),
    "speech_emotion": (SPEECH,),
    "music_prompt": (PROMPT,),
    "music_therapy": (SESSION, *3 * ({"music": np.zeros((35_200, 2), np.float32)},)),
}
"""The responses of each model to a request that asks for nothing else."""

USUAL_MS = {"queue": 1.0, "compute_input": 0.5, "compute_infer": 8.0, "compute_output": 0.25, "success": 10.0}
"""What the statistics say of each request."""


@dataclass
class Report:
    """What a server has seen: its connections, of each request the deadline that it says (seconds) and what is left of
    that of its call (seconds), and how many requests were begun, came to their end, and were cancelled before it.
    """

    peers: list[str] = field(default_factory=list)
    deadlines_s: list[float | None] = field(default_factory=list)
    calls_s: list[float | None] = field(default_factory=list)
    begun: int = 0
    ended: int = 0
    cancelled: int = 0


def steps(*each: list[Any]) -> str:
    """The text of a request that says what to do."""
    return json.dumps(each)


class FakeServer:
    """The process, from a test's side; `address` is where it listens, a free port if left out."""

    def __init__(self, address: str = "127.0.0.1:0", *, max_bytes: int = -1) -> None:
        command = [sys.executable, "-m", "tests.fake_server", address, "--max-bytes", str(max_bytes)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self.pid = self._process.pid

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self._report = Report()
        self._refused: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.RepositoryIndexResponse(models=[{"name": "music_prompt", "version": "1", "state": "READY"}])

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        models = {*self._ended, *self._failed}
        return service_pb2.ModelStatisticsResponse(model_stats=[self._statistics_of(name) for name in sorted(models)])

    def _statistics_of(self, model: str) -> service_pb2.ModelStatistics:
        ended = self._ended[model]
        told = service_pb2.ModelStatistics(name=model, inference_count=2 * ended, execution_count=ended)
        for field_name, ms in USUAL_MS.items():
            duration = getattr(told.inference_stats, field_name)
            duration.count, duration.ns = ended, round(1e6 * ms * ended)
        told.inference_stats.fail.count = self._failed[model]
        return told

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        (response,) = [response async for response in self._work(request, context)]
        return response.infer_response

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            async for response in self._work(request, context):
                yield response

    async def _work(self, request: Any, context: Any) -> AsyncIterator[Any]:
        inputs = inputs_of(request)
        what = json.loads(inputs["text"].item()) if "text" in inputs else [["answer"]]
        if what[0] in (["report"], ["reset"]):
            yield _response(PROMPT | {"prompt": bytes_tensor(json.dumps(asdict(self._report)))})
            if what[0] == ["reset"]:
                self._report, self._refused = Report(), Counter()
            return
        self._note(inputs, context)
        counted = self._failed
        try:
            for step, *arguments in what:
                async for response in self._do(request.model_name, step, arguments, context):
                    yield response
            counted = self._ended
        except (asyncio.CancelledError, GeneratorExit):
            self._report.cancelled += 1
            raise
        finally:
            counted[request.model_name] += 1
            self._report.ended += 1

    def _note(self, inputs: dict[str, np.ndarray], context: Any) -> None:
        self._report.begun += 1
        self._report.peers = sorted({*self._report.peers, context.peer()})
        self._report.deadlines_s.append(float(inputs["deadline_s"][0]) if "deadline_s" in inputs else None)
        left_s = context.time_remaining()
        self._report.calls_s.append(left_s)

    async def _do(self, model: str, step: str, arguments: list[Any], context: Any) -> AsyncIterator[Any]:
        match step, arguments:
            case "answer", []:
                for tensors in USUAL[model]:
                    yield _response(tensors)
            case "session", []:
                yield _response(SESSION)
            case "music", [frames]:
                yield _response({"music": np.zeros((frames, 2), np.float32)})
            case "prompt", []:
                yield _response(PROMPT)
            case "sleep", [seconds]:
                await asyncio.sleep(seconds)
            case "wait", []:
                await asyncio.Event().wait()
            case "error", [text]:
                yield service_pb2.ModelStreamInferResponse(error_message=text)
            case "abort", [code, text]:
                await context.abort(grpc.StatusCode[code], text)
            case "refuse", [name, times, code, text]:
                self._refused[name] += 1
                if self._refused[name] <= times:
                    await context.abort(grpc.StatusCode[code], text)
            case "freeze", []:
                os.kill(os.getpid(), signal.SIGSTOP)
            case "die", []:
                await asyncio.sleep(0.05)  # what was sent before is on its way
                os._exit(1)
            case _:
                raise AssertionError(f"no such step: {step} {arguments}")


def _response(tensors: dict[str, np.ndarray]) -> service_pb2.ModelStreamInferResponse:
    message = service_pb2.ModelStreamInferResponse()
    for name, array in tensors.items():
        datatype = np_to_triton_dtype(array.dtype)
        message.infer_response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        content = b"".join(serialize_byte_tensor(array).flat) if datatype == "BYTES" else array.tobytes()
        message.infer_response.raw_output_contents.append(content)
    return message


async def _serve(address: str, max_bytes: int) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(), server)
    port = server.add_insecure_port(address)
    await server.start()
    print(address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--max-bytes", type=int)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.address, arguments.max_bytes))


if __name__ == "__main__":
    main()
