"""Listeners that are slow, or that vanish."""

from __future__ import annotations

from functools import partial

from attune_ensemble.chaos.harness.calls import Call, Outcome, Play, describe
from attune_ensemble.chaos.harness.case import Case, Row

__all__ = ["ROWS"]

GROWTH_MIB = 512.0
"""What sixteen slow listeners may cost while they listen, however long: a part of the music on each of its two ways
through the server, a window ahead in each model, and the composer's own score and voices: 32 MiB each."""

KEPT = 0.1
"""The part of its memory by which a server may be larger once they are gone."""

IDLE_S = 10.0


def slow_listeners(case: Case) -> None:
    """Sixteen listeners who take a chunk a second: memory is bounded, and given back."""
    server = case.server()
    seconds = 20 if case.quick else 150
    # As many have listened before, so that what is loaded at the first request, and kept of sixteen at once, is there.
    listen = partial(Play, seconds=600)
    with case.swarm(server, [[listen(chunks=70)] * 2] * 8) as swarm:
        swarm.wait(within_s=60)
    case.pause(1.0)
    before = server.footprint()
    listeners: list[list[Call]] = [[listen(pause_s=1.0, chunks=seconds)] * 2] * 8
    with case.unchanged(server), case.swarm(server, listeners, apart=True) as swarm:
        case.require(swarm.wait_until_heard(2, within_s=30), f"no music came: {describe(swarm.ended)}")
        most = before.memory_mib
        for _ in range(seconds // 5):
            case.pause(5.0)
            most = max(most, server.footprint().memory_mib)
        ended = swarm.wait(within_s=60)
    case.expect(any(one.outcome == Outcome.ANSWERED for one in ended), f"nobody could listen: {describe(ended, 2)}")
    case.pause(3.0 if case.quick else IDLE_S)
    after = server.footprint()
    case.note(f"before {before}; at most {most:.0f} MiB; after {after}")
    case.expect(most - before.memory_mib <= GROWTH_MIB, f"it grew by {most - before.memory_mib:.0f} MiB meanwhile")
    kept = after.memory_mib / before.memory_mib - 1
    case.expect(kept <= KEPT, f"it kept {kept:.0%} more memory afterwards")
    case.expect(after.shm_mib <= before.shm_mib + 16, f"{after.shm_mib:.0f} of {before.shm_mib:.0f} MiB in /dev/shm")


def vanished(case: Case) -> None:
    """Fifty listeners in ten clients that are killed amid their music; others are served at once."""
    server = case.server()
    clients = 4 if case.quick else 10
    before = server.footprint()
    rounds = 1 if case.quick else 3
    with case.unchanged(server):
        for _ in range(rounds):
            listeners: list[list[Call]] = [[Play(seconds=600, pause_s=0.5)] * 5] * clients
            with case.swarm(server, listeners, apart=True) as swarm:
                case.require(swarm.wait_until_heard(4, within_s=30), f"no music came: {describe(swarm.ended)}")
                swarm.wait_until_heard(5 * clients, within_s=3.0)
                case.note(f"{swarm.heard} of {5 * clients} heard music when they vanished")
            # A place is free again when the work has stopped.
            case.recovers(server, Play(), within_s=5.0)
    case.pause(3.0 if case.quick else IDLE_S)
    after = server.footprint()
    case.note(f"before {before}; after {after}")
    case.expect(after.handles <= before.handles + 20, f"{after.handles} handles, {before.handles} before")


ROWS = (
    Row("slow-listeners", "16 listeners take a chunk a second", slow_listeners, limit_s=420),
    Row("vanished", "50 listeners are killed amid their music", vanished, limit_s=240, quick_limit_s=60),
)
