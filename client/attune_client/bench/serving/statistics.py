"""What the server counts by itself, model by model: Triton's statistics, before a load and after it.

    async with TritonStatistics(url) as statistics:
        before = await statistics.read()
        ...
        for stage in differences(before, await statistics.read()):
            print(stage.model, stage.queue_ms)

Triton counts of each request how long it waited in the model's queue, and how long the inputs, the computation and the
outputs of its execution took. Of a model that answers in a thread of its own it sees no more than the handover, a
fraction of a millisecond: the work of such a model is in the pipeline's own times and in its processor time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from attune_client.connection import OPTIONS, failure_of, translate
from attune_client.protocol.models import LEASE, MODELS

__all__ = ["Counts", "Stage", "TritonStatistics", "differences"]

_TIMEOUT_S = 10.0
_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Counts:
    """A model's counters since the server's start; times in ns, summed over requests."""

    requests: int
    failed: int
    rows: int
    executions: int
    queue_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int
    total_ns: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A model's part in a load: requests, of them failed, rows in an execution, and the mean ms of a request."""

    model: str
    requests: int
    failed: int
    batch: float
    queue_ms: float
    input_ms: float
    compute_ms: float
    output_ms: float
    total_ms: float

    @property
    def is_handover(self) -> bool:
        """Whether its times are those of a handover, because the model answers in a thread of its own."""
        return self.model in MODELS and LEASE in MODELS[self.model].inputs


class TritonStatistics:
    """The statistics of the server at `url`, for the event loop in which it is entered."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> TritonStatistics:
        self._channel = grpc.aio.insecure_channel(self._url, options=OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()

    async def read(self) -> dict[str, Counts]:
        """The counters of every model; raises the `AttuneError` of a server that does not tell them."""
        try:
            answer = await self._stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise translate(failure_of(error), self._url) from None
        return {each.name: _counts(each) for each in answer.model_stats}


def _counts(model: service_pb2.ModelStatistics) -> Counts:
    stats = model.inference_stats
    return Counts(
        requests=stats.success.count,
        failed=stats.fail.count,
        rows=model.inference_count,
        executions=model.execution_count,
        queue_ns=stats.queue.ns,
        input_ns=stats.compute_input.ns,
        compute_ns=stats.compute_infer.ns,
        output_ns=stats.compute_output.ns,
        total_ns=stats.success.ns,
    )


def differences(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> list[Stage]:
    """What each model did between two readings, in the pipeline's order; models that did nothing are left out.

    A model that was loaded again in between counts from there.
    """
    stages = []
    for name in sorted(after, key=_place):
        counts, none = after[name], Counts(0, 0, 0, 0, 0, 0, 0, 0, 0)
        earlier = before.get(name, none)
        if earlier.requests > counts.requests:
            earlier = none
        if counts.requests > earlier.requests or counts.failed > earlier.failed:
            stages.append(_stage(name, earlier, counts))
    return stages


def _place(name: str) -> tuple[int, str]:
    names = list(MODELS)
    return (names.index(name) if name in names else len(names)), name


def _stage(name: str, before: Counts, after: Counts) -> Stage:
    requests = after.requests - before.requests

    def mean_ms(earlier_ns: int, later_ns: int) -> float:
        return (later_ns - earlier_ns) / _NS_PER_MS / max(1, requests)

    return Stage(
        model=name,
        requests=requests,
        failed=after.failed - before.failed,
        batch=(after.rows - before.rows) / max(1, after.executions - before.executions),
        queue_ms=mean_ms(before.queue_ns, after.queue_ns),
        input_ms=mean_ms(before.input_ns, after.input_ns),
        compute_ms=mean_ms(before.compute_ns, after.compute_ns),
        output_ms=mean_ms(before.output_ns, after.output_ns),
        total_ms=mean_ms(before.total_ns, after.total_ns),
    )
