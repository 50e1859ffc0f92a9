"""The load and the comparison on the real server.

pytest tests/integration/test_bench_serving.py  # after `attune export`
"""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from attune_client.bench.serving.processor import GUARD, SERVER
from attune_client.cli import main
from attune_client.protocol.models import EMOTION_RECOGNITION, MUSIC_THERAPY

pytestmark = pytest.mark.server


def bench(server, *arguments):
    environment = {"ATTUNE_URL": server.grpc_url, "ATTUNE_SERVER_PID": str(server.process_id)}
    result = CliRunner().invoke(main, ["bench", *map(str, arguments)], env=environment)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_the_server_says_where_its_time_went(server, samples):
    models = ("--model", EMOTION_RECOGNITION.name, "--model", MUSIC_THERAPY.name)
    options = ("--concurrency", "2", "--seconds", 2, "--warmup", 0.5, "--music-seconds", 1, "--json")
    loads = {load["model"]: load for load in bench(server, "serving", samples[1], *models, *options)["loads"]}
    for load in loads.values():
        assert load["summary"]["errors"] == {}
        assert load["own_cores"] < 0.7
    recognised = loads[EMOTION_RECOGNITION.name]
    assert recognised["summary"]["answers_per_s"] > 0
    stages = {stage["model"]: stage for stage in recognised["stages"]}
    assert set(stages) == {step.name for step in EMOTION_RECOGNITION.steps} | {EMOTION_RECOGNITION.name}
    assert stages["emotion_encoder"]["compute_ms"] > stages["text_tokenizer"]["compute_ms"] > 0
    assert stages[EMOTION_RECOGNITION.name]["total_ms"] <= 1000 * recognised["summary"]["total"]["p99"]
    spent_ms = recognised["server_processor_ms"]
    assert {"emotion_encoder", "valence", "arousal_dominance", GUARD, SERVER} <= set(spent_ms)
    assert max(spent_ms, key=spent_ms.__getitem__) == "emotion_encoder"
    therapy = loads[MUSIC_THERAPY.name]["summary"]
    assert therapy["first"]["p50"] <= therapy["total"]["p50"]
    assert set(therapy["stages_s"]) == {"transcribe", "recognise", "prompt"}


def test_the_server_is_compared_with_the_same_models_in_one_process(server, samples):
    options = ("--rounds", 1, "--seconds", 1, "--warmup", 0.2, "--concurrency", "1", "--json")
    told = bench(server, "server-cost", samples[1], *options, "--repository", server.repository)
    steps = {step["model"]: step for step in told["steps"]}
    assert set(steps) == {step.name for step in EMOTION_RECOGNITION.steps}
    assert {*steps, EMOTION_RECOGNITION.name} <= {stage["model"] for stage in told["stages"]}
    assert told["turns"]["local_ms"] > steps["emotion_encoder"]["processor_ms"] > 10
    assert told["turns"]["served_ms"]["emotion_encoder"] > 10
    [row] = told["rows"]
    assert row["local"]["processor_ms"] > 0
    assert 0 < told["best_ratio"] < 2
