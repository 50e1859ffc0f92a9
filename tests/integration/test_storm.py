"""Many plays at once, given up and timed out at random, on a busy machine.

Run: pytest -m slow tests/integration/test_storm.py

The server's own way to call a model that streams (decoupled BLS) deadlocked or crashed in every storm of the toys, and
in some of the real models': whoever came later heard nothing, and every model still said that it was ready.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from attune_client import AttuneClient
from attune_client.protocol.errors import AttuneError, InvalidOption, RequestTimeout, ServerBusy
from attune_client.protocol.models import MUSIC_THERAPY
from attune_client.protocol.profiles import EMBEDDED
from attune_client.protocol.tensors import Tensors, bytes_tensor
from attune_ensemble.serving.launcher.server import Server
from attune_export.repository_config import model_config, render
from tests.conftest import ROOT

pytestmark = [pytest.mark.server, pytest.mark.slow]

CLIENTS = 16
STORM_S = {"toys": 30.0, "models": 90.0}
SILENCE_S = 45.0
"""Who hears nothing for so long has been forgotten."""

HEAD = """
import numpy as np
import triton_python_backend_utils as pb_utils
from attune_client.protocol import models
from attune_client.protocol.errors import InvalidOption
from attune_ensemble.serving.adapter import Adapter

class TritonPythonModel:
    def initialize(self, args):
        self.triton = Adapter(models.{name}, args, pb_utils)
        {initialize}

    def execute(self, requests):
        self.triton.stream(requests, self.play)

    def finalize(self):
        self.triton.close()
"""

GENERATOR = f"""{HEAD.format(name="MUSIC_GENERATOR", initialize="")}
    def play(self, inputs, context):
        if "engine" in inputs:
            raise InvalidOption("there is no such engine")
        yield {{"engine": "toy", "duration_s": 1, "sample_rate": 24_000, "seed": 1}}
        for index in range(30 if "check_only" not in inputs else 0):
            yield {{"music": np.full((800, 2), index / 30)}}
"""

# As the real one does: a call that asks what will be played, and then the music.
THERAPY = f"""{HEAD.format(name="MUSIC_THERAPY", initialize="self.call_stream = self.triton.call_stream")}
    def play(self, inputs, context):
        wish = {{"prompt": inputs["text"], "music_spec": inputs["text"]}}
        wish |= {{name: inputs[name] for name in ("engine",) if name in inputs}}
        check = wish | {{"check_only": np.array([1], np.int32)}}
        list(self.call_stream("music_generator", check, context=context))
        yield from self.call_stream("music_generator", wish, context=context)
"""

TOYS = {"music_generator": GENERATOR, "music_therapy": THERAPY}

# What plays without a recording: hearing one is another matter.
MODELS = (*TOYS, "music_prompt", "sentence_encoder", "text_tokenizer", "emotion_classifier")


def toys(folder: Path) -> Path:
    """A repository of the two models that stream, with next to nothing to do in each."""
    for name, code in TOYS.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(code)
        (folder / name / "config.pbtxt").write_text(render(model_config(name, EMBEDDED)))
    return folder


@pytest.fixture(params=STORM_S)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def server(kind: str, tmp_path: Path) -> Iterator[Server]:
    repository, models = (toys(tmp_path / "toys"), TOYS) if kind == "toys" else (ROOT / "model_repository", MODELS)
    # Models named one by one can be unloaded.
    options = {"log_file": tmp_path / "server.log", "models": tuple(models), "exit_timeout_s": 20}
    with Server(repository, **options) as server:
        yield server


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Each core has something else to do, so that threads are interrupted anywhere."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


def play_to_the_end(client: AttuneClient, chance: random.Random) -> str:
    first, *rest = client.stream(MUSIC_THERAPY, wish(chance, duration_s=1))
    frames = sum(len(response["music"]) for response in rest)
    return "played" if frames == first["sample_rate"][0] * first["duration_s"][0] else f"{frames} frames"


def give_up(client: AttuneClient, chance: random.Random) -> str:
    stream = client.stream(MUSIC_THERAPY, wish(chance, duration_s=chance.choice([1, 600])))
    for _ in range(chance.randrange(5)):
        next(stream, None)
    stream.close()
    return "given up"


def hurry(client: AttuneClient, chance: random.Random) -> str:
    """A deadline at any moment, before the first answer or amid the music."""
    try:
        list(client.stream(MUSIC_THERAPY, wish(chance, duration_s=600, deadline_s=chance.uniform(0.01, 2.0))))
    except RequestTimeout:
        return "timed out"
    return "played"


def ask_for_what_is_not_there(client: AttuneClient, chance: random.Random) -> str:
    try:
        list(client.stream(MUSIC_THERAPY, wish(chance) | {"engine": bytes_tensor("theremin")}))
    except InvalidOption:
        return "refused"
    return "played"


def wish(chance: random.Random, **numbers: float) -> Tensors:
    text = chance.choice(["rain on the window, and nobody to wait for", "a quiet evening"])
    return {"text": bytes_tensor(text)} | {name: np.array([value], np.float32) for name, value in numbers.items()}


def weather(url: str, seed: int, until_s: float) -> Counter[str]:
    """What one client lives through."""
    chance, seen = random.Random(seed), Counter[str]()
    with AttuneClient(url, timeout_s=SILENCE_S) as client:
        while time.monotonic() < until_s:
            action = chance.choice([play_to_the_end, give_up, hurry, ask_for_what_is_not_there])
            try:
                seen[action(client, chance)] += 1
            except ServerBusy:
                seen["busy"] += 1
            except AttuneError as error:
                seen[f"{action.__name__}: {type(error).__name__}: {error}"] += 1
    return seen


def test_a_storm_of_plays_leaves_every_model_at_work(kind, server, busy_machine):
    processes = set(server.process_ids())
    until_s = time.monotonic() + STORM_S[kind]
    with ThreadPoolExecutor(CLIENTS) as pool:
        seen = sum(pool.map(lambda seed: weather(server.grpc_url, seed, until_s), range(CLIENTS)), Counter[str]())
    print(kind, dict(seen))
    assert {"played", "given up", "timed out", "refused"} <= set(seen)
    assert set(seen) <= {"played", "given up", "timed out", "refused", "busy"}
    assert set(server.process_ids()) == processes
    with AttuneClient(server.grpc_url, timeout_s=SILENCE_S) as client:
        assert play_to_the_end(client, random.Random(0)) == "played"
    assert has_been_unloaded(server, "music_generator"), "a call was never released"


def has_been_unloaded(server: Server, model: str) -> bool:
    """Whether a model can be unloaded, which it cannot as long as the server holds a request to it."""
    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.unload_model(model)
    deadline_s = time.monotonic() + SILENCE_S
    while f"successfully unloaded '{model}'" not in server.log_file.read_text():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True
