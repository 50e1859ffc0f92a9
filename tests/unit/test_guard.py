"""The guard in front of a server that blocks, streams and dies: `pytest tests/unit/test_guard.py`."""

from __future__ import annotations

import contextlib
import struct
import threading
import time

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from attune_client.protocol.errors import InvalidRequest, ServerBusy, ServerUnavailable, from_wire
from attune_ensemble.serving.guard import METRICS, Guard, GuardSettings, admission, service, settings
from attune_ensemble.serving.guard.signatures import Signature
from attune_ensemble.serving.launcher.ports import free_ports
from tests.fake_upstream import FakeUpstream, lease_of
from tests.guard_clients import SOON_S, channel_to, failure, floats, stub_to, until, words

GONE = ServerUnavailable("slow died")


@pytest.fixture
def told():
    return []


@pytest.fixture
def guard(upstream, told):
    bounds = GuardSettings(
        max_message_bytes=2**16,
        large_bytes=2**12,
        large_places=1,
        linger_s=0.5,
        trust_client_metadata=True,
    )
    guard = Guard(f"127.0.0.1:{free_ports().grpc}", bounds, lambda event, **fields: told.append((event, fields)))
    guard.start()
    guard.open(upstream.url)
    yield guard
    guard.stop()


@pytest.fixture
def stub(guard):
    with channel_to(guard) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_a_request_reaches_the_server_as_it_came(stub, upstream):
    request = floats(1.0, 2.0)
    request.id = "mine"
    assert stub.ModelInfer(request).id == "mine"
    assert upstream.seen == [request]


@pytest.mark.parametrize("raw", [True, False])
def test_a_lease_is_added_to_what_can_hold_one(stub, upstream, raw):
    request = words("slow", "go")
    if raw:
        request.inputs[0].ClearField("contents")
        request.raw_input_contents.append(struct.pack("<I", 2) + b"go")
    upstream.release.set()
    stub.ModelInfer(request)
    token = lease_of(upstream.seen[0])
    assert token is not None
    assert token.count("-") == 2
    assert upstream.seen[0].inputs[0] == request.inputs[0]


def test_a_client_cannot_bring_a_lease(stub):
    request = words("slow", "go")
    request.inputs.add(name="lease", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"1-2-3")
    assert "slow has no input 'lease'" in failure(lambda: stub.ModelInfer(request)).details()


def test_until_it_is_opened_everything_is_refused(tmp_path):
    guard = Guard(f"127.0.0.1:{free_ports().grpc}", GuardSettings(), lambda event, **fields: None)
    guard.start()
    try:
        with channel_to(guard) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            error = failure(lambda: stub.ModelInfer(floats(1.0)))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert isinstance(from_wire(error.details()), ServerUnavailable)
            assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
            assert not stub.ServerReady(service_pb2.ServerReadyRequest()).ready
    finally:
        guard.stop()


def test_a_port_in_use_is_told(guard):
    with pytest.raises(ServerUnavailable, match="cannot be listened at"):
        Guard(guard.address, GuardSettings(), lambda event, **fields: None).start()


def test_stopping_twice_and_starting_anew_at_the_same_port_works(guard, upstream):
    guard.stop()
    guard.stop()
    again = Guard(guard.address, GuardSettings(), lambda event, **fields: None)
    again.start()
    again.open(upstream.url)
    again.stop()


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (floats(1.0, model="nobody"), "there is no model 'nobody'"),
        (floats(1.0, shape=[1, 2**62]), "has 18446744073709551616 bytes as FP32, not 4"),
        (floats(1.0, shape=[1, -1]), "of shape [any, any], not [1, -1]"),
        (floats(1.0, 1.0, 1.0, 1.0, 1.0, shape=[5, 1]), "at most 4 rows"),
        (words("counter", "1"), "call ModelStreamInfer"),
        (words("slow", "go", model_version="7"), "is served in version 1"),
    ],
)
def test_what_no_model_takes_is_refused_with_a_reason(stub, upstream, request_, told):
    error = failure(lambda: stub.ModelInfer(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert told in error.details()
    assert not upstream.seen


@pytest.mark.parametrize("method", ["ModelInfer", "ModelConfig", "ModelReady", "RepositoryIndex"])
def test_bytes_that_are_no_message_are_refused(guard, method):
    with channel_to(guard) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        error = failure(lambda: call(b"\xff\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"3 bytes are no {method}Request" in error.details()


def test_a_message_that_is_too_large_is_refused(stub):
    error = failure(lambda: stub.ModelInfer(floats(*[0.0] * 20_000)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "call",
    [
        lambda stub: stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name="slow")),
        lambda stub: stub.SystemSharedMemoryRegister(service_pb2.SystemSharedMemoryRegisterRequest(name="x")),
        lambda stub: stub.LogSettings(service_pb2.LogSettingsRequest()),
        lambda stub: stub.TraceSetting(service_pb2.TraceSettingRequest()),
    ],
)
def test_what_is_the_operators_is_closed(stub, call):
    error = failure(lambda: call(stub))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert isinstance(from_wire(error.details()), InvalidRequest)


def test_a_dead_model_ends_what_waits_for_it_and_what_depends_on_it(guard, stub, upstream):
    unary = stub.ModelInfer.future(words("slow", "go"))
    stream = stub.ModelStreamInfer(iter([words("counter", "2")]))
    assert [next(stream).infer_response.id for _ in range(2)] == ["0", "1"]
    until(lambda: guard.in_flight() == 2)
    started_s = time.monotonic()
    guard.lose({"slow"}, GONE)
    assert failure(unary.result).details() == GONE.to_wire()
    assert [response.error_message for response in stream] == [GONE.to_wire()]
    assert time.monotonic() - started_s < 1.0
    until(lambda: guard.in_flight() == 0)
    assert failure(lambda: stub.ModelInfer(words("slow", "go"))).details() == GONE.to_wire()
    index = {model.name: model.state for model in stub.RepositoryIndex(service_pb2.RepositoryIndexRequest()).models}
    away = dict.fromkeys(("slow", "counter", "above"), "UNAVAILABLE")
    assert index == away | {"echo": "READY", "parted": "READY"}
    assert not stub.ServerReady(service_pb2.ServerReadyRequest()).ready
    assert stub.ModelReady(service_pb2.ModelReadyRequest(name="echo")).ready
    assert stub.ModelInfer(floats(1.0))
    guard.regain({"slow"})
    upstream.release.set()
    assert stub.ModelInfer(words("slow", "go"))


def test_a_stream_that_has_begun_outlives_what_it_needs_no_more(guard, stub, upstream):
    begun = stub.ModelStreamInfer(iter([words("counter", "2")]))
    assert [next(begun).infer_response.id for _ in range(2)] == ["0", "1"]
    guard.lose({"echo"}, GONE)
    (refused,) = stub.ModelStreamInfer(iter([words("counter", "1")]))
    assert refused.error_message == GONE.to_wire()
    upstream.release.set()
    assert list(begun) == []


def lasting(model, word, seconds=1.0):
    request = words(model, word)
    request.inputs.add(name="duration_s", datatype="FP32", shape=[1]).contents.fp32_contents.append(seconds)
    return request


def test_a_request_whose_inputs_spare_a_dead_model_is_not_hurt(guard, stub, upstream):
    """Also where another model is in between."""
    needing, spared = (stub.ModelInfer.future(request("above", "1")) for request in (words, lasting))
    begun = [stub.ModelStreamInfer(iter([request("counter", "2")])) for request in (words, lasting)]
    for stream in begun:
        next(stream)
    until(lambda: guard.in_flight() == 4)
    guard.lose({"slow"}, GONE)
    assert failure(needing.result).details() == GONE.to_wire()
    assert failure(lambda: stub.ModelInfer(words("above", "1"))).details() == GONE.to_wire()
    (refused,) = stub.ModelStreamInfer(iter([words("counter", "1")]))
    assert refused.error_message == GONE.to_wire()
    (answered,) = stub.ModelStreamInfer(iter([lasting("counter", "1")]))
    assert not answered.error_message
    upstream.release.set()
    assert spared.result().model_name == "above"
    ended, whole = ([response.error_message for response in stream] for stream in begun)
    assert (ended, whole) == (["", GONE.to_wire()], [""])
    assert not stub.ModelReady(service_pb2.ModelReadyRequest(name="counter")).ready, "it cannot do all that it is for"


def test_a_dead_server_ends_everything_and_a_new_one_goes_on(guard, stub, upstream, tmp_path):
    unary = stub.ModelInfer.future(words("slow", "go"))
    until(lambda: guard.in_flight() == 1)
    upstream.die()
    error = failure(unary.result)
    assert isinstance(from_wire(error.details()), ServerUnavailable)
    guard.close(ServerUnavailable("the server is started again"))
    assert "started again" in failure(lambda: stub.ModelInfer(floats(1.0))).details()
    (tmp_path / "again").mkdir()
    again = FakeUpstream(tmp_path / "again")
    try:
        guard.open(again.url)
        assert stub.ModelInfer(floats(1.0))
    finally:
        again.close()


def test_while_it_drains_what_is_in_flight_goes_on(guard, stub, upstream):
    unary = stub.ModelInfer.future(words("slow", "go"))
    until(lambda: guard.in_flight() == 1)
    guard.drain(ServerUnavailable("the server is being stopped"))
    assert "being stopped" in failure(lambda: stub.ModelInfer(floats(1.0))).details()
    upstream.release.set()
    assert unary.result().model_name == "slow"
    until(lambda: guard.in_flight() == 0)


@pytest.mark.parametrize("how", ["cancel", "deadline", "vanish"])
def test_a_client_that_is_gone_ends_the_lease(guard, upstream, how):
    channel = channel_to(guard)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    call = stub.ModelInfer.future(words("slow", "go"), timeout=0.3 if how == "deadline" else None)
    until(lambda: upstream.seen)
    if how == "cancel":
        call.cancel()
    elif how == "vanish":
        channel.close()
    until(lambda: upstream.ended == ["lease"])
    until(lambda: guard.in_flight() == 0)
    channel.close()


def test_a_stream_that_is_left_ends_the_lease(guard, stub, upstream):
    stream = stub.ModelStreamInfer(iter([words("counter", "2")]))
    next(stream)
    stream.cancel()
    until(lambda: upstream.ended == ["lease"])


def test_two_requests_of_one_stream_are_worked_for_at_once(guard, stub, upstream):
    blocked = threading.Event()

    def requests():
        yield words("counter", "2", id="first")
        yield words("counter", "1", id="second")
        blocked.wait(SOON_S)

    stream = stub.ModelStreamInfer(requests())
    assert sorted(next(stream).infer_response.id for _ in range(3)) == ["0", "0", "1"]
    blocked.set()
    stream.cancel()


def test_an_error_of_a_stream_names_its_request(stub):
    (response,) = stub.ModelStreamInfer(iter([words("nobody", "1", id="mine")]))
    assert "there is no model 'nobody'" in response.error_message
    assert response.infer_response.id == "mine"


def test_a_full_model_says_when_to_come_back(guard, upstream, told):
    with channel_to(guard) as one, channel_to(guard) as two:
        stubs = [stub_to(channel, name) for channel, name in ((one, "one"), (two, "two"))]
        calls = [stub.ModelInfer.future(words("slow", "go")) for stub in stubs for _ in range(2)]
        until(lambda: guard.in_flight() == 4)
        error = failure(lambda: stubs[0].ModelInfer(words("slow", "go")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        busy = from_wire(error.details())
        assert isinstance(busy, ServerBusy)
        assert dict(error.trailing_metadata())["retry-after"] == str(busy.retry_after_s)
        assert stubs[0].ModelInfer(floats(1.0))  # another model is not hurt
        upstream.release.set()
        assert [call.result().model_name for call in calls] == ["slow"] * 4


def test_one_client_cannot_take_all_places(guard, stub, upstream):
    """Behind a proxy all have one connection, and a name each."""
    metadata = (("attune-client", "another"),)
    calls = [stub.ModelInfer.future(words("slow", "go")) for _ in range(2)]
    until(lambda: guard.in_flight() == 2)
    assert "the other places are for others" in failure(lambda: stub.ModelInfer(words("slow", "go"))).details()
    calls.append(stub.ModelInfer.future(words("slow", "go"), metadata=metadata))
    until(lambda: guard.in_flight() == 3)
    upstream.release.set()
    assert all(call.result() for call in calls)


def test_large_requests_have_fewer_places(guard, upstream):
    with channel_to(guard) as one, channel_to(guard) as two:
        stubs = [stub_to(channel, name) for channel, name in ((one, "one"), (two, "two"))]
        call = stubs[0].ModelInfer.future(words("slow", "g" * 5_000))
        until(lambda: guard.in_flight() == 1)
        assert "as large as this one" in failure(lambda: stubs[1].ModelInfer(words("slow", "g" * 5_000))).details()
        upstream.release.set()
        assert call.result()


def test_the_memory_of_a_container_or_a_service_counts(monkeypatch, tmp_path):
    of_the_machine = settings.memory_bytes()
    own = tmp_path / "cgroup"
    monkeypatch.setattr(settings, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(settings, "_OWN_CGROUP", own)
    service = tmp_path / "groups" / "system.slice" / "attune.service"
    service.mkdir(parents=True)
    assert settings.memory_bytes() == of_the_machine
    own.write_text("0::/system.slice/attune.service\n")
    (service / "memory.max").write_text("max\n")
    assert settings.memory_bytes() == of_the_machine
    (service.parent / "memory.max").write_text(f"{2**21}\n")
    assert settings.memory_bytes() == 2**21
    (service / "memory.max").write_text(f"{2**20}\n")
    assert settings.memory_bytes() == 2**20
    own.write_text("0::/\n")  # what a container sees
    (tmp_path / "groups" / "memory.max").write_text(f"{2**19}\n")
    assert settings.memory_bytes() == 2**19


def test_what_cannot_be_answered_in_time_is_refused_at_once(guard, stub, upstream):
    upstream.release.set()
    for _ in range(4):
        stub.ModelInfer(words("slow", "go"))
    upstream.release.clear()
    slow = stub.ModelInfer.future(words("slow", "go"))
    until(lambda: guard.in_flight() == 1)
    request = words("slow", "go")
    request.inputs.add(name="deadline_s", datatype="FP32", shape=[1]).contents.fp32_contents.append(1e-6)
    assert "too many to answer within" in failure(lambda: stub.ModelInfer(request)).details()
    upstream.release.set()
    assert slow.result()


@pytest.mark.parametrize("deadline_s", [-1.0, 0.0, float("nan"), 1e9])
def test_a_deadline_that_is_none_is_refused(stub, deadline_s):
    request = words("slow", "go")
    request.inputs.add(name="deadline_s", datatype="FP32", shape=[1]).contents.fp32_contents.append(deadline_s)
    assert "deadline_s" in failure(lambda: stub.ModelInfer(request)).details()


def test_after_a_burst_the_estimate_is_how_fast_requests_end(monkeypatch):
    """Ten that came at once and ended every half second: the last one lasted five."""
    now_s = [0.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: now_s[0])
    places = admission.Admission(GuardSettings(client_share=1.0))
    model = Signature("slow", {}, frozenset(), "1")
    with contextlib.ExitStack() as first:
        burst = [first.enter_context(contextlib.ExitStack()) for _ in range(10)]
        held = [each.enter_context(places.place(model, "one", 1, None)) for each in burst]
        for stack, place in zip(burst, held, strict=True):
            now_s[0] += 0.5
            place.is_answered = True
            stack.close()
    for _ in range(3):
        first.enter_context(places.place(model, "one", 1, 2.1))
    with pytest.raises(ServerBusy), places.place(model, "one", 1, 1.9):
        pass
    first.close()


def test_a_dead_stub_of_the_server_is_told_without_its_internals(stub):
    error = failure(lambda: stub.ModelInfer(words("slow", "fails")))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "server_unavailable: slow stopped while it worked on the request; it is started again"


def test_a_fault_of_the_guard_shows_no_trace(guard, stub, told, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("secret of ours")

    monkeypatch.setattr(service, "check_request", broken)
    error = failure(lambda: stub.ModelInfer(floats(1.0)))
    assert error.code() is grpc.StatusCode.INTERNAL
    (response,) = stub.ModelStreamInfer(iter([words("counter", "1", id="mine")]))
    assert response.infer_response.id == "mine"
    for message in (error.details(), response.error_message):
        assert message == "server_error: the request failed; see the server's log"
    assert "secret of ours" in told[-1][1]["error"]


def test_a_guard_that_has_stopped_has_no_figures(upstream):
    guard = Guard(f"127.0.0.1:{free_ports().grpc}", GuardSettings(), lambda event, **fields: None)
    assert guard.figures() == {}
    guard.start()
    guard.open(upstream.url)
    thread = guard._thread
    guard.stop()
    assert guard.figures() == {}
    guard._thread = thread  # as another thread may see it, that looked just before
    assert guard.figures() == {}


def test_figures_count_what_became_of_requests(guard, stub, upstream):
    stub.ModelInfer(floats(1.0))
    failure(lambda: stub.ModelInfer(floats(1.0, shape=[1, 3])))
    figures = guard.figures()
    assert figures['attune_guard_requests_total{model="echo",outcome="answered"}'] == 1
    assert figures['attune_guard_requests_total{model="echo",outcome="invalid_request"}'] == 1
    assert figures['attune_guard_in_flight{model="echo"}'] == 0


def test_a_stream_that_ends_in_an_error_counts_as_that(guard, stub):
    (response,) = stub.ModelStreamInfer(iter([words("counter", "fails")]))
    assert response.error_message.startswith("server_busy: ")
    figures = guard.figures()
    assert figures['attune_guard_requests_total{model="counter",outcome="server_busy"}'] == 1
    assert 'attune_guard_requests_total{model="counter",outcome="answered"}' not in figures


def test_figures_measure_answers_and_music(guard, stub):
    """The first of a stream's responses has no music, each of the others half a second."""
    stub.ModelInfer(floats(1.0))
    assert len(list(stub.ModelStreamInfer(iter([words("counter", "5")])))) == 5
    figures = guard.figures()
    assert figures['attune_guard_request_seconds_count{model="echo"}'] == 1
    assert 0 < figures['attune_guard_request_seconds_sum{model="echo"}'] < SOON_S
    assert 'attune_guard_request_seconds_count{model="counter"}' not in figures, (
        "its listener decides how long it lasts"
    )
    assert figures['attune_guard_first_audio_seconds_count{model="counter"}'] == 1
    assert figures['attune_guard_first_audio_seconds_bucket{model="counter",le="+Inf"}'] == 1
    assert figures['attune_guard_audio_seconds_total{model="counter"}'] == 2


def test_what_is_refused_or_fails_is_no_answer_to_measure(guard, stub, upstream):
    failure(lambda: stub.ModelInfer(words("slow", "fails")))
    failure(lambda: stub.ModelInfer(floats(1.0, shape=[1, 3])))
    assert not any(name.startswith("attune_guard_request_seconds") for name in guard.figures())


def test_every_figure_is_declared(guard, stub):
    stub.ModelInfer(floats(1.0))
    list(stub.ModelStreamInfer(iter([words("counter", "3")])))
    parts = ("_bucket", "_sum", "_count")
    declared = {
        name + part for name, (kind, _) in METRICS.items() for part in (parts if kind == "histogram" else ("",))
    }
    assert {name.partition("{")[0] for name in guard.figures()} == declared


def test_figures_tell_how_full_the_fullest_model_is(guard, upstream):
    assert guard.figures()["attune_guard_load"] == 0
    with channel_to(guard) as one, channel_to(guard) as two:
        stubs = [stub_to(channel, name) for channel, name in ((one, "one"), (two, "two"))]
        calls = [stubs[number % 2].ModelInfer.future(words("slow", "go")) for number in range(3)]
        until(lambda: guard.in_flight() == 3)
        figures = guard.figures()
        assert figures['attune_guard_slots{model="slow"}'] == 2
        assert figures['attune_guard_slots{model="echo"}'] == GuardSettings().places, "where a model says nothing"
        assert figures['attune_guard_waiting{model="slow"}'] == 1
        assert figures['attune_guard_waiting{model="echo"}'] == 0
        assert figures["attune_guard_load"] == 1.5
        upstream.release.set()
        assert all(call.result() for call in calls)


def test_only_a_request_that_nothing_was_done_for_may_be_sent_to_another_server(guard, stub, upstream):
    """What is in flight when a model dies may be what it died of."""
    call = stub.ModelInfer.future(words("slow", "go"))
    until(lambda: guard.in_flight() == 1)
    guard.lose({"slow"}, GONE)
    in_flight, later = failure(call.result), failure(lambda: stub.ModelInfer(words("slow", "go")))
    assert in_flight.code() is later.code() is grpc.StatusCode.UNAVAILABLE
    assert (service.REFUSED_KEY, "1") not in in_flight.trailing_metadata()
    assert (service.REFUSED_KEY, "1") in later.trailing_metadata()


@pytest.mark.parametrize("reason", ["busy", "draining", "wrong"])
def test_a_refusal_says_whether_another_server_may_be_asked(guard, upstream, reason):
    with contextlib.ExitStack() as stack:
        stubs = [stub_to(stack.enter_context(channel_to(guard)), name) for name in ("one", "two")]
        calls = [stubs[number % 2].ModelInfer.future(words("slow", "go")) for number in range(4)]
        until(lambda: guard.in_flight() == 4)
        if reason == "draining":
            guard.drain(GONE)
        request = floats(1.0, shape=[1, 3]) if reason == "wrong" else words("slow", "go")
        trailing = failure(lambda: stubs[0].ModelInfer(request)).trailing_metadata()
        assert ((service.REFUSED_KEY, "1") in trailing) == (reason != "wrong")
        assert any(key == "retry-after" for key, _ in trailing) == (reason == "busy")
        upstream.release.set()
        assert all(call.result() for call in calls)


def test_a_compressed_message_counts_by_what_it_grows_to(guard):
    """A megabyte of zeros is a kilobyte on the wire."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(guard.address, options=options, compression=grpc.Compression.Gzip) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelInfer(floats(*[0.0] * 1000)).model_name == "echo"
        error = failure(lambda: stub.ModelInfer(floats(*[0.0] * 2**18)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in error.details()


def test_for_a_reader_that_stops_nothing_is_stored(guard, stub, upstream):
    """Its responses fill the connections, which hold little; then the server has to wait."""
    stream = stub.ModelStreamInfer(iter([words("counter", "10000000")]))
    next(stream)
    before = -1
    while upstream.written > before:
        before = upstream.written
        time.sleep(1.0)
    assert before < 1_000_000
    stream.cancel()
    until(lambda: guard.in_flight() == 0)
