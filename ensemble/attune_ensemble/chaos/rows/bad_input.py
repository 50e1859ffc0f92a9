"""What nobody should send: mutated files, bad requests, closed methods, messages that are too large."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil
import soundfile as sf
from tritonclient.grpc import service_pb2

from attune_client.client import AttuneClient
from attune_client.protocol.bounds import MAX_MESSAGE_BYTES
from attune_client.protocol.errors import InvalidRequest
from attune_client.protocol.models import AUDIO_FILE, SPEECH_EMOTION
from attune_client.protocol.tensors import bytes_tensor
from attune_ensemble.chaos.files import MutatedFile, bombs, mutated_files
from attune_ensemble.chaos.harness.calls import Analyse, Call, Ended, Outcome, Play, Prompt, describe
from attune_ensemble.chaos.harness.case import PATIENCE_S, Case, Row
from attune_ensemble.chaos.harness.served import Served
from attune_ensemble.chaos.harness.wire import Wire
from attune_ensemble.chaos.requests import BadRequest, bad_requests, request_with

__all__ = ["ROWS"]

_SEED = 14
_REFUSED_S = 1.0
"""How long a refusal may take; where the machine has much else to do, of the server's processor time."""

_MIB = 2**20
_GIVEN_BACK_MIB = 100
"""How much memory large messages may take that come after the first one: what that took is there for the next."""


def _tree(kind: type[Exception]) -> Iterator[str]:
    yield kind.__name__
    for child in kind.__subclasses__():
        yield from _tree(child)


_CLEAR = frozenset(_tree(InvalidRequest))
"""Names of the errors that say that the request is at fault."""


class _Clock:
    """Processor time of a server's processes, and of those that they have started and waited for."""

    def __init__(self, server: Served) -> None:
        self._processes = server.processes()

    def read_s(self) -> float:
        """Seconds so far."""
        return sum(sum(_times(process)) for process in self._processes)


def _times(process: psutil.Process) -> tuple[float, ...]:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return ()
    return times.user, times.system, times.children_user, times.children_system


def _timed(case: Case, server: Served, calls: Sequence[Call]) -> list[tuple[Ended, float]]:
    """Ask one after the other: how each ended, and how long it took by the clock, or by the server's processors."""
    clock, timed = _Clock(server), []
    for call in calls:
        case.check_time()
        before_s = clock.read_s()
        ended = case.ask(server, call)
        timed.append((ended, min(ended.seconds, clock.read_s() - before_s)))
    return timed


def _in_time(case: Case, timed: Sequence[tuple[Ended, float]], answer_s: float) -> None:
    """Expect that each was refused within a second, or answered in the time that an answer takes."""
    late = [
        (ended, seconds)
        for ended, seconds in timed
        if seconds > (answer_s if ended.outcome == Outcome.ANSWERED else _REFUSED_S)
    ]
    case.expect(not late, f"{len(late)} late: " + "; ".join(f"{one} ({seconds:.1f} s)" for one, seconds in late[:3]))
    refused = [seconds for ended, seconds in timed if ended.outcome != Outcome.ANSWERED]
    case.note(f"slowest refusal {max(refused, default=0.0):.2f} s")


def _beside_good_ones(case: Case, server: Served, bad: Sequence[Call]) -> None:
    """Four callers send what is bad, while two ask for what is good, which must be answered."""
    asked: list[Call] = [Prompt(), Play()]
    before = len(case.tally.all())
    with case.load(server, asked, threads=2), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda call: case.ask(server, call), bad))
    good = [ended for ended in case.tally.all()[before:] if ended.name in {call.name for call in asked}]
    case.require(good, "nothing good was asked meanwhile")
    case.all_answered(good, "good calls beside bad ones")


# --- files ---


def bad_files(case: Case) -> None:
    """Mutated files and bombs, one after the other, and then some of them beside good calls."""
    server = case.server()
    whole_s = max(case.ask(server, Analyse(case.clip)).seconds for _ in range(2))
    files = _files(case, 25 if case.quick else 500)
    with case.unchanged(server):
        timed = _timed(case, server, [Analyse(file.encoded, name=file.name) for file in files])
        _in_time(case, timed, answer_s=3 * max(whole_s, _REFUSED_S))
        _are_clear(case, [ended for ended, _ in timed])
        _beside_good_ones(case, server, [Analyse(file.encoded, name=file.name) for file in files[:60]])
    case.note(str(dict(Counter(ended.error or "answered" for ended, _ in timed).most_common())))


def _files(case: Case, count: int) -> list[MutatedFile]:
    recording, _ = sf.read(case.settings.recording, dtype="float32")
    extremes = [] if case.quick else [MutatedFile(f"bomb: {name}", encoded) for name, encoded in bombs()]
    return extremes + list(mutated_files([recording], count - len(extremes), _SEED))


def _are_clear(case: Case, ended: Sequence[Ended]) -> None:
    other = [one for one in ended if one.outcome == Outcome.ERROR and one.error not in _CLEAR]
    case.expect(not other, f"{len(other)} errors that do not say what is wrong: {describe(other, 3)}")


# --- requests ---


@dataclass(frozen=True)
class _Sent:
    """A bad request; of a stream two responses are enough, since the rest is only music."""

    wire: Wire
    request: BadRequest = field(repr=False)

    @property
    def name(self) -> str:
        """The model and what is wrong."""
        return f"{self.request.model}: {self.request.fault[:120]}"

    def __call__(self, client: AttuneClient, heard: object) -> None:
        """Send it."""
        if not self.request.streams:
            self.wire.infer(self.request.message)
            return
        for _ in zip(range(2), self.wire.stream(self.request.message), strict=False):
            pass


def bad_requests_row(case: Case) -> None:
    """Requests with one thing wrong, one after the other, and then some of them beside good calls."""
    server = case.server()
    count = 150 if case.quick else 10_000
    sent: list[tuple[BadRequest, Ended]] = []
    with case.unchanged(server), Wire(server.url, PATIENCE_S) as wire:
        for request in bad_requests(count, _SEED):
            case.check_time()
            sent.append((request, case.ask(server, _Sent(wire, request))))
        few = [_Sent(wire, request) for request in bad_requests(min(count, 300), _SEED + 1)]
        _beside_good_ones(case, server, few)
    taken = [ended for request, ended in sent if request.of_form and ended.error != InvalidRequest.__name__]
    case.expect(not taken, f"{len(taken)} of a wrong form were not refused as such: {describe(taken, 3)}")
    _are_clear(case, [ended for request, ended in sent if not _may_be_busy(request, ended)])
    slow = sum(ended.seconds > _REFUSED_S for request, ended in sent if request.of_form)
    case.expect(slow <= count / 1_000, f"{slow} refusals took longer than {_REFUSED_S:g} s")
    case.note(str(dict(Counter(ended.error or "answered" for _, ended in sent).most_common())))


def _may_be_busy(request: BadRequest, ended: Ended) -> bool:
    """A deadline just above 0 is over before anything is done, or so soon that nothing is begun."""
    _, _, number = request.fault.partition("deadline_s of ")
    return bool(number) and float(number) > 0 and ended.error in ("RequestTimeout", "ServerBusy")


# --- methods that are closed ---

_CLOSED: dict[str, bytes] = {
    "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="valence").SerializeToString(),
    "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="valence").SerializeToString(),
    "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(
        name="mine", key="/mine", byte_size=2**20
    ).SerializeToString(),
    "SystemSharedMemoryStatus": b"",
    "SystemSharedMemoryUnregister": b"",
    "CudaSharedMemoryRegister": service_pb2.CudaSharedMemoryRegisterRequest(
        name="mine", raw_handle=bytes(64), byte_size=2**20
    ).SerializeToString(),
    "CudaSharedMemoryStatus": b"",
    "CudaSharedMemoryUnregister": b"",
    "TraceSetting": service_pb2.TraceSettingRequest(model_name="valence").SerializeToString(),
    "LogSettings": b"",
    "ModelInferAsync": b"",
    "../ServerLive": b"",
}


@dataclass(frozen=True)
class _Asked:
    """A method that is no inference."""

    wire: Wire
    method: str
    message: bytes = field(default=b"", repr=False)
    service: str = "inference.GRPCInferenceService"

    @property
    def name(self) -> str:
        """The method with its service."""
        return f"{self.service}/{self.method}"

    def __call__(self, client: AttuneClient, heard: object) -> None:
        """Ask."""
        self.wire.ask(self.method, self.message, self.service)


def closed_methods(case: Case) -> None:
    """What changes a server: model control, shared memory, trace and log settings; and methods that there are not."""
    server = case.server()
    with case.unchanged(server), Wire(server.url, PATIENCE_S) as wire:
        calls = [_Asked(wire, method, message) for method, message in _CLOSED.items()]
        calls += [_Asked(wire, method, b"\xff\xff\xff") for method in (*_CLOSED, "ModelConfig")]
        calls += [_Asked(wire, "ServerReflectionInfo", service="grpc.reflection.v1.ServerReflection")]
        ended = [case.ask(server, call) for call in calls]
    answered = [one for one in ended if one.outcome == Outcome.ANSWERED]
    case.expect(not answered, f"{len(answered)} were not refused: {describe(answered, 3)}")
    _are_clear(case, ended)
    case.all_answered([case.ask(server, Analyse(case.clip))], "after an attempt to unload a model")


# --- messages that are too large ---


def _message_of(size: int) -> bytes:
    """A request with a recording of so many bytes that is none; put together in less memory than by protobuf."""
    request = request_with(SPEECH_EMOTION, {AUDIO_FILE.name: bytes_tensor("")})
    del request.raw_input_contents[:]
    tag, contents = service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2, bytes(size)
    prefix = struct.pack("<I", size)
    return b"".join((request.SerializeToString(), bytes([tag]), _varint(size + len(prefix)), prefix, contents))


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def large_messages(case: Case) -> None:
    """A message of 70 MiB that is no recording, one of 700 MiB that is refused, and again: memory is not used up."""
    server, used = case.server(), []
    case.ask(server, Analyse(case.clip))
    with case.unchanged(server), Wire(server.url, PATIENCE_S) as wire:
        for mib in (70,) if case.quick else (70, 700, 70, 70):
            is_too_large = mib * _MIB > MAX_MESSAGE_BYTES
            request = BadRequest(f"audio of {mib} MiB", is_too_large, SPEECH_EMOTION.name, _message_of(mib * _MIB))
            ended = case.ask(server, _Sent(wire, request))
            case.expect(ended.error in _CLEAR, f"not refused clearly: {ended}")
            case.pause(2.0)
            used.append(server.footprint())
    case.note("; ".join(str(each) for each in used))
    grown = used[-1].memory_mib - used[0].memory_mib
    case.expect(grown < _GIVEN_BACK_MIB, f"{grown:.0f} MiB more after the last message than after the first one")
    case.all_answered(case.at_once(server, [Prompt(), Analyse(case.clip), Play()]), "after the large ones")


ROWS = (
    Row("bad-files", "500 mutated files and bombs", bad_files, limit_s=1200, quick_limit_s=120),
    Row("bad-requests", "10,000 requests with one thing wrong", bad_requests_row, limit_s=1200, quick_limit_s=90),
    Row("closed-methods", "model control, shared memory, settings", closed_methods, limit_s=60, quick_limit_s=60),
    Row("large-messages", "messages of 70 and 700 MiB", large_messages, limit_s=180, quick_limit_s=60),
)
