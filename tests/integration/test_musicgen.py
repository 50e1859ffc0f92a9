"""MusicGen behind the real server, with a checkpoint of random weights.

pytest tests/integration/test_musicgen.py
"""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from attune_client import AttuneClient
from attune_client.protocol.errors import InvalidOption, ServerUnavailable
from attune_client.protocol.models import MUSIC_GENERATOR
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.profiles import EMBEDDED
from attune_ensemble.music.engine import MusicRequest
from attune_ensemble.music.musicgen.music_engine import load_engine
from attune_ensemble.music.musicgen.statistics import METRICS
from attune_ensemble.music.plan import ConstantPlan
from attune_ensemble.serving.launcher.server import Server
from attune_export.repository_config import model_config, render
from tests.conftest import ROOT
from tests.musicgen_models import save_tiny_musicgen

pytestmark = pytest.mark.server

SPEC = MusicSpec(72.0, "dorian", "D", ("piano",), "mp")
RATE = 160
SLOTS, QUEUE = 2, 1


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`music_generator` alone, with MusicGen for its engine."""
    root = tmp_path_factory.mktemp("musicgen") / "repository"
    folder = root / MUSIC_GENERATOR.name / "1"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "model_repository" / MUSIC_GENERATOR.name / "1" / "model.py", folder)
    save_tiny_musicgen(folder / "musicgen")
    config = model_config(MUSIC_GENERATOR.name, EMBEDDED)
    for name, value in {"engine": "musicgen", "numerics": "float32", "slots": SLOTS, "queue": QUEUE}.items():
        config.parameters[name].string_value = str(value)
    (folder.parent / "config.pbtxt").write_text(render(config))
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(repository, log_file=repository.parent / "server.log") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[AttuneClient]:
    with AttuneClient(server.grpc_url, timeout_s=60) as client:
        yield client


def inputs(prompt: str = "calm", seconds: float = 1.0, seed: int = 3, **more: Any) -> dict[str, npt.NDArray[Any]]:
    texts = {"prompt": prompt, "music_spec": SPEC.to_json()}
    return {
        **{name: np.array([text.encode()], dtype=np.object_) for name, text in texts.items()},
        "duration_s": np.array([seconds], np.float32),
        "seed": np.array([seed], np.int64),
        **{name: np.array([value], MUSIC_GENERATOR.input(name).dtype.numpy) for name, value in more.items()},
    }


def play(client: AttuneClient, **wanted: Any) -> npt.NDArray[np.float32]:
    announcement, *chunks = client.stream(MUSIC_GENERATOR, inputs(**wanted))
    assert announcement["engine"][0] == b"musicgen"
    assert announcement["sample_rate"][0] == RATE
    return np.concatenate([chunk["music"] for chunk in chunks])


def metrics(server: Server) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("musicgen_")}


def wait_for(server: Server, name: str, fits: Callable[[float], bool]) -> None:
    """Gauges are written once a second."""
    deadline_s = time.monotonic() + 15
    while not fits(value := metrics(server)[name]):
        assert time.monotonic() < deadline_s, f"{name} stays at {value}"
        time.sleep(0.2)


def test_served_music_is_that_of_the_engine(client, repository):
    engine = load_engine(repository / MUSIC_GENERATOR.name / "1" / "musicgen", "cpu", "float32", 1, 1)
    alone = np.concatenate(list(engine.generate(MusicRequest(ConstantPlan(SPEC, "calm"), 1.0, seed=3), 1.0)))
    assert alone.shape == (RATE, 1)
    np.testing.assert_array_equal(play(client), alone)


def test_requests_play_side_by_side_each_with_its_own_settings(client):
    wanted = [{"seed": 3}, {"seed": 4, "top_k": 5}, {"seed": 3, "temperature": 0.0}]
    alone = [play(client, **one) for one in wanted]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda one: play(client, **one), wanted))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(alone[0], alone[2])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [({"guidance": 0.0}, "guidance must lie between"), ({"prompt": "a" * 300}, "prompt has 300 tokens")],
)
def test_a_bad_request_ends_alone(client, wanted, message):
    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(play, client), pool.submit(play, client, **wanted)
        with pytest.raises(InvalidOption, match=message):
            bad.result()
        assert len(good.result()) == RATE


def test_clients_that_vanish_free_their_slots_and_a_full_queue_says_so(client, server):
    streams = [client.stream(MUSIC_GENERATOR, inputs(seconds=600.0, seed=seed)) for seed in range(SLOTS + QUEUE)]
    for stream in streams:
        next(stream)
    wait_for(server, "musicgen_active_slots", lambda value: value == SLOTS)
    wait_for(server, "musicgen_waiting_requests", lambda value: value == QUEUE)
    with pytest.raises(ServerUnavailable, match="are waiting already"):
        play(client)
    for stream in streams:
        stream.close()
    for gauge in ("musicgen_active_slots", "musicgen_waiting_requests"):
        wait_for(server, gauge, lambda value: value == 0)
    assert len(play(client)) == RATE


def test_every_metric_is_published(client, server):
    play(client)
    wait_for(server, "musicgen_finished_requests", lambda value: value > 0)
    wait_for(server, "musicgen_steps_per_second", lambda value: value > 0)
    now = metrics(server)
    assert set(now) == set(METRICS)
    assert now["musicgen_first_audio_seconds"] > 0
