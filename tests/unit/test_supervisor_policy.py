"""What the supervisor decides, without any of its effects: `pytest tests/unit/test_supervisor_policy.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune_ensemble.serving.supervisor.policy import (
    CloseGuard,
    Drain,
    Ending,
    KillServer,
    LookAfter,
    LoseModel,
    OpenGuard,
    Phase,
    Policy,
    Recover,
    RegainModel,
    StartServer,
    Stop,
    Tell,
    WarmUp,
)
from attune_ensemble.serving.supervisor.times import Times

TIMES = Times(first_wait_s=1.0, longest_wait_s=8.0, forget_s=100.0, model_attempts=3, server_attempts=3, drain_s=10.0)
DIED = {"valence": (Ending.DIED, {"pid": 7, "signal": "SIGKILL"})}


def kinds(actions):
    return [type(action) for action in actions]


def told(actions, event):
    [fields] = [dict(action.fields) for action in actions if isinstance(action, Tell) and action.event == event]
    return fields


def only(actions, kind):
    [action] = [action for action in actions if isinstance(action, kind)]
    return action


def serving(times=TIMES) -> Policy:
    policy = Policy(times)
    policy.begin(0.0)
    policy.started(1, 1.0)
    policy.warmed(1, 2.0)
    policy.opened(1, 3.0)
    return policy


def test_it_is_ready_when_every_model_has_answered_and_not_before():
    policy = Policy(TIMES)
    assert policy.begin(0.0) == [Tell("starting"), StartServer(1)]
    assert policy.status.reason.startswith("starting")
    assert policy.started(1, 1.0) == [Tell("warming"), WarmUp(1)]
    assert not policy.status.is_ready
    assert policy.warmed(1, 2.0) == [OpenGuard(1)]
    assert not policy.status.is_ready
    assert policy.opened(1, 5.0) == [LookAfter(1), Tell("ready", {"seconds": 5.0})]
    assert policy.status.is_ready
    assert policy.status.serves("valence")


def test_a_server_that_cannot_be_started_the_first_time_is_not_tried_again():
    policy = Policy(TIMES)
    policy.begin(0.0)
    actions = policy.start_failed(1, "a port is taken", 1.0)
    assert actions == [Tell("gave_up", {"reason": "a port is taken"}), Stop(at_once=True)]
    assert policy.failure == "a port is taken"
    assert policy.status.phase is Phase.STOPPED


def test_a_server_that_dies_while_it_is_warmed_up_the_first_time_is_not_tried_again():
    policy = Policy(TIMES)
    policy.begin(0.0)
    policy.started(1, 1.0)
    assert kinds(policy.looked(-9, {}, 2.0)) == [Tell, Stop]
    assert "code -9" in policy.failure


def test_the_requests_of_a_dead_model_end_before_anything_else():
    policy = serving()
    actions = policy.looked(None, DIED, 10.0)
    assert kinds(actions) == [LoseModel, Tell, Recover]
    assert actions[0].model == "valence"
    assert told(actions, "model_died") == {"model": "valence", "reason": "died", "pid": 7, "signal": "SIGKILL"}
    assert actions[2] == Recover("valence", 1, 0.0)
    assert policy.status.reason == "degraded: model valence"
    assert not policy.status.serves("valence")
    assert policy.status.serves("arousal_dominance")
    assert policy.looked(None, DIED, 10.2) == [], "once"
    back = policy.recovered(1, "valence", 12.5)
    assert back == [RegainModel("valence"), Tell("model_recovered", {"model": "valence", "seconds": 2.5})]
    assert policy.status.is_ready
    assert policy.status.model_restarts == {"valence": 1}


def test_several_models_are_named():
    policy = serving()
    actions = policy.looked(None, {**DIED, "arousal_dominance": (Ending.STOPPED, {"pid": 8})}, 10.0)
    assert kinds(actions) == [LoseModel, Tell, Recover] * 2
    assert told(actions, "model_unresponsive")["reason"] == "stopped"
    assert policy.status.reason == "degraded: model arousal_dominance, valence"
    policy.recovered(1, "valence", 11.0)
    assert policy.status.reason == "degraded: model arousal_dominance"


@pytest.mark.parametrize("ending", [Ending.SILENT, Ending.FAILING])
def test_a_model_that_does_not_answer_is_brought_back_like_a_dead_one(ending):
    policy = serving()
    actions = policy.unresponsive(1, "valence", ending, 10.0)
    assert kinds(actions) == [LoseModel, Tell, Recover]
    assert told(actions, "model_unresponsive") == {"model": "valence", "reason": str(ending)}
    assert policy.unresponsive(1, "valence", ending, 10.0) == []


def test_a_model_that_dies_again_and_again_is_waited_for_longer_each_time():
    policy, waits = serving(), []
    for at_s in range(10, 80, 10):
        waits.append(only(policy.looked(None, DIED, at_s), Recover).after_s)
        policy.recovered(1, "valence", at_s + 1)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    late_s = 80 + TIMES.forget_s
    assert only(policy.looked(None, DIED, late_s), Recover).after_s == 0.0, "it is forgotten"


def test_a_model_that_does_not_come_back_takes_the_server_with_it():
    policy = serving()
    policy.looked(None, DIED, 10.0)
    first, second = (policy.not_recovered(1, "valence", "no memory", at_s) for at_s in (11.0, 12.0))
    assert told(first, "model_not_recovered") == {"model": "valence", "attempt": 1, "reason": "no memory"}
    assert [only(each, Recover).after_s for each in (first, second)] == [1.0, 2.0]
    last = policy.not_recovered(1, "valence", "no memory", 13.0)
    assert kinds(last) == [Tell, CloseGuard, KillServer]
    assert only(policy.looked(-9, {}, 14.0), StartServer) == StartServer(2, 1.0)


def test_a_dead_server_is_started_again_and_what_belongs_to_it_is_not_heeded():
    policy = serving()
    policy.looked(None, DIED, 9.0)
    actions = policy.looked(-9, {}, 10.0)
    assert kinds(actions) == [Tell, CloseGuard, Tell, StartServer]
    assert told(actions, "server_died") == {"code": -9}
    assert told(actions, "server_restarting") == {"attempt": 1, "in_s": 1.0}
    assert not policy.status.is_ready
    assert policy.looked(-9, DIED, 10.2) == [], "its models have died with it"
    for late in (policy.recovered(1, "valence", 11.0), policy.not_recovered(1, "valence", "gone", 11.0)):
        assert late == []
    assert policy.started(1, 11.0) == policy.warmed(1, 11.0) == policy.start_failed(1, "late", 11.0) == []
    assert policy.unresponsive(1, "valence", Ending.SILENT, 11.0) == policy.server_unresponsive(1, 11.0) == []
    policy.started(2, 12.0)
    policy.warmed(2, 13.0)
    assert told(policy.opened(2, 14.0), "ready") == {"seconds": 4.0}
    assert policy.status.is_ready
    assert policy.status.server_restarts == 1


def test_a_server_that_dies_too_often_is_given_up():
    policy = serving()
    for generation in range(1, TIMES.server_attempts + 1):
        actions = policy.looked(-11, {}, 10.0 * generation)
        assert only(actions, StartServer).after_s == 2.0 ** (generation - 1)
        policy.started(generation + 1, 10.0 * generation + 1)
        policy.warmed(generation + 1, 10.0 * generation + 2)
        policy.opened(generation + 1, 10.0 * generation + 3)
    actions = policy.looked(-11, {}, 50.0)
    assert kinds(actions) == [Tell, CloseGuard, Tell, Stop]
    assert policy.failure == "the server ended 4 times"


def test_a_server_that_dies_now_and_then_is_never_given_up():
    policy = serving()
    for generation in range(1, 20):
        now_s = generation * (TIMES.forget_s + 1)
        assert only(policy.looked(1, {}, now_s), StartServer) == StartServer(generation + 1, 1.0)
        policy.started(generation + 1, now_s)
        policy.opened(generation + 1, now_s)


def test_a_server_that_does_not_start_again_is_tried_as_often_as_one_that_dies():
    policy = serving()
    policy.looked(-9, {}, 10.0)
    for generation in (2, 3):
        actions = policy.start_failed(generation, "no memory", 11.0)
        assert kinds(actions) == [KillServer, Tell, CloseGuard, Tell, StartServer]
    assert Stop(at_once=True) in policy.start_failed(4, "no memory", 12.0)


def test_a_server_that_does_not_answer_is_ended():
    policy = serving()
    assert kinds(policy.server_unresponsive(1, 10.0)) == [Tell, CloseGuard, KillServer]


def test_a_signal_lets_what_is_in_flight_finish():
    policy = serving()
    assert policy.in_flight(0, 9.0) == [], "nobody asked it to stop"
    assert policy.stop_asked(2, 10.0) == [Drain(), Tell("draining", {"in_flight": 2})]
    assert policy.status.reason.startswith("draining")
    assert policy.in_flight(2, 11.0) == []
    assert policy.in_flight(0, 12.0) == [Tell("drained", {"in_flight": 0, "seconds": 2.0}), Stop()]
    assert policy.stop_asked(0, 13.0) == []


def test_what_is_in_flight_for_too_long_is_ended():
    policy = serving()
    policy.stop_asked(1, 10.0)
    assert policy.in_flight(1, 19.9) == []
    assert policy.in_flight(1, 20.0) == [Tell("drained", {"in_flight": 1, "seconds": 10.0}), Stop()]


def test_with_notice_new_requests_are_taken_for_a_while_though_it_is_not_ready():
    policy = serving(replace(TIMES, notice_s=3.0))
    assert policy.stop_asked(0, 10.0) == [Tell("draining", {"in_flight": 0})]
    assert "elsewhere" in policy.status.reason
    assert policy.status.serves("valence")
    assert policy.in_flight(0, 12.9) == [], "who has not looked yet still sends requests"
    assert policy.in_flight(0, 13.0) == [Drain()]
    assert "no new ones" in policy.status.reason
    assert policy.in_flight(1, 13.2) == [], "it came before it was refused"
    assert policy.in_flight(1, 22.9) == [], "the time for what is in flight begins after the notice"
    assert policy.in_flight(1, 23.0) == [Tell("drained", {"in_flight": 1, "seconds": 13.0}), Stop()]


def test_a_second_signal_ends_the_notice():
    policy = serving(replace(TIMES, notice_s=3.0))
    policy.stop_asked(1, 10.0)
    assert policy.stop_asked(1, 10.5) == [Stop(at_once=True)]


def test_a_second_signal_stops_at_once():
    policy = serving()
    policy.stop_asked(1, 10.0)
    assert policy.stop_asked(1, 10.5) == [Stop(at_once=True)]


@pytest.mark.parametrize("begun", [False, True])
def test_a_signal_before_it_serves_stops_at_once(begun):
    policy = Policy(TIMES)
    policy.begin(0.0)
    if begun:
        policy.started(1, 1.0)
    assert policy.stop_asked(0, 2.0) == [Stop(at_once=True)]
    assert policy.started(1, 3.0) == policy.warmed(1, 3.0) == policy.start_failed(1, "late", 3.0) == []
    assert policy.failure == ""


def test_a_signal_while_the_server_is_started_again_stops_at_once():
    policy = serving()
    policy.looked(-9, {}, 10.0)
    assert policy.stop_asked(0, 11.0) == [Stop(at_once=True)]


def test_a_model_that_dies_while_it_stops_is_told_and_not_brought_back():
    policy = serving()
    policy.stop_asked(1, 10.0)
    assert kinds(policy.looked(None, DIED, 11.0)) == [LoseModel, Tell]


def test_a_server_that_dies_while_it_stops_is_the_end():
    policy = serving()
    policy.stop_asked(1, 10.0)
    assert kinds(policy.looked(-11, {}, 11.0)) == [Tell, CloseGuard, Stop]
    assert policy.failure == ""


FACTS = st.sampled_from(
    [
        lambda policy, generation, now: policy.started(generation, now),
        lambda policy, generation, now: policy.warmed(generation, now),
        lambda policy, generation, now: policy.start_failed(generation, "no", now),
        lambda policy, generation, now: policy.looked(None, DIED, now),
        lambda policy, generation, now: policy.looked(-9, {}, now),
        lambda policy, generation, now: policy.unresponsive(generation, "valence", Ending.SILENT, now),
        lambda policy, generation, now: policy.server_unresponsive(generation, now),
        lambda policy, generation, now: policy.recovered(generation, "valence", now),
        lambda policy, generation, now: policy.not_recovered(generation, "valence", "no", now),
        lambda policy, generation, now: policy.stop_asked(1, now),
        lambda policy, generation, now: policy.in_flight(1, now),
    ]
)


@given(st.lists(st.tuples(FACTS, st.integers(0, 1), st.floats(0.0, 20.0)), max_size=60))
def test_whatever_happens_it_ends_once_and_is_ready_only_while_it_serves(facts):
    policy, generation, now_s, stops = Policy(TIMES), 0, 0.0, 0
    for fact, behind, later_s in [(lambda policy, generation, now: policy.begin(now), 0, 0.0), *facts]:
        now_s += later_s
        actions = fact(policy, max(1, generation - behind), now_s)
        if any(isinstance(action, OpenGuard) for action in actions):
            actions += policy.opened(generation, now_s)
        assert not stops or not actions, "nothing is done after the end"
        stops += sum(isinstance(action, Stop) for action in actions)
        for action in actions:
            if isinstance(action, StartServer):
                assert action.generation == generation + 1
                generation = action.generation
            if isinstance(action, Recover | WarmUp | LookAfter):
                assert action.generation == generation
        status = policy.status
        assert status.is_ready == (status.phase is Phase.SERVING and not status.lost)
    assert stops <= 1
