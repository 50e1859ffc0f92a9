"""The supervisor's thread, around a server and a guard that only note what is done: `pytest
tests/unit/test_supervisor_loop.py`.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from pathlib import Path

import pytest

from attune_client.protocol.errors import ServerError, ServerUnavailable
from attune_ensemble.serving.configuration import BrokenRepository
from attune_ensemble.serving.launcher.ports import LOOPBACK, free_ports
from attune_ensemble.serving.supervisor import supervisor as module
from attune_ensemble.serving.supervisor.policy import Ending
from attune_ensemble.serving.supervisor.supervisor import GaveUp, Supervisor
from attune_ensemble.serving.supervisor.times import Times

TIMES = Times(look_s=0.005, first_wait_s=0.01, longest_wait_s=0.05, drain_s=0.3, server_attempts=2, alive_s=5.0)
MODELS = ("arousal_dominance", "valence")


class World:
    """Notes what is done, in order, and holds what happens. `endings` are those of processes."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.servers: list[FakeServer] = []
        self.endings: dict = {}
        self.flights = 0
        self.fails: dict[str, list[Exception]] = {}
        self.starting = threading.Event()
        self.starting.set()

    def note(self, what: str) -> None:
        self.done.append(what)
        if self.fails.get(what):
            raise self.fails[what].pop(0)

    def wait_for(self, what: str, times: int = 1) -> None:
        deadline_s = time.monotonic() + 10
        while self.done.count(what) < times:
            assert time.monotonic() < deadline_s, f"waited for {what} in vain: {self.done}"
            time.sleep(0.002)


class FakeServer:
    metrics_url, process_id, models = f"{LOOPBACK}:1", 1, MODELS

    def __init__(self, world, repository, **options) -> None:
        self.world, self.options = world, options
        self.code, self.killed = None, threading.Event()
        world.servers.append(self)
        self.grpc_url = f"unix:{len(world.servers)}"

    def start(self):
        self.world.note("server.start")
        while not self.world.starting.wait(0.01):
            if self.killed.is_set():
                raise ServerUnavailable("given up")

    def exit_code(self):
        return self.code

    def stubs(self):
        return {"valence": (self.world.done.count("reload valence"),)}

    def reload(self, model, timeout_s):
        self.world.note(f"reload {model}")
        self.world.endings = {}

    def kill(self):
        self.world.note("server.kill")
        self.killed.set()
        self.code = -9

    def stop(self):
        self.world.note("server.stop")


class FakeGuard:
    def __init__(self, world) -> None:
        self.world = world

    def start(self):
        self.world.note("guard.start")

    def open(self, url):
        self.world.note(f"guard.open {url}")

    def close(self, error):
        assert isinstance(error, ServerUnavailable)
        self.world.note("guard.close")
        self.world.flights = 0

    def lose(self, models, error):
        assert isinstance(error, ServerUnavailable)
        self.world.note(f"guard.lose {' '.join(models)}")

    def regain(self, models):
        self.world.note(f"guard.regain {' '.join(models)}")

    def drain(self, error):
        self.world.note("guard.drain")

    def in_flight(self):
        return self.world.flights

    def figures(self):
        return {"attune_guard_in_flight": float(self.world.flights)}

    def stop(self):
        self.world.note("guard.stop")


class FakeWatch:
    def __init__(self, world) -> None:
        self.world = world

    def expect(self, stubs):
        self.world.note(f"expect {stubs}")

    def processes_of(self, model):
        return ()

    def forget(self, model):
        self.world.note(f"forget {model}")

    def endings(self):
        return self.world.endings

    def server_is_stopped(self):
        return False


class FakeAsker:
    def __init__(self, world) -> None:
        self.world = world

    def warm_up(self):
        self.world.note("warm_up")

    def warm(self, model):
        self.world.note(f"warm {model}")

    def needed_by(self, model):
        return frozenset({"valence"} if model == "emotion_recognition" else ())

    def look_after(self, over, **told):
        self.world.note("look_after")
        over.wait(10)
        self.world.note("over")


class FakeControl:
    def __init__(self, url) -> None:
        pass

    def close(self):
        pass


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(module, "Server", lambda *arguments, **options: FakeServer(world, *arguments, **options))
    monkeypatch.setattr(module, "Guard", lambda *arguments: FakeGuard(world))
    monkeypatch.setattr(module, "ProcessWatch", lambda *arguments: FakeWatch(world))
    monkeypatch.setattr(module, "Asker", lambda *arguments: FakeAsker(world))
    monkeypatch.setattr(module, "Control", FakeControl)
    monkeypatch.setattr(module, "kill", lambda processes: world.note(f"kill {processes}"))
    return world


@pytest.fixture
def supervisor(world, tmp_path):
    def tell(event, **fields):
        world.note(event)

    supervisor = Supervisor(Path("models"), ports=free_ports(), log_file=tmp_path / "log", times=TIMES, tell=tell)
    yield supervisor
    world.starting.set()
    supervisor.stop()


def test_requests_are_let_through_when_every_model_has_answered(world, supervisor):
    assert supervisor.start()
    assert supervisor.status.is_ready
    assert supervisor.is_alive()
    assert [what for what in world.done if not what.startswith(("expect", "look"))] == [
        "guard.start",
        "starting",
        "server.start",
        "warming",
        "warm_up",
        "guard.open unix:1",
        "ready",
    ]
    assert "attune_guard_in_flight 0\n" in supervisor.metrics()


def test_a_model_that_died_is_away_until_it_has_answered(world, supervisor):
    supervisor.start()
    begun = len(world.done)
    world.endings = {"valence": (Ending.DIED, {})}
    world.wait_for("model_recovered")
    assert world.done[begun:] == [
        "guard.lose valence",
        "model_died",
        "kill ()",
        "forget valence",
        "kill (0,)",
        "reload valence",
        "warm valence",
        "expect {'valence': (1,)}",
        "guard.regain valence",
        "model_recovered",
    ]
    assert supervisor.status.is_ready


def test_a_model_that_does_not_answer_after_that_is_tried_again(world, supervisor):
    supervisor.start()
    world.fails = {"warm valence": [ServerError("no")], "reload valence": [ServerUnavailable("no")]}
    world.endings = {"valence": (Ending.DIED, {})}
    world.wait_for("model_recovered")
    assert world.done.count("model_not_recovered") == 2
    assert world.done.count("guard.regain valence") == 1


def test_what_needs_another_one_that_is_away_is_asked_after_it(world, supervisor):
    supervisor.start()
    world.fails = {"reload valence": [ServerUnavailable("no")]}
    world.endings = {"emotion_recognition": (Ending.DIED, {}), "valence": (Ending.DIED, {})}
    world.wait_for("model_recovered", 2)
    assert world.done.index("reload emotion_recognition") < world.done.index("guard.regain valence")
    assert world.done.index("guard.regain valence") < world.done.index("warm emotion_recognition")


def test_a_server_that_died_is_followed_by_another(world, supervisor):
    supervisor.start()
    world.servers[0].code = -11
    world.wait_for("ready", 2)
    after = world.done[world.done.index("server_died") :]
    assert after[:2] == ["server_died", "guard.close"]
    steps = ["guard.close", "server_restarting", "server.stop", "server.start", "warm_up", "guard.open unix:2", "ready"]
    assert [after.index(step) for step in steps] == sorted(after.index(step) for step in steps)
    assert "over" in after, "nobody looks after the old one"
    assert [server.options["go_on_in_log"] for server in world.servers] == [False, True]
    assert supervisor.status.server_restarts == 1


def test_a_server_that_dies_too_often_is_given_up(world, supervisor):
    supervisor.start()
    for count in range(2, 5):
        world.servers[-1].code = -11
        world.wait_for("ready" if count < 4 else "stopped", count if count < 4 else 1)
    supervisor.wait()
    assert isinstance(supervisor.error, GaveUp)
    assert str(supervisor.error) == "the server ended 3 times"
    assert world.done[-1] == "stopped"
    assert not supervisor.is_alive()


def test_a_server_that_answers_nobody_is_followed_by_another(world, supervisor):
    supervisor.start()
    world.fails = {"guard.open unix:2": [ServerUnavailable("nobody there")]}
    world.servers[0].code = -11
    world.wait_for("guard.open unix:3")
    assert supervisor.status.server_restarts == 2


@pytest.mark.parametrize("step", ["server.start", "warm_up"])
def test_a_repository_that_cannot_be_served_is_told_by_start(world, supervisor, step):
    world.fails = {step: [BrokenRepository("valence is missing")]}
    with pytest.raises(BrokenRepository, match="valence is missing"):
        supervisor.start()
    assert {"gave_up", "guard.stop", "server.stop", "stopped"} <= set(world.done)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, int(supervisor.http_url.rpartition(":")[2])), 1)


def test_too_many_open_files_are_no_end_of_the_service(world, supervisor):
    supervisor.start()
    world.fails = {"reload valence": [OSError(errno.EMFILE, "Too many open files")]}
    world.endings = {"valence": (Ending.DIED, {})}
    world.wait_for("model_recovered")
    assert world.done.count("model_not_recovered") == 1
    assert supervisor.error is None


def test_a_model_whose_process_ends_once_it_has_answered_is_brought_back_again(world, supervisor):
    supervisor.start()
    stubs = [{}, {"valence": (7,)}]
    world.servers[0].stubs = lambda: {} if world.done[-1] == "forget valence" else stubs.pop(0)
    world.endings = {"valence": (Ending.DIED, {})}
    world.wait_for("model_recovered")
    assert world.done.count("reload valence") == 2
    assert "expect {'valence': ()}" not in world.done


def test_a_second_wish_to_stop_is_heard_while_it_stops(world, supervisor):
    supervisor.start()
    server, over = world.servers[0], threading.Event()
    server.stop = lambda: over.wait(10)
    server.kill = over.set
    supervisor.ask_to_stop()
    world.wait_for("drained")
    time.sleep(2 * TIMES.look_s)
    assert supervisor.is_alive(), "it stops, and is not hung"
    supervisor.ask_to_stop()
    supervisor.wait()
    assert over.is_set()


def test_what_is_being_brought_back_is_not_waited_for(world, supervisor, monkeypatch):
    monkeypatch.setattr(module, "_JOIN_S", 0.1)
    supervisor.start()
    reloading, over = threading.Event(), threading.Event()

    def reload(model, timeout_s):
        reloading.set()
        over.wait(10)

    world.servers[0].reload = reload
    world.servers[0].stop = over.set  # a call to a server that has ended fails
    world.endings = {"valence": (Ending.DIED, {})}
    assert reloading.wait(5)
    began_s = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began_s < 5


def test_what_nobody_foresaw_ends_it_in_order(world, supervisor, capsys):
    supervisor.start()
    world.fails = {"reload valence": [KeyError("a mistake of ours")]}
    world.endings = {"valence": (Ending.DIED, {})}
    supervisor.wait()
    assert isinstance(supervisor.error, GaveUp)
    assert "a mistake of ours" in str(supervisor.error)
    assert {"guard.stop", "server.kill", "server.stop", "stopped"} <= set(world.done)
    assert "Traceback" in capsys.readouterr().err


def test_a_port_in_use_is_told_and_everything_given_back(world, supervisor):
    taken = (LOOPBACK, int(supervisor.http_url.rpartition(":")[2]))
    with socket.create_server(taken), pytest.raises(ServerUnavailable, match="cannot be used"):
        supervisor.start()
    assert world.done[0] == "guard.start"
    assert "guard.stop" in world.done
    assert not world.servers


def test_what_is_in_flight_may_finish(world, supervisor):
    supervisor.start()
    world.flights = 2
    supervisor.ask_to_stop()
    world.wait_for("draining")
    time.sleep(0.05)
    assert "drained" not in world.done
    assert not supervisor.status.is_ready
    world.flights = 0
    supervisor.wait()
    after = world.done[world.done.index("guard.drain") :]
    steps = ["guard.drain", "draining", "drained", "guard.stop", "server.stop", "stopped"]
    assert [after.index(step) for step in steps] == sorted(after.index(step) for step in steps)
    assert "server.kill" not in world.done
    assert supervisor.error is None


def test_what_does_not_finish_is_told(world, supervisor):
    supervisor.start()
    world.flights = 2
    began_s = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began_s >= TIMES.drain_s
    assert world.done.index("drained") < world.done.index("guard.close") < world.done.index("guard.stop")


def test_asked_twice_it_stops_at_once(world, supervisor):
    supervisor.start()
    world.flights = 2
    supervisor.ask_to_stop()
    world.wait_for("draining")
    supervisor.ask_to_stop()
    supervisor.wait()
    assert "drained" not in world.done
    assert world.done.index("guard.close") < world.done.index("server.kill")


def test_asked_while_it_starts_it_gives_up_the_start(world, supervisor):
    world.starting.clear()
    served = []
    starting = threading.Thread(target=lambda: served.append(supervisor.start()))
    starting.start()
    world.wait_for("server.start")
    supervisor.ask_to_stop()
    starting.join(10)
    assert not starting.is_alive()
    assert served == [False]
    assert world.servers[0].killed.is_set()
    assert supervisor.error is None
    assert not supervisor.is_alive()
