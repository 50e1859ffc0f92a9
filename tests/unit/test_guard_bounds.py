"""What clients cannot make the guard do, whatever they send or leave out: `pytest tests/unit/test_guard_bounds.py`."""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import threading
import time
import tracemalloc
from types import SimpleNamespace

import grpc
import pytest
from tritonclient.grpc import service_pb2

from attune_client.protocol import models
from attune_client.protocol.errors import InvalidRequest, RequestTimeout, ServerBusy, ServerUnavailable, from_wire
from attune_client.protocol.profiles import EMBEDDED
from attune_ensemble.chaos.harness.relay import relayed
from attune_ensemble.chaos.rows.bad_connections import _garbage
from attune_ensemble.serving.guard import Guard, GuardSettings, requests
from attune_ensemble.serving.guard.callers import Caller, Share, caller_of
from attune_ensemble.serving.guard.checks import check_request
from attune_ensemble.serving.guard.failures import error_from_text
from attune_ensemble.serving.guard.requests import MAX_FIELDS, Request
from attune_ensemble.serving.guard.signatures import signature_of
from attune_ensemble.serving.launcher.ports import authority, free_ports
from attune_export.repository_config import model_config
from tests.guard_clients import SOON_S, channel_to, failure, floats, stub_to, until, words

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"


@pytest.fixture
def told():
    return []


@pytest.fixture
def started(upstream, told):
    """Makes guards in front of the upstream, each with bounds of its own."""
    with contextlib.ExitStack() as stack:

        def start(*, is_open=True, **bounds):
            guard = Guard(
                f"127.0.0.1:{free_ports().grpc}",
                GuardSettings(**bounds),
                lambda event, **fields: told.append((event, fields)),
            )
            guard.start()
            stack.callback(guard.stop)
            if is_open:
                guard.open(upstream.url)
            return guard

        yield start


@contextlib.contextmanager
def silent_calls(guard, method, count):
    """Calls over one connection that send no message."""
    release = threading.Event()

    def nothing():
        release.wait(SOON_S)
        return
        yield

    with channel_to(guard) as channel:
        calls = [channel.stream_stream(method)(nothing()) for _ in range(count)]  # cancelled where nobody holds them
        try:
            yield calls
        finally:
            release.set()


def open_calls(guard):
    return guard.figures()["attune_guard_calls"]


# --- who sends nothing ---


@pytest.mark.parametrize("method", [STREAM, INFER, LIVE])
def test_calls_without_a_message_leave_room_for_others(started, method):
    guard = started(max_calls=32, message_s=SOON_S)
    with silent_calls(guard, method, 40), channel_to(guard) as channel:
        if method != LIVE:
            until(lambda: open_calls(guard) == 4)  # a quarter of the half that one client may have
        stub = stub_to(channel)
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=SOON_S).live
        assert stub.ModelInfer(floats(1.0), timeout=SOON_S)


@pytest.mark.parametrize("method", [STREAM, INFER])
def test_a_call_without_a_message_ends(started, method):
    guard = started(message_s=0.3)
    with silent_calls(guard, method, 1) as (call,):
        error = failure(lambda: next(call))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert isinstance(from_wire(error.details()), RequestTimeout)


def test_a_stream_that_waits_for_nothing_ends_and_one_at_work_does_not(started, upstream):
    guard = started(message_s=0.3)
    done = threading.Event()

    def requests_of():
        yield words("counter", "2")
        done.wait(SOON_S)

    with channel_to(guard) as channel:
        stream = stub_to(channel).ModelStreamInfer(requests_of())
        assert [next(stream).infer_response.id for _ in range(2)] == ["0", "1"]
        time.sleep(0.8)
        assert guard.in_flight() == 1
        upstream.release.set()
        assert failure(lambda: next(stream)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        done.set()


def test_of_messages_that_take_long_there_are_few(started):
    """Of four one client may have two; others are told when to come back."""
    guard = started(message_s=SOON_S, upload_bytes=0)
    with silent_calls(guard, INFER, 4) as calls:
        until(lambda: open_calls(guard) == 2 and sum(call.done() for call in calls) == 2)
        error = failure(lambda: next(next(call for call in calls if call.done())))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert from_wire(error.details()).retry_after_s == 1
        assert dict(error.trailing_metadata())["retry-after"] == "1"
        with channel_to(guard) as channel:
            assert stub_to(channel).ModelInfer(floats(1.0))


def test_a_stream_goes_on_where_others_keep_theirs_open(started, upstream):
    """The places for further messages are taken: this one is received when the first request is answered."""
    guard = started(upload_bytes=0, client_share=1.0)
    idle = threading.Event()

    def one_and_no_end():
        yield words("counter", "2")
        idle.wait(SOON_S)

    with contextlib.ExitStack() as stack, channel_to(guard) as last:
        channels = [stack.enter_context(channel_to(guard)) for _ in range(4)]
        others = [stub_to(channel).ModelStreamInfer(one_and_no_end()) for channel in channels]
        for stream in others:
            next(stream)
        stream = stub_to(last).ModelStreamInfer(iter([words("counter", "3"), words("counter", "4")]))
        assert len(list(stream)) == 7
        for other in others:
            other.cancel()
        idle.set()


@pytest.mark.parametrize("name", ["2,000 calls that never go on", "2,000 streams that never go on"])
def test_calls_that_never_go_on_reach_the_guard_and_hurt_nobody(started, name):
    guard = started()
    host, port = guard.address.split(":")
    with contextlib.ExitStack() as stack, channel_to(guard) as channel:
        for _ in range(3):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=SOON_S))
            connection.sendall(_garbage(random.Random(1))[name])
        until(lambda: open_calls(guard) > 0)
        assert stub_to(channel).ModelInfer(floats(1.0), timeout=SOON_S)


# --- who reads nothing ---


def test_for_a_reader_that_takes_nothing_the_guard_takes_few_requests(started):
    guard = started(client_share=1.0)
    with channel_to(guard) as channel:
        stream = stub_to(channel).ModelStreamInfer(words("counter", "10000000") for _ in range(50))
        until(lambda: guard.in_flight() == 8)
        time.sleep(0.5)
        assert guard.in_flight() == 8
        stream.cancel()


def test_a_reader_that_takes_nothing_is_given_up(started, upstream):
    upstream.digits = 100_000
    guard = started(reader_s=0.5)
    with channel_to(guard) as channel:
        stream = stub_to(channel).ModelStreamInfer(iter([words("counter", "10000")]))
        next(stream)
        until(lambda: guard.in_flight() == 0)
        error = failure(lambda: list(stream))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "nothing of the answer was read for 0.5 s" in error.details()
    assert guard.figures()['attune_guard_requests_total{model="counter",outcome="request_timeout"}'] == 1


def test_a_reader_that_is_slow_is_not(started, upstream):
    upstream.digits = 100_000
    guard = started(reader_s=1.0)
    with channel_to(guard) as channel:
        stream = stub_to(channel).ModelStreamInfer(iter([words("counter", "20")]))
        for _ in range(20):
            next(stream)
            time.sleep(0.1)


@pytest.mark.parametrize("field", ["id", "model_name"])
def test_what_a_refusal_repeats_of_a_request_is_short(started, field):
    guard = started()
    request = words("nobody", "1")
    setattr(request, field, "x" * 60_000)
    with channel_to(guard) as channel:
        (response,) = stub_to(channel).ModelStreamInfer(iter([request]))
    assert response.ByteSize() < 1_000
    assert response.error_message


# --- what refusals leave behind ---


def kept_by(refused, count=20):
    """Bytes that are kept when so many calls were refused, before the garbage collector has looked."""
    refused()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(count):
            refused()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()


LARGE = floats(*[0.0] * 2**16)  # 256 KiB


@pytest.mark.parametrize("why", ["not open", "lost", "invalid", "busy", "unknown model"])
def test_refusals_keep_no_message(started, upstream, why):
    guard = started(is_open=why != "not open", places=1, client_share=1.0)
    request = service_pb2.ModelInferRequest.FromString(LARGE.SerializeToString())
    with channel_to(guard) as channel, contextlib.ExitStack() as stack:
        stub = stub_to(channel)
        if why == "lost":
            guard.lose({"echo"}, ServerUnavailable("gone"))
        elif why == "invalid":
            request.inputs[0].shape[1] += 1
        elif why == "unknown model":
            request.model_name = "nobody"
        elif why == "busy":
            request = words("slow", "go" * 2**17)
            calls = [stub.ModelInfer.future(words("slow", "go")) for _ in range(4)]
            stack.callback(lambda: [call.cancel() for call in calls])
            until(lambda: guard.in_flight() == 4)
        assert kept_by(lambda: failure(lambda: stub.ModelInfer(request))) < 5 * 2**18


def test_an_error_that_ends_many_requests_collects_no_frames(started):
    guard = started(client_share=1.0)
    error = ServerUnavailable("gone")
    with channel_to(guard) as channel:
        calls = [stub_to(channel).ModelInfer.future(words("slow", "go")) for _ in range(3)]
        until(lambda: guard.in_flight() == 3)
        guard.lose({"slow"}, error)
        assert all("gone" in failure(call.result).details() for call in calls)
        failure(lambda: stub_to(channel).ModelInfer(words("slow", "go")))
    assert error.__traceback__ is None


# --- messages that are not what they seem ---


def named(*parts):
    return b"\x0a\x04echo" + b"".join(parts)


def delimited(number, value):
    length, encoded = len(value), b""
    while length >= 0x80:
        encoded, length = encoded + bytes([length & 0x7F | 0x80]), length >> 7
    return bytes([number << 3 | 2]) + encoded + bytes([length]) + value


BOMBS = {
    "inputs": named(b"\x2a\x00" * 10**5),
    "outputs": named(b"\x32\x00" * 10**5),
    "raw contents": named(b"\x3a\x00" * 10**5),
    "parameters": named(b"\x22\x00" * 10**5),
    "names": named(b"\x0a\x00" * 10**5),
    "parameters of an input": named(delimited(5, b"\x22\x00" * 10**5)),
    "contents of an input": named(delimited(5, delimited(5, b"\x42\x00" * 10**5))),
    "numbers one by one": named(delimited(5, delimited(5, b"\x18\x01" * 10**5))),
    "numbers together": named(delimited(5, delimited(5, delimited(3, b"\x01" * 9 * 2**20)))),
    "a shape": named(delimited(5, delimited(3, b"\x01" * 10**5))),
    "an id": named(delimited(3, b"x" * 10**5)),
    "a parameter's text": named(delimited(4, delimited(1, b"a") + delimited(2, delimited(3, b"x" * 10**5)))),
    "an unknown field": named(b"\x98\x06\x01" * 10**5),
    "one unknown field": named(delimited(9, b"x" * 10**5)),
    "an unknown field of an input": named(delimited(5, delimited(9, b"x" * 10**5))),
    "a group": named(b"\x2b\x2c"),
    "a field that ends beyond the message": named(b"\x3a\xff\xff\xff\xff\x0f"),
    "a number without an end": b"\x0a" + b"\xff" * 20,
}


@pytest.mark.parametrize("message", BOMBS.values(), ids=BOMBS)
def test_a_message_that_is_too_much_is_refused_before_it_is_unpacked(monkeypatch, message):
    def unpacked(*arguments):
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(requests, "parsed", unpacked)
    with pytest.raises(InvalidRequest) as raised:
        Request.of(message)
    assert len(str(raised.value)) < 200


def test_a_request_is_unpacked_without_its_raw_contents():
    sent = floats(*[0.0] * 1_000)
    sent.inputs.add(name="word", datatype="BYTES", shape=[1])
    sent.raw_input_contents.append(b"\3\0\0\0abc")
    request = Request.of(sent.SerializeToString() + service_pb2.ModelInferRequest(id="mine").SerializeToString())
    assert [bytes(raw) for raw in request.raw] == list(sent.raw_input_contents)
    del sent.raw_input_contents[:]
    sent.id = "mine"
    assert request.head == sent


def test_as_many_fields_as_may_be_are_looked_at_once():
    request = words("echo", "")
    del request.inputs[0].contents.bytes_contents[:]
    request.inputs[0].contents.bytes_contents.extend([b"x"] * (MAX_FIELDS - 10))
    assert Request.of(request.SerializeToString()).head == request


def test_only_parameters_that_are_known_are_taken(started):
    guard = started()
    with channel_to(guard) as channel:
        request = floats(1.0)
        request.parameters["mine"].double_param = float("nan")
        assert (
            "the parameter 'mine' is not taken here" in failure(lambda: stub_to(channel).ModelInfer(request)).details()
        )
        request = floats(1.0)
        request.parameters["priority"].uint64_param = 1
        assert stub_to(channel).ModelInfer(request)


# --- how much a model may be asked for at once ---


def sized(model, **shapes):
    """A request of zeros, with those shapes of its inputs."""
    request = service_pb2.ModelInferRequest(model_name=model.name)
    for name, shape in shapes.items():
        tensor = model.input(name)
        request.inputs.add(name=name, datatype=tensor.dtype.value, shape=shape)
        count = 1
        for size in shape:
            count *= size
        request.raw_input_contents.append(bytes(count * (8 if tensor.dtype.value == "INT64" else 4)))
    return request


def check(request):
    check_request(Request.of(request.SerializeToString()), signature_of(model_config(request.model_name, EMBEDDED)))


def of_sentences(rows, tokens):
    return sized(models.SENTENCE_ENCODER, sentence_ids=[rows, tokens], sentence_mask=[rows, tokens])


def of_speech(samples, tokens=16):
    return sized(
        models.EMOTION_ENCODER,
        waveform=[1, samples],
        num_samples=[1, 1],
        input_ids=[1, tokens],
        attention_mask=[1, tokens],
    )


def test_what_the_product_asks_for_is_taken():
    check(of_sentences(models.SENTENCES_MAX_BATCH, 512))
    check(of_speech(8 * 16_000, 512))


@pytest.mark.parametrize(
    ("request_", "words_"),
    [
        (of_sentences(9, 16), "at most 8 rows"),
        (of_sentences(1, 513), r"sentence_ids may be at most of shape \[1, 512\], not \[1, 513\]"),
        (of_speech(10 * 16_000), r"waveform may be at most of shape \[1, 144000\]"),
        (of_speech(16_000, 513), "input_ids may be at most"),
    ],
)
def test_more_than_that_is_refused(request_, words_):
    with pytest.raises(InvalidRequest, match=words_):
        check(request_)


@pytest.mark.parametrize("raw", [True, False])
def test_a_text_that_is_too_long_is_refused(raw):
    request = service_pb2.ModelInferRequest(model_name="text_tokenizer")
    tensor = request.inputs.add(name="transcript", datatype="BYTES", shape=[1, 1])
    if raw:
        request.raw_input_contents.append((8_001).to_bytes(4, "little") + b"a" * 8_001)
    else:
        tensor.contents.bytes_contents.append(b"a" * 8_001)
    with pytest.raises(InvalidRequest, match="an element of transcript has 8001 bytes: at most 8000"):
        check(request)


def test_every_size_that_is_open_is_bounded():
    for model in models.MODELS.values():
        for tensor in model.inputs:
            assert -1 not in tensor.shape or len(tensor.max_shape) == len(tensor.shape), (model.name, tensor.name)


# --- places ---


def test_a_request_that_is_given_up_keeps_its_place_until_its_work_has_ended(started, upstream):
    """Four places; a model that does not look at its lease for long."""
    guard = started(client_share=1.0, linger_s=SOON_S)
    with channel_to(guard) as channel:
        stub = stub_to(channel)
        calls = [stub.ModelInfer.future(words("slow", "deaf")) for _ in range(4)]
        until(lambda: len(upstream.seen) == 4)
        for call in calls:
            call.cancel()
        until(lambda: guard.in_flight() == 0)
        assert "slow has 4 requests in flight" in failure(lambda: stub.ModelInfer(words("slow", "go"))).details()
        upstream.release.set()
        until(lambda: _is_answered(stub))


def _is_answered(stub):
    with contextlib.suppress(grpc.RpcError):
        return bool(stub.ModelInfer(words("slow", "go")))
    return False


def test_work_of_a_model_that_died_keeps_no_place(started, upstream):
    guard = started(client_share=1.0, linger_s=SOON_S)
    with channel_to(guard) as channel:
        stub = stub_to(channel)
        calls = [stub.ModelInfer.future(words("slow", "deaf")) for _ in range(4)]
        until(lambda: len(upstream.seen) == 4)
        guard.lose({"slow"}, ServerUnavailable("gone"))
        assert all("gone" in failure(call.result).details() for call in calls)
        guard.regain({"slow"})
        again = stub.ModelInfer.future(words("slow", "go"))
        until(lambda: guard.in_flight() == 1)
        upstream.release.set()
        assert again.result()


@pytest.mark.parametrize(
    "told",
    [
        "Failed to increase the shared memory pool size for key 'attune-serve-1' to 4194304 bytes. If you are running "
        "Triton inside docker, use '--shm-size' flag to control the shared memory region size. Error: No space left",
        "Failed to initialize Python stub: Unable to create shared memory region, error: No space left on device",
    ],
)
def test_shared_memory_that_is_full_is_told_without_its_names(told):
    error = error_from_text(told, "speech_emotion")
    assert isinstance(error, ServerUnavailable)
    assert "speech_emotion has no room for a request as large as this one" in str(error)
    assert "attune-serve" not in str(error)


# --- who calls ---


def context_of(peer, **metadata):
    return SimpleNamespace(
        peer=lambda: peer, invocation_metadata=lambda: [(key.replace("_", "-"), each) for key, each in metadata.items()]
    )


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.0.0.7:5123", "10.0.0.7"),
        ("ipv6:%5B::1%5D:5123", "::/64"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5123", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:80", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:80", "10.0.0.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:80", "fe80::/64"),
        ("unix:/run/attune", "unix:/run/attune"),
    ],
)
def test_a_client_is_an_address(peer, client):
    assert caller_of(context_of(peer, attune_client="anybody"), trusts_metadata=False).client == client


def test_a_trusted_proxy_says_who_calls():
    assert caller_of(context_of("ipv4:10.0.0.7:1", attune_client="x" * 999), trusts_metadata=True).client == "x" * 100
    assert caller_of(context_of("ipv4:10.0.0.7:1"), trusts_metadata=True).client == "10.0.0.7"


def refusal_of(share, caller):
    """What a caller is told where there is no place; None where there is one."""
    try:
        with share.place(caller):
            return None
    except ServerBusy as error:
        return str(error)


@contextlib.contextmanager
def places_of(share, *callers):
    with contextlib.ExitStack() as stack:
        for caller in callers:
            stack.enter_context(share.place(caller))
        yield


def test_of_what_its_client_may_have_a_connection_has_a_quarter():
    share = Share("calls", 32, 0.5)
    with places_of(share, *[Caller("a", "1")] * 4):
        assert refusal_of(share, Caller("a", "1")).startswith("this connection has 4 calls")
        others = [Caller("a", connection) for connection in "234" for _ in range(4)]
        with places_of(share, *others):
            assert refusal_of(share, Caller("a", "5")).startswith("this client has 16 calls")
            with places_of(share, *[Caller("b", each) for each in "6789" for _ in range(4)]):
                assert refusal_of(share, Caller("c", "10")).startswith("the server has 32 calls")
        assert refusal_of(share, Caller("a", "5")) is None
    assert refusal_of(share, Caller("a", "1")) is None
    assert share.count == 0


def test_clients_that_share_a_proxys_connection_have_a_part_each():
    share = Share("calls", 32, 0.5)
    names = "abcdefgh"
    with places_of(share, *[Caller(name, "proxy") for name in names for _ in range(4)]):
        assert refusal_of(share, Caller("i", "proxy")).startswith("the server has 32 calls")


@pytest.mark.parametrize(
    ("most", "client_share", "of_a_connection"),
    [(4, 0.25, 1), (4, 0.5, 2), (8, 0.5, 2), (8, 1.0, 2), (16, 0.5, 2), (24, 0.5, 3), (1024, 0.5, 128)],
)
def test_a_connection_has_two_places_where_its_client_has_them(most, client_share, of_a_connection):
    share = Share("calls", most, client_share)
    caller = Caller("a", "1")
    with places_of(share, *[caller] * of_a_connection):
        assert refusal_of(share, caller) is not None


def test_clients_behind_one_proxy_do_not_take_each_others_calls(started):
    """The proxy has one connection for all; what one client leaves open is its own."""
    guard = started(max_calls=32, message_s=SOON_S, trust_client_metadata=True)
    idle = threading.Event()

    def nothing():
        idle.wait(SOON_S)
        return
        yield

    with channel_to(guard) as channel:
        greedy = [stub_to(channel, "greedy").ModelStreamInfer(nothing()) for _ in range(8)]
        until(lambda: open_calls(guard) == 4 and sum(call.done() for call in greedy) == 4)
        error = failure(lambda: next(next(call for call in greedy if call.done())))
        assert "this connection has 4 calls at once" in error.details()
        assert stub_to(channel, "another").ModelInfer(floats(1.0), timeout=SOON_S)
        idle.set()


def test_another_address_is_another_client(started, upstream):
    guard = started()
    with channel_to(guard) as one, relayed(guard.address, "127.0.0.2") as url:
        calls = [stub_to(one).ModelInfer.future(words("slow", "go")) for _ in range(2)]
        until(lambda: guard.in_flight() == 2)
        failure(lambda: stub_to(one).ModelInfer(words("slow", "go")))
        with grpc.insecure_channel(url) as other:
            calls.append(stub_to(other).ModelInfer.future(words("slow", "go")))
            until(lambda: guard.in_flight() == 3)
            upstream.release.set()
            assert all(call.result() for call in calls)


def test_a_name_of_ones_own_choice_gives_no_more_places(started):
    guard = started()
    with channel_to(guard) as one, channel_to(guard) as two:
        calls = [stub_to(one, f"name {number}").ModelInfer.future(words("slow", "go")) for number in range(2)]
        until(lambda: guard.in_flight() == 2)
        error = failure(lambda: stub_to(two, "another").ModelInfer(words("slow", "go")))
        assert "the other places are for others" in error.details()
        assert not any(call.done() for call in calls)


# --- what the operator sees ---


def test_a_stream_that_its_model_refused_was_not_answered(started):
    guard = started()
    with channel_to(guard) as channel:
        (response,) = stub_to(channel).ModelStreamInfer(iter([words("counter", "fails")]))
    assert isinstance(from_wire(response.error_message), ServerBusy)
    assert guard.figures()['attune_guard_requests_total{model="counter",outcome="server_busy"}'] == 1


def test_refusals_of_a_second_are_one_event(started, told):
    guard = started()
    with channel_to(guard) as channel:
        stub = stub_to(channel)
        calls = [stub.ModelInfer.future(words("slow", "go")) for _ in range(2)]
        until(lambda: guard.in_flight() == 2)
        for _ in range(5):
            failure(lambda: stub.ModelInfer(words("slow", "go")))
        until(lambda: sum(fields["count"] for _, fields in told) == 5)
    assert len(calls) == 2
    assert len(told) <= 3
    assert told[0][0] == "refused"
    assert told[0][1]["model"] == "slow"
    assert "try again in" in told[0][1]["reason"]


def test_an_address_of_ipv6_is_listened_at(upstream):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
            port = probe.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    guard = Guard(authority("::1", port), GuardSettings(), lambda event, **fields: None)
    guard.start()
    try:
        guard.open(upstream.url)
        with channel_to(guard) as channel:
            assert stub_to(channel).ModelInfer(floats(1.0))
    finally:
        guard.stop()
