"""What many requests leave in memory, in handles and in /dev/shm, and what twenty minutes do."""

from __future__ import annotations

import time
from collections.abc import Iterator

from attune_ensemble.chaos.harness.calls import Analyse, Call, Outcome, Play, Prompt, describe
from attune_ensemble.chaos.harness.case import Case, Row
from attune_ensemble.chaos.harness.processes import Footprint
from attune_ensemble.chaos.harness.served import Served

__all__ = ["ROWS"]

GROWTH = 0.1
HANDLES = 10
SHM_MIB = 8.0
EARLY, LATE = 200, 2000
QUICK_EARLY, QUICK_LATE = 30, 120

SOAK_S = 1200.0
IDLE_S = 5.0


def mixture(case: Case, count: int) -> Iterator[Call]:
    """Small requests: nineteen prompts and plays to a recording."""
    small: tuple[Call, ...] = (Prompt(), Play(), Prompt("a quiet evening after a long day"))
    for number in range(count):
        yield Analyse(case.clip) if number % 20 == 0 else small[number % len(small)]


def work_off(case: Case, server: Served, count: int) -> None:
    """So many requests, four at a time."""
    calls = list(mixture(case, count))
    for first in range(0, count, 4):
        case.check_time()
        case.all_answered(case.at_once(server, calls[first : first + 4]), "small requests")


def settled(case: Case, server: Served) -> Footprint:
    """What the server holds when nothing is in flight."""
    case.pause(IDLE_S)
    return server.footprint()


def footprint(case: Case) -> None:
    """2,000 requests cost no more than 200 did."""
    server = case.fresh_server()
    early, late = (QUICK_EARLY, QUICK_LATE) if case.quick else (EARLY, LATE)
    work_off(case, server, early)
    before = settled(case, server)
    work_off(case, server, late - early)
    after = settled(case, server)
    compare(case, before, after, f"after {early:,} requests {before}; after {late:,} {after}")


def compare(case: Case, before: Footprint, after: Footprint, told: str) -> None:
    """Memory, handles, shared memory and processes have not grown."""
    case.note(told)
    growth = after.memory_mib / before.memory_mib - 1
    case.expect(growth <= GROWTH, f"memory grew by {growth:.0%}: {told}")
    case.expect(after.handles <= before.handles + HANDLES, f"handles grew: {told}")
    case.expect(after.shm_mib <= before.shm_mib + SHM_MIB, f"/dev/shm grew: {told}")
    case.expect(after.processes == before.processes, f"{before.processes} processes became {after.processes}")


def soak(case: Case) -> None:
    """Twenty minutes at half of what it can do; the processes stay the same, and so does what they hold."""
    server = case.fresh_server()
    seconds = 60.0 if case.quick else SOAK_S
    calls: list[Call] = [Prompt(), Play(seconds=5), Analyse(case.clip), Play(audio=case.clip)]
    case.all_answered(case.at_once(server, calls), "the first calls")
    begun_s = time.monotonic()
    before_load = len(case.tally.all())
    with case.load(server, calls, threads=4):
        case.pause(20.0)
    rate_hz = 0.5 * (len(case.tally.all()) - before_load) / (time.monotonic() - begun_s)
    before = settled(case, server)
    with case.unchanged(server):
        ended = case.open_loop(server, *calls, rate_hz=max(rate_hz, 0.1), seconds=seconds, patience_s=60.0)
    other = [one for one in ended if one.outcome != Outcome.ANSWERED]
    case.expect(not other, f"{len(other)} of {len(ended)} not answered at half load: {describe(other, 2)}")
    compare(case, before, settled(case, server), f"{rate_hz:.2f} requests a second; before {before}")


ROWS = (
    Row("footprint", "memory after 2,000 requests and after 200", footprint, limit_s=1800),
    Row("soak", "20 minutes at half load", soak, limit_s=1800, alone=True),
)
