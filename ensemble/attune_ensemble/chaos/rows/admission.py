"""More requests than the server takes on: what is refused is refused at once, and nobody takes all places."""

from __future__ import annotations

import time
from collections.abc import Sequence

from attune_ensemble.chaos.harness.calls import Analyse, Call, Ended, Outcome, Play, Prompt, describe
from attune_ensemble.chaos.harness.case import Case, Row
from attune_ensemble.chaos.harness.served import Served

__all__ = ["ROWS"]

REFUSED_S = 1.0
"""A refusal is an answer that costs nothing."""

FREE_S = 10.0
"""What was given up or timed out must not be worked through: the next good call is served within this time."""

GOODPUT = 0.9
"""Of the peak: what overload must leave, and what a recovered server must reach of a fresh one."""

ANOTHER_ADDRESS = "127.0.0.2"
"""A client is an address: on loopback there are many."""

CLOSED_S, OPEN_S = 2.0, 15.0
"""Until a load is steady, and is counted: of the open loop, all places are taken and the first are answered."""


def busy(ended: Sequence[Ended]) -> list[Ended]:
    """The calls that were refused because there is no place."""
    return [one for one in ended if one.error == "ServerBusy"]


def check_refusals(case: Case, refused: Sequence[Ended]) -> None:
    """Each refusal came at once, and says when to come back."""
    late = [one for one in refused if one.seconds > REFUSED_S]
    case.expect(not late, f"{len(late)} of {len(refused)} refusals took more than {REFUSED_S:g} s: {describe(late, 1)}")
    mute = [one for one in refused if one.retry_after_s is None]
    case.expect(not mute, f"{len(mute)} refusals do not say when to come back: {describe(mute, 1)}")


def is_served_soon(case: Case, server: Served, call: Call, within_s: float = FREE_S) -> None:
    """One good call is answered, and within the time."""
    ended = case.ask(server, call)
    case.all_answered([ended], "a good call afterwards")
    case.expect(ended.seconds <= within_s, f"a good call afterwards took {ended.seconds:.1f} s, not {within_s:g}")


def queue_full(case: Case) -> None:
    """More recordings at once than there are places; each process has a connection of its own."""
    server = case.server()
    clients, calls = (4, 16) if case.quick else (8, 16)
    with case.unchanged(server), case.swarm(server, [[Analyse(case.clip)] * calls] * clients, 120.0) as swarm:
        ended = swarm.wait(within_s=180)
    refused = busy(ended)
    case.expect(refused, f"none of {len(ended)} was refused")
    check_refusals(case, refused)
    other = [one for one in ended if one.outcome == Outcome.ERROR and one not in refused]
    case.expect(not other, f"errors that are no refusals: {describe(other, 2)}")


def greedy_client(case: Case) -> None:
    """One client holds all the streams that it gets; another one is served all the same."""
    server = case.server()
    with case.swarm(server, [[Play(seconds=600, pause_s=1.0)] * 40]) as swarm:
        case.require(swarm.wait_until_heard(2, within_s=30), f"no music came: {describe(swarm.ended)}")
        swarm.wait_until_heard(40, within_s=3.0)  # and longer, for those that it gets besides
        case.note(f"the greedy client has {swarm.heard} streams, and {len(swarm.ended)} of 40 were refused")
        calls: list[Call] = [Prompt(), Play(), Analyse(case.clip), Prompt(), Play()]
        modest = [case.ask(server, call, source=ANOTHER_ADDRESS) for call in calls]
        check_refusals(case, busy(swarm.ended))
    case.all_answered(modest, "calls of another client")


def crowd(case: Case) -> None:
    """200 calls and 50 streams at once, of ten clients."""
    server = case.server()
    calls: list[Call] = [Prompt(), Analyse(case.clip), Prompt(), Play(audio=case.clip)] * (2 if case.quick else 5)
    streams: list[Call] = [Play(seconds=5)] * (2 if case.quick else 5)
    with case.unchanged(server), case.swarm(server, [[*calls, *streams]] * 10, 240.0) as swarm:
        ended = swarm.wait(within_s=300)
    check_refusals(case, busy(ended))
    case.note(f"the slowest took {max(one.seconds for one in ended):.1f} s")
    case.expect(any(one.outcome == Outcome.ANSWERED for one in ended), "none was answered")


def no_time(case: Case) -> None:
    """200 calls with 50 ms each; the next good one is served."""
    server = case.server()
    count = 50 if case.quick else 200
    calls: list[Call] = [Prompt(deadline_s=0.05), Analyse(case.clip, deadline_s=0.05), Play(deadline_s=0.05)]
    with case.unchanged(server):
        case.at_once(server, [calls[number % len(calls)] for number in range(count)])
        is_served_soon(case, server, Prompt(), 2.0)
        is_served_soon(case, server, Play(audio=case.clip))


def little_time(case: Case) -> None:
    """60 recordings with 5 s each: what is not done in time is not done at all."""
    server = case.server()
    with case.unchanged(server):
        with case.swarm(server, [[Analyse(case.clip, deadline_s=5.0)] * 10] * 6) as swarm:
            ended = swarm.wait(within_s=30)
        late = [one for one in ended if one.seconds > 6.0]
        case.expect(not late, f"{len(late)} ended after their deadline and a second: {describe(late, 2)}")
        is_served_soon(case, server, Analyse(case.clip), 5.0)


def throughput(ended: Sequence[Ended], from_s: float, seconds: float) -> float:
    """Calls answered in a second, of those that ended within that time."""
    answered = [one for one in ended if one.outcome == Outcome.ANSWERED and 0 <= one.at_s - from_s <= seconds]
    return len(answered) / seconds


def peak(case: Case, server: Served, call: Call, seconds: float) -> float:
    """The most calls a second that a closed loop reaches, with a few numbers of callers."""
    best = 0.0
    for callers in (2, 4, 8):
        before, begun_s = len(case.tally.all()), time.monotonic()
        with case.load(server, [call], threads=callers):
            case.pause(seconds + CLOSED_S)
        best = max(best, throughput(case.tally.all()[before:], begun_s + CLOSED_S, seconds))
    return best


def overload(case: Case) -> None:
    """Twice what the server can do, whether it answers or not (open loop): it does no less for that."""
    seconds, call = 10.0 if case.quick else 30.0, Analyse(case.clip)
    server = case.fresh_server()
    case.require(case.ask(server, call).outcome == Outcome.ANSWERED, "the first call was not answered")
    fresh = peak(case, server, call, seconds)
    case.require(fresh, "no call was answered")
    begun_s = time.monotonic()
    rate_hz = 2 * fresh
    ended = case.open_loop(server, call, rate_hz=rate_hz, seconds=OPEN_S + seconds, patience_s=60.0)
    goodput = throughput(ended, begun_s + OPEN_S, seconds)
    check_refusals(case, busy(ended))
    recovered = peak(case, server, call, seconds)
    told = f"peak {fresh:.2f}/s, at {rate_hz:.2f}/s asked {goodput:.2f}/s, afterwards {recovered:.2f}/s"
    case.note(told)
    case.expect(goodput >= GOODPUT * fresh, f"overload costs more than a tenth: {told}")
    case.expect(recovered >= GOODPUT * fresh, f"a recovered server is slower than a fresh one: {told}")


ROWS = (
    Row("queue-full", "128 recordings at once", queue_full, limit_s=400, quick_limit_s=120),
    Row("greedy-client", "one client holds 40 streams, another one asks", greedy_client, 120, quick_limit_s=60),
    Row("crowd", "200 calls and 50 streams at once", crowd, limit_s=600),
    Row("deadline-50ms", "200 calls with 50 ms each, then a good one", no_time, limit_s=120, quick_limit_s=60),
    Row("deadline-5s", "60 recordings with 5 s each, then a good one", little_time, limit_s=120),
    Row("overload", "twice the peak of a closed loop", overload, limit_s=600),
)
