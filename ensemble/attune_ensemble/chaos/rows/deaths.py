"""Processes that are killed or paused: a stub, the packaged server, the supervisor."""

from __future__ import annotations

import time
from collections.abc import Sequence

from attune_ensemble.chaos.harness.calls import Analyse, Call, Ended, Outcome, Play, Prompt, describe
from attune_ensemble.chaos.harness.case import Case, Row
from attune_ensemble.chaos.harness.served import Served

__all__ = ["ROWS"]

STUB_BACK_S = 10.0
SERVER_BACK_S = 30.0
TOLD_S = 2.0
"""A stub's death is seen within 0.3 s, and told to every caller within a second of that; the rest is for the clock."""

SUPERVISOR_TOLD_S = 5.0
"""Its connections are closed by the system."""

PAUSED_S = 1.5

QUICK_MODELS = ("speech_emotion", "music_generator", "sentence_encoder")
"""One that calls others, one that streams, and one graph."""


def probe(case: Case, model: str) -> Call:
    """The cheapest call that needs a model."""
    if model in ("music_prompt", "sentence_encoder", "text_tokenizer"):
        return Prompt()
    if model in ("music_generator", "music_therapy"):
        return Play()
    return Analyse(case.clip)


def models(case: Case, server: Served) -> list[str]:
    """The models whose stubs are killed: a few of them in the quick run."""
    found = sorted(server.stubs())
    case.require(found, "the server has no stubs")
    return [model for model in found if not case.quick or model in QUICK_MODELS]


def tells(case: Case, server: Served, model: str, killed_s: float) -> None:
    """Whoever operates the server reads of the death and of the recovery."""
    for event in ("model_died", "model_recovered"):
        case.expect(server.wait_for(event, 5.0, killed_s, model=model), f"no event {event} of {model}")


FOR_SPEECH = (
    *("speech_to_text", "emotion_encoder", "valence", "arousal_dominance"),
    *("emotion_classifier", "speech_emotion"),
)
"""Models that nobody needs who has neither a recording nor a VAD."""


def kill_idle(case: Case) -> None:
    """Each stub while nothing is asked; whoever does not need it is answered, and then its model must serve again."""
    server = case.server()
    for model in models(case, server):
        killed_s = server.kill_stub(model)
        if model in FOR_SPEECH:
            case.expect(server.wait_for("model_died", 5.0, killed_s, model=model), f"no event of the death of {model}")
            case.all_answered([case.ask(server, Play(name=f"music while {model} is away"))], "music for a text")
        case.recovers(server, probe(case, model), within_s=STUB_BACK_S, since_s=killed_s)
        tells(case, server, model, killed_s)


def kill_under_load(case: Case) -> None:
    """Each stub while four callers ask for everything; who waits for it is told in time."""
    server, killed = case.server(), {}
    with case.load(server, [Prompt(), Analyse(case.clip), Play(), Play(audio=case.clip)]):
        for model in models(case, server):
            case.pause(1.0)
            killed_s = killed[model] = server.kill_stub(model)
            case.recovers(server, probe(case, model), within_s=STUB_BACK_S, since_s=killed_s)
            tells(case, server, model, killed_s)
    for model, killed_s in killed.items():
        late = told_late(case.tally.all(), killed_s, TOLD_S)
        case.expect(not late, f"{model}: {len(late)} callers told late: {describe(late, 2)}")


def told_late(ended: Sequence[Ended], killed_s: float, within_s: float) -> list[Ended]:
    """The calls in flight when something was killed that ended with an error, and later than within that time."""
    in_flight = [one for one in ended if one.started_s < killed_s < one.at_s]
    return [one for one in in_flight if one.outcome == Outcome.ERROR and one.at_s > killed_s + within_s]


def kill_mid_stream(case: Case) -> None:
    """Each stub while somebody listens: who needs it is told in time; others may hear the music to its end."""
    server = case.server()
    for model in models(case, server):
        streams = model in ("music_generator", "music_therapy")
        # Ten minutes, so that it is not made in advance; taken as fast as it comes, for what a listener has already
        # received is heard before the error that follows it.
        listener = Play(seconds=600, chunks=None if streams else 60, name=f"listening while {model} dies")
        with case.swarm(server, [[listener]]) as swarm:
            case.require(swarm.wait_until_heard(1, within_s=30), f"no music came: {describe(swarm.ended)}")
            killed_s = server.kill_stub(model)
            [ended] = swarm.wait(within_s=40)
        if ended.outcome == Outcome.ERROR:
            case.expect(ended.at_s - killed_s <= TOLD_S, f"{model}: told after {ended.at_s - killed_s:.1f} s")
            if not streams:
                case.note(f"{model} is no longer needed, and yet the music ended: {ended.error}")
        else:
            case.expect(not streams, f"{model}: nobody was told of its death: {ended}")
        case.recovers(server, probe(case, model), within_s=STUB_BACK_S, since_s=killed_s)


def kill_server(case: Case) -> None:
    """The packaged server, under load."""
    server = case.server()
    with case.load(server, [Prompt(), Analyse(case.clip), Play(seconds=5)]):
        case.pause(2.0)
        killed_s = server.kill_server()
        case.recovers(server, Play(audio=case.clip), within_s=SERVER_BACK_S, since_s=killed_s)
    case.expect(server.events("server_died", killed_s), "no event told of the server's death")
    case.expect(server.events("ready", killed_s), "no event told that it is ready again")
    server.note()


def kill_supervisor(case: Case) -> None:
    """The supervisor itself: callers are told, and nothing of it stays."""
    server = case.fresh_server()
    streams = [Play(seconds=600, pause_s=0.2)] * 2
    with case.swarm(server, [streams, [Analyse(case.clip)] * 2, [Prompt()] * 2]) as swarm:
        case.require(swarm.wait_until_heard(2, within_s=30), f"no music came: {describe(swarm.ended)}")
        killed_s = server.kill_supervisor()
        case.leaves_nothing(server)
        case.recoveries_s.append(time.monotonic() - killed_s)
        swarm.wait(within_s=30)
    late = told_late(swarm.ended, killed_s, SUPERVISOR_TOLD_S)
    case.expect(not late, f"told late: {describe(late)}")


def paused_stub(case: Case) -> None:
    """A stub that stands still for a moment while a request comes, as on an overloaded machine."""
    server = case.server()
    for model in models(case, server):
        packaged = server.server()
        with server.paused_stub(model):
            begun = case.begin(server, [probe(case, model)])
            case.pause(PAUSED_S)
        resumed_s = time.monotonic()
        begun.wait()
        after = server.server()
        if packaged is None or after is None or packaged.pid != after.pid:
            case.note(f"{model}: the packaged server was replaced")
        case.recovers(server, probe(case, model), within_s=STUB_BACK_S, since_s=resumed_s)


ROWS = (
    Row("kill-idle", "kill -9 of each stub, nothing asked", kill_idle, limit_s=300),
    Row("kill-load", "kill -9 of each stub under load", kill_under_load, limit_s=400, quick_limit_s=90),
    Row("kill-stream", "kill -9 of each stub while music is heard", kill_mid_stream, limit_s=600),
    Row("kill-server", "kill -9 of the packaged server under load", kill_server, limit_s=180),
    Row("kill-supervisor", "kill -9 of attune serve under load", kill_supervisor, limit_s=300),
    Row("pause-stub", "each stub stopped for 1.5 s while a request comes", paused_stub, limit_s=400),
)
