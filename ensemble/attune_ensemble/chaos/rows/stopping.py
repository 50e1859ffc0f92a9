"""The end in order: SIGTERM while everything is in use."""

from __future__ import annotations

import time

from attune_ensemble.chaos.harness.calls import Call, Outcome, Play, Prompt, describe
from attune_ensemble.chaos.harness.case import Case, Row

__all__ = ["ROWS"]

STREAMS = 8
STOP_S = 60.0


def terminate(case: Case) -> None:
    """Eight streams play on to their end, new calls are told that the server is not available, nothing stays."""
    server = case.fresh_server()
    # Each lasts four seconds after the signal.
    streams = [Play(seconds=20, pause_s=0.25, name="a stream in flight")] * (STREAMS // 2)
    with case.swarm(server, [streams, streams]) as swarm:
        heard = swarm.wait_until_heard(STREAMS, within_s=60)
        case.expect(heard == STREAMS, f"{heard} of {STREAMS} streams began: {describe(swarm.ended)}")
        server.note()
        signalled_s = time.monotonic()
        server.process.terminate()
        case.expect(server.wait_for("draining", 5.0, signalled_s), "no event told that it drains")
        new = [case.ask(server, Prompt(name="a new call"), patience_s=10.0) for _ in range(3)]
        playing = swarm.wait(within_s=60)
    wrong = [one for one in new if one.error not in ("ServerUnavailable", "ServerBusy")]
    case.expect(not wrong, f"new calls must be told that it is not available: {describe(wrong, 2)}")
    slow = [one for one in new if one.seconds > 1.0]
    case.expect(not slow, f"new calls must be told at once: {describe(slow, 2)}")
    case.all_answered([one for one in playing if one.started_s < signalled_s], "streams in flight")
    code = server.wait_exit(STOP_S)
    case.expect(code == 0, f"its exit status is {code}, not 0")
    case.expect(server.events("drained", signalled_s), "no event told that it has drained")
    case.leaves_nothing(server)


def terminate_under_calls(case: Case) -> None:
    """Requests that are in flight are answered, each."""
    server = case.fresh_server()
    calls: list[Call] = [Play(audio=case.clip), Play(audio=case.clip), Prompt(), Prompt()]
    case.all_answered(case.at_once(server, calls), "calls before")
    begun = case.begin(server, [Play(audio=case.clip, seconds=5, name="a call in flight")] * 4)
    case.pause(0.5)
    server.note()
    server.process.terminate()
    ended = begun.wait()
    case.expect(sum(one.outcome == Outcome.ANSWERED for one in ended) == 4, f"in flight: {describe(ended)}")
    code = server.wait_exit(STOP_S)
    case.expect(code == 0, f"its exit status is {code}, not 0")
    case.leaves_nothing(server)


ROWS = (
    Row("terminate", "SIGTERM with 8 streams, and new calls coming", terminate, limit_s=300),
    Row("terminate-calls", "SIGTERM with 4 recordings in flight", terminate_under_calls, limit_s=300),
)
