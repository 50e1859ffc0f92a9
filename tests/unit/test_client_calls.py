"""Both clients against a server that blocks, refuses and dies: `pytest tests/unit/test_client_calls.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from unittest import mock

import numpy as np
import pytest
import soundfile as sf
from click.testing import CliRunner

from attune_client import AsyncAttuneClient, AttuneClient, cli, connection, wire
from attune_client.alarm import Alarm
from attune_client.commands.patience import patiently
from attune_client.protocol import errors
from attune_client.retrying import Retrying
from tests.fake_server import FakeServer, Report, steps

FRAMES = 105_600  # what a session promises
ALL = (["session"], ["music", FRAMES])
SOON_S = 3.0  # on a machine that has much else to do; what is measured takes less than a second
GRACE_S = 0.2


@pytest.fixture(scope="module")
def shared():
    with FakeServer() as server:
        yield server


@pytest.fixture
def server(shared):
    """One at which nothing has happened yet."""
    assert until(lambda: report(shared).begun == report(shared).ended)
    ask_blocking(shared.url, ["reset"])
    return shared


@pytest.fixture
def mortal():
    """One that a test may end."""
    with FakeServer() as server:
        yield server


def play_blocking(url, *what, deadline_s=None, **options):
    with AttuneClient(url, **options) as client, client.play(text=steps(*what), deadline_s=deadline_s) as stream:
        return sum(len(chunk) for chunk in stream)


def play_awaited(url, *what, deadline_s=None, **options):
    async def play():
        async with AsyncAttuneClient(url, **options) as client:
            stream = await client.play(text=steps(*what), deadline_s=deadline_s)
            async with stream:
                return sum([len(chunk) async for chunk in stream])

    return asyncio.run(play())


def ask_blocking(url, *what, deadline_s=None, **options):
    with AttuneClient(url, **options) as client:
        return client.prompt(steps(*what), deadline_s=deadline_s).prompt


def ask_awaited(url, *what, deadline_s=None, **options):
    async def ask():
        async with AsyncAttuneClient(url, **options) as client:
            return (await client.prompt(steps(*what), deadline_s=deadline_s)).prompt

    return asyncio.run(ask())


PLAYING, ASKING = [play_blocking, play_awaited], [ask_blocking, ask_awaited]


def report(server):
    return Report(**json.loads(ask_blocking(server.url, ["report"])))


def until(happened, within_s=SOON_S):
    """Whether something is true within a while."""
    until_s = time.monotonic() + within_s
    while not happened() and time.monotonic() < until_s:
        time.sleep(0.01)
    return happened()


@contextlib.contextmanager
def soon(within_s=SOON_S):
    begun_s = time.monotonic()
    yield
    assert time.monotonic() - begun_s < within_s


# --- errors ---


@pytest.mark.parametrize("call", PLAYING + ASKING)
@pytest.mark.parametrize(
    ("code", "text", "kind", "words"),
    [
        ("UNAVAILABLE", "server_unavailable: valence is started again", errors.ServerUnavailable, "^valence is"),
        ("UNAVAILABLE", "server_busy: full; try again in 7 s", errors.ServerBusy, "try again in 7 s$"),
        ("INVALID_ARGUMENT", "invalid_option: no theremin", errors.InvalidOption, "^no theremin$"),
        ("PERMISSION_DENIED", "not you", errors.InvalidRequest, "does not permit this"),
        ("UNIMPLEMENTED", "Method not found!", errors.InvalidRequest, "is it an Attune server"),
        ("DEADLINE_EXCEEDED", "request_timeout: too late", errors.RequestTimeout, "^too late$"),
        ("CANCELLED", "request_cancelled: given up", errors.RequestCancelled, "^given up$"),
        ("CANCELLED", "", errors.ServerUnreachable, "went away before the answer was complete"),
        ("INTERNAL", "server_error: it failed", errors.ServerError, "^it failed$"),
    ],
)
def test_the_status_of_a_call_becomes_its_error(shared, call, code, text, kind, words):
    with pytest.raises(errors.AttuneError, match=words) as caught:
        call(shared.url, ["abort", code, text])
    assert type(caught.value) is kind


@pytest.mark.parametrize("play", PLAYING)
@pytest.mark.parametrize("before", [[], ["session"], ALL])
@pytest.mark.parametrize(
    "end",
    [["error", "server_busy: full; try again in 7 s"], ["abort", "UNAVAILABLE", "server_busy: full; try again in 7 s"]],
)
def test_an_error_in_a_stream_is_the_same_by_either_way(shared, play, before, end):
    before = [before] if before and isinstance(before[0], str) else before
    with pytest.raises(errors.ServerBusy, match="full") as caught:
        play(shared.url, *before, end)
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize("play", PLAYING)
def test_after_an_error_the_server_ends_the_stream_itself_if_it_does(server, play):
    with soon(), pytest.raises(errors.InvalidOption):
        play(server.url, ["error", "invalid_option: no theremin"], ["sleep", 0.3])
    assert (report(server).ended, report(server).cancelled) == (1, 0)
    with soon(wire.LAST_WORDS_S + SOON_S), pytest.raises(errors.InvalidOption):
        play(server.url, ["error", "invalid_option: no theremin"], ["wait"])
    assert until(lambda: report(server).cancelled == 1)


@pytest.mark.parametrize("call", ASKING)
def test_a_message_that_is_too_large_says_what_to_do(call):
    with FakeServer(max_bytes=1_000) as server:
        with pytest.raises(
            errors.InvalidRequest, match=r"the server takes at most 0\.0: send an encoded rec"
        ) as caught:
            call(server.url, ["prompt"], ["sleep", "x" * 1_500])
        assert type(caught.value) is errors.InvalidRequest


@pytest.mark.parametrize("call", PLAYING + ASKING)
def test_a_server_that_dies_is_noticed_at_once(call):
    with FakeServer() as mortal, soon(), pytest.raises(errors.ServerUnreachable, match="went away before"):
        call(mortal.url, ["die"])


@pytest.mark.parametrize("play", PLAYING)
def test_a_server_that_dies_in_the_middle_of_a_stream_is_noticed_at_once(mortal, play):
    with soon(), pytest.raises(errors.ServerUnreachable, match="went away before"):
        play(mortal.url, ["session"], ["music", 32_000], ["die"])


@pytest.mark.parametrize("call", PLAYING + ASKING)
def test_a_server_that_vanishes_is_noticed(mortal, call, monkeypatch):
    quick = {name: value // 20 if value >= 10_000 else value for name, value in connection.OPTIONS}  # 5 s for 100 s
    monkeypatch.setattr(
        f"attune_client.{'client' if 'blocking' in call.__name__ else 'aio'}.OPTIONS", tuple(quick.items())
    )
    with soon(10), pytest.raises(errors.ServerUnreachable, match="went away before"):
        call(mortal.url, ["freeze"])


# --- time ---


@pytest.mark.parametrize("call", PLAYING + ASKING)
def test_the_server_s_word_on_a_deadline_comes_first_and_a_dead_server_holds_nobody(server, call, monkeypatch):
    monkeypatch.setattr(wire, "GRACE_S", GRACE_S)
    with pytest.raises(errors.RequestTimeout, match=r"^before speech_to_text was done$"):
        call(
            server.url,
            ["sleep", 0.5],
            ["abort", "DEADLINE_EXCEEDED", "request_timeout: before speech_to_text was done"],
            deadline_s=0.5,
        )
    with soon(), pytest.raises(errors.RequestTimeout, match=r"^the deadline of 0\.5 s passed, and nothing came$"):
        call(server.url, ["wait"], deadline_s=0.5)
    assert until(lambda: report(server).cancelled == 1)
    seen = report(server)
    assert seen.deadlines_s == [0.5, 0.5]
    grace_s = wire.STREAM_GRACE_S if call in PLAYING else GRACE_S
    assert all(0.5 < left_s <= 0.6 + grace_s for left_s in seen.calls_s)


@pytest.mark.parametrize("call", ASKING)
@pytest.mark.parametrize(
    ("options", "deadline_s", "waits_s"),
    [({}, 3_600, 3_601), ({}, None, 300), ({"timeout_s": 300}, 3_600, 300), ({"timeout_s": 600}, None, 600)],
)
def test_a_deadline_beyond_the_default_timeout_is_waited_for(server, call, options, deadline_s, waits_s):
    call(server.url, ["prompt"], deadline_s=deadline_s, **options)
    # gRPC sends a timeout of an hour in steps of ten seconds.
    assert report(server).calls_s == [pytest.approx(waits_s, abs=10)]


@pytest.mark.parametrize("call", PLAYING + ASKING)
def test_a_timeout_is_the_longest_wait(server, call):
    with soon(), pytest.raises(errors.RequestTimeout, match=r"^nothing came for 0\.5 s$"):
        call(server.url, ["wait"], timeout_s=0.5)
    assert until(lambda: report(server).cancelled == 1)


@pytest.mark.parametrize("play", PLAYING)
def test_a_timeout_is_for_each_response_of_a_stream(shared, play):
    chunks = [["sleep", 0.3], ["music", FRAMES // 5]] * 5
    assert play(shared.url, ["session"], *chunks, timeout_s=1.0) == FRAMES
    with pytest.raises(errors.RequestTimeout):
        play(shared.url, ["session"], *chunks[:-2], ["sleep", 9], timeout_s=1.0)


def test_an_alarm_rings_once_a_wait_takes_too_long_and_not_before():
    rung = []
    before = threading.active_count()
    alarm = Alarm(lambda: rung.append(time.monotonic()))
    for _ in range(1_000):
        with alarm.within(0.4):
            pass
    assert threading.active_count() < before + 5  # and not a thread for each wait
    time.sleep(0.6)
    assert not rung
    for wait_s in (60, 0.4):  # a shorter wait after a longer one
        with alarm.within(wait_s):
            begun_s = time.monotonic()
            time.sleep(0.1 if wait_s == 60 else 0.8)
    assert [at_s - begun_s for at_s in rung] == [pytest.approx(0.4, abs=0.35)]
    assert alarm.rang
    alarm.stop()
    silent = Alarm(lambda: rung.append(0.0))
    with silent.within(0.2):
        silent.stop()
        time.sleep(0.4)
    assert len(rung) == 1


# --- several streams, and streams that are left ---


def test_streams_of_one_client_share_a_connection_and_do_not_wait_for_each_other(server):
    with AttuneClient(server.url) as client:
        streams = [client.play(text=steps(["session"], ["music", 1], ["wait"])) for _ in range(3)]
        assert [len(next(stream)) for stream in streams] == [1, 1, 1]
        with client.play(text=steps(*ALL)) as other:
            assert sum(len(chunk) for chunk in other) == FRAMES
        for stream in streams:
            with soon(1.0):
                stream.close()
    assert until(lambda: report(server).cancelled == 3)
    assert len(report(server).peers) == 1


async def test_streams_of_one_asyncio_client_share_a_connection(server):
    async with AsyncAttuneClient(server.url) as client:
        streams = await asyncio.gather(
            *(client.play(text=steps(["session"], ["music", 1], ["wait"])) for _ in range(3))
        )
        assert [len(await anext(stream)) for stream in streams] == [1, 1, 1]
        async with await client.play(text=steps(*ALL)) as other:
            assert sum([len(chunk) async for chunk in other]) == FRAMES
        async with asyncio.timeout(1.0):
            for stream in streams:
                await stream.close()
    assert await asyncio.to_thread(until, lambda: report(server).cancelled == 3)
    assert len(report(server).peers) == 1


def test_a_hundred_streams_left_early_one_after_the_other_leave_nothing(server):
    """In any place: before anything came, after the session, in the music, and at its very end."""
    ways = [
        ([["wait"]], None),
        ([["session"], ["wait"]], 0),
        ([["session"], ["music", 1], ["wait"]], 1),
        ([["session"], *([["music", FRAMES // 4]] * 4)], 2),
        ([["session"], *([["music", FRAMES // 4]] * 4)], 4),
    ]
    threads = threading.active_count()
    for what, taken in ways * 20:
        with AttuneClient(server.url, timeout_s=0.05 if taken is None else 30) as client, soon():
            if taken is None:
                with pytest.raises(errors.RequestTimeout):
                    client.play(text=steps(*what))
                continue
            with client.play(text=steps(*what)) as stream:
                for _ in range(taken):
                    next(stream)
    assert until(lambda: report(server).ended - report(server).begun >= 0)
    assert until(lambda: threading.active_count() <= threads + 3)
    assert play_blocking(server.url, *ALL) == FRAMES


@pytest.mark.parametrize("kind", ["next", "infer"])
def test_closing_a_client_ends_what_other_threads_wait_for(shared, kind):
    client = AttuneClient(shared.url)
    stream = client.play(text=steps(["session"], ["wait"])) if kind == "next" else None
    raised = []

    def wait():
        with pytest.raises(errors.RequestCancelled, match="closed") as caught:
            next(stream) if stream else client.prompt(steps(["wait"]))
        raised.append(caught.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    client.close()
    waiting.join(SOON_S)
    assert raised


async def test_closing_an_asyncio_client_ends_what_waits_for_it_and_is_no_cancellation(shared):
    client = AsyncAttuneClient(shared.url)
    stream = await client.play(text=steps(["session"], ["wait"]))
    waiting = [asyncio.ensure_future(anext(stream)), asyncio.ensure_future(client.prompt(steps(["wait"])))]
    await asyncio.sleep(0.3)
    await client.close()
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [errors.RequestCancelled] * 2


async def test_a_cancelled_task_cancels_its_request(server):
    async with AsyncAttuneClient(server.url) as client:
        stream = await client.play(text=steps(["session"], ["wait"]))
        tasks = [asyncio.ensure_future(anext(stream)), asyncio.ensure_future(client.prompt(steps(["wait"])))]
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
        assert await asyncio.to_thread(until, lambda: report(server).cancelled == 2)


# --- event loops ---


def test_an_asyncio_client_may_be_made_before_any_loop_and_outlive_one(shared):
    client = AsyncAttuneClient(shared.url)
    for _ in range(3):
        assert asyncio.run(client.prompt(steps(["prompt"]))).prompt == "slow piano"


def test_an_asyncio_client_in_two_loops_at_once_is_an_error_that_says_so(shared):
    client = AsyncAttuneClient(shared.url)

    async def both():
        await client.prompt(steps(["prompt"]))
        with pytest.raises(errors.InvalidRequest, match="one for each loop"):
            await asyncio.to_thread(lambda: asyncio.run(client.prompt(steps(["prompt"]))))
        await client.close()

    asyncio.run(both())


# --- addresses ---


@pytest.mark.parametrize("call", PLAYING + ASKING)
def test_a_unix_socket_and_ipv6(call, tmp_path):
    what = ALL if call in PLAYING else (["prompt"],)
    for address in (f"unix:{tmp_path}/s", "[::1]:0"):
        with FakeServer(address) as server:
            assert call(server.url, *what)
    with pytest.raises(errors.ServerUnreachable, match="no server answers at unix:"):
        call(f"unix:{tmp_path}/nobody", *what)


# --- sending again ---

BUSY = ("UNAVAILABLE", "server_busy: full; try again in 0 s")


@pytest.mark.parametrize("call", PLAYING + ASKING)
def test_what_is_refused_is_sent_again_as_often_as_asked(server, call):
    what = ALL if call in PLAYING else (["prompt"],)
    with pytest.raises(errors.ServerBusy):
        call(server.url, ["refuse", "a", 1, *BUSY], *what)
    assert call(server.url, ["refuse", "b", 2, *BUSY], *what, retries=2)
    with pytest.raises(errors.ServerBusy):
        call(server.url, ["refuse", "c", 3, *BUSY], *what, retries=2)
    assert report(server).begun == 1 + 3 + 3


@pytest.mark.parametrize("call", PLAYING + ASKING)
@pytest.mark.parametrize(
    ("code", "text"), [("INVALID_ARGUMENT", "invalid_option: no"), ("INTERNAL", "server_error: it failed")]
)
def test_what_is_at_fault_is_not_sent_again(server, call, code, text):
    with pytest.raises(errors.AttuneError):
        call(server.url, ["abort", code, text], retries=5)
    assert report(server).begun == 1


@pytest.mark.parametrize("play", PLAYING)
@pytest.mark.parametrize("end", [["abort", *BUSY], ["error", BUSY[1]]])
def test_nothing_is_sent_again_once_something_came(server, play, end):
    with pytest.raises(errors.ServerBusy):
        play(server.url, ["session"], end, retries=5)
    assert report(server).begun == 1


@pytest.mark.parametrize("call", PLAYING + ASKING)
def test_a_server_that_comes_back_is_found(call, tmp_path):
    what = ALL if call in PLAYING else (["prompt"],)
    servers = []
    later = threading.Timer(1.0, lambda: servers.append(FakeServer(f"unix:{tmp_path}/s")))
    later.start()
    try:
        assert call(f"unix:{tmp_path}/s", *what, retries=20)
    finally:
        later.join()
        servers[0].kill()


def test_the_deadline_counts_from_the_first_attempt(server):
    slow = ("UNAVAILABLE", "server_busy: full; try again in 1 s")
    ask_blocking(server.url, ["refuse", "a", 1, *slow], ["prompt"], retries=3, deadline_s=5)
    first, second = report(server).deadlines_s
    assert first == 5
    assert 2 < second <= 4
    with soon(), pytest.raises(errors.ServerBusy):
        ask_blocking(server.url, ["refuse", "b", 9, *slow], ["prompt"], retries=9, deadline_s=0.9)


def test_pauses_are_the_server_s_own_or_grow_and_are_told():
    told = []
    policy = Retrying(20, within_s=30, unreachable=False, tell=lambda error, pause_s: told.append(pause_s))
    attempts = policy.attempts({})
    assert 8 <= attempts.pause_s(errors.ServerBusy("full", 8)) <= 10
    grown = [attempts.pause_s(errors.ServerUnavailable("it is started again")) for _ in range(5)]
    assert all(low <= pause_s <= 1.25 * low for low, pause_s in zip([1, 2, 4, 8, 8], grown, strict=True))
    assert told[1:] == grown
    with pytest.raises(errors.ServerUnreachable):
        attempts.pause_s(errors.ServerUnreachable("nobody there"))
    with pytest.raises(errors.ServerBusy):
        attempts.pause_s(errors.ServerBusy("full", 31))
    assert len(told) == 6


def test_pauses_grow_from_what_the_server_says():
    attempts = Retrying(20).attempts({})
    paused = [attempts.pause_s(errors.ServerBusy("full", 1)) for _ in range(5)]
    assert all(low <= pause_s <= 1.25 * low for low, pause_s in zip([1, 2, 4, 8, 8], paused, strict=True))
    assert 60 <= attempts.pause_s(errors.ServerBusy("full", 60)) <= 75


def test_a_deadline_that_passes_during_a_pause_is_told_as_such(monkeypatch):
    attempts = Retrying(3).attempts({"deadline_s": np.array([5.0], np.float32)})
    attempts.pause_s(errors.ServerBusy("full", 1))
    late_s = time.monotonic() + 6  # the machine slept
    monkeypatch.setattr("attune_client.retrying.time", mock.Mock(monotonic=lambda: late_s))
    with pytest.raises(errors.RequestTimeout, match="before the request could be sent again"):
        attempts.inputs()


def test_closing_a_client_ends_its_pause(server):
    client = AttuneClient(server.url, retries=5)
    closing = threading.Timer(0.3, client.close)
    closing.start()
    with soon(), pytest.raises(errors.RequestCancelled):
        client.prompt(steps(["refuse", "d", 9, "UNAVAILABLE", "server_busy: full; try again in 30 s"], ["prompt"]))
    closing.join()


def attune(server, *arguments):
    return CliRunner().invoke(cli.main, [str(each) for each in arguments], env={"ATTUNE_URL": server.url})


def test_the_command_waits_for_a_busy_server_and_says_so(server, tmp_path):
    text = steps(["refuse", "a", 2, "UNAVAILABLE", "server_busy: 16 are at work; try again in 1 s"], *ALL)
    result = attune(server, "play", "--text", text, "-o", tmp_path / "music.wav")
    assert result.exit_code == 0, result.output
    # Who is refused again stays away for longer.
    assert result.stderr.splitlines()[:2] == [
        f"waiting for {pause_s} s: 16 are at work; try again in 1 s" for pause_s in (1, 2)
    ]
    assert sf.info(tmp_path / "music.wav").frames == FRAMES


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (["abort", "UNAVAILABLE", "server_busy: full; try again in 31 s"], "Error: full; try again in 31 s\n"),
        (["abort", "INVALID_ARGUMENT", "invalid_option: no theremin"], "Error: no theremin\n"),
        (["abort", "CANCELLED", ""], "went away before the answer was complete"),
    ],
)
def test_the_command_does_not_wait_for_what_will_not_come(server, tmp_path, step, told):
    with soon():
        result = attune(server, "play", "--text", steps(step), "-o", tmp_path / "music.wav")
    assert result.exit_code == 1
    assert told in result.stderr
    assert report(server).begun == 1


def test_several_refused_at_once_are_told_once(capsys):
    policy = patiently()
    for _ in range(8):
        policy.attempts({}).pause_s(errors.ServerBusy("full", 2))
    assert capsys.readouterr().err.count("waiting for") == 1
