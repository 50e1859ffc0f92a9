"""The attune command against the real server: `pytest tests/integration/test_cli.py` (after `attune export`)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile as sf
from click.testing import CliRunner

from attune_client.cli import main
from attune_client.protocol.models import MODELS


@pytest.fixture
def attune(server):
    """Run a sub-command, the server's address in the environment."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(main, [str(a) for a in arguments], env={"ATTUNE_URL": server.grpc_url})


@pytest.fixture
def not_a_recording(tmp_path):
    path = tmp_path / "notes.wav"
    path.write_text("this is a text, not a recording")
    return path


def test_analyse_as_text_names_each_recording(attune, samples):
    result = attune("analyse", *samples)
    assert result.exit_code == 0
    for path in samples:
        assert path.name in result.output
    assert result.output.count("emotion") == len(samples)


def test_a_recording_that_fails_does_not_stop_the_others(attune, samples, not_a_recording):
    result = attune("analyse", "--json", samples[0], not_a_recording, samples[1])
    assert result.exit_code == 1
    first, bad, second = json.loads(result.stdout)
    assert bad["error"]["code"] == "unreadable_audio"
    for good, path in ((first, samples[0]), (second, samples[1])):
        assert good["file"] == str(path)
        assert set(good) == {
            *("file", "transcript", "language", "language_probability"),
            *("segments", "crisis", "vad", "emotion", "is_unsure", "neighbours", "probabilities", "timings_s"),
        }


def run(server, command, **options):
    """A command line of the shell, `attune` on its path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"ATTUNE_URL": server.grpc_url, "PATH": path}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, timeout=120, **options
    )


def test_play_writes_the_music_and_the_session(attune, samples, tmp_path):
    music, session_file = tmp_path / "new" / "music.wav", tmp_path / "new" / "session.json"
    result = attune("play", samples[0], "--seconds", 3, "--seed", 4, "-o", music, "--session", session_file)
    assert result.exit_code == 0, result.output
    assert "first audio" in result.output
    info = sf.info(music)
    assert (info.frames, info.samplerate, info.channels) == (3 * 32_000, 32_000, 2)
    session = json.loads(session_file.read_text())
    assert set(session) >= {
        *("transcript", "segments", "vad", "emotion", "similarity", "description", "prompt"),
        *("prompt_writer", "engine", "sample_rate", "timings_s", "seed", "duration_s", "versions", "probabilities"),
        *("retrieved_emotion", "music_spec", "music"),
    }
    assert session["seed"] == 4
    assert session["music"] == {"file": str(music), "format": "wav", "seconds": 3.0, "complete": True}
    timings = session["timings_s"]
    assert set(timings) == {"transcribe", "recognise", "prompt", "first_audio", "total"}
    assert timings["transcribe"] + timings["recognise"] < timings["first_audio"] <= timings["total"]


def test_a_session_plays_the_same_piece_again(attune, samples, tmp_path):
    first, again, session = (tmp_path / name for name in ("first.wav", "again.wav", "session.json"))
    assert attune("play", samples[0], "--seconds", 2, "-o", first, "--session", session).exit_code == 0
    result = attune("play", "--spec", session, "-o", again)
    assert result.exit_code == 0, result.output
    assert first.read_bytes() == again.read_bytes()


def test_the_seed_is_drawn_and_printed(attune, tmp_path):
    seeds = set()
    for name in ("a.wav", "b.wav"):
        result = attune("play", "--emotion", "calm", "--seconds", 1, "--json", "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
        seeds.add(json.loads(result.stdout)["seed"])
    assert len(seeds) == 2


@pytest.mark.parametrize(
    "source",
    [["--text", "rain on a tin roof"], ["--emotion", "calm"], ["--vad", "4,2,3"]],
    ids=lambda source: source[0],
)
def test_play_takes_a_wish_in_place_of_a_recording(attune, tmp_path, source):
    result = attune("play", *source, "--seconds", 1, "-o", tmp_path / "a.flac")
    assert result.exit_code == 0, result.output
    assert sf.info(tmp_path / "a.flac").frames == 32_000
    assert "engine\tcomposer\n" in result.stdout


def test_what_play_pipes_can_be_analysed(server, samples):
    """The music contains no speech, which the server reports: it has read a WAV of unknown length."""
    done = run(server, "attune play --emotion calm --seconds 3 -o - | attune analyse - --json")
    [answer] = json.loads(done.stdout)
    assert answer["error"]["code"] == "no_speech", answer
    assert b"engine\tcomposer" in done.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(server, samples):
    files = " ".join(str(path) for path in samples)
    done = run(server, f"attune analyse {files} | head -c 1")
    assert done.stdout == b"f"
    assert done.stderr == b""
    done = run(server, "attune play --emotion calm --seconds 60 -o - | head -c 100 | wc -c")
    assert done.stdout.strip() == b"100"
    assert b"Broken pipe" in done.stderr
    assert b"Traceback" not in done.stderr


def test_ctrl_c_keeps_what_has_come(server, tmp_path):
    music = tmp_path / "music.ogg"
    command = [sys.executable, "-m", "attune_client", "play", "--emotion", "calm", "--seconds", "600", "-o", str(music)]
    environment = os.environ | {"ATTUNE_URL": server.grpc_url}
    player = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 60
    while not (music.exists() and music.stat().st_size) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    player.send_signal(signal.SIGINT)
    told = player.communicate(timeout=30)[1]
    assert player.returncode == 130, told
    kept_s = sf.info(music).duration
    assert 0 < kept_s < 600
    assert f"{kept_s:.1f} s of music were kept in {music}" in told


@pytest.mark.parametrize("options", [["--engine", "theremin"], []])
def test_play_says_what_is_wrong_in_one_line(attune, samples, not_a_recording, tmp_path, options):
    recording = samples[0] if options else not_a_recording
    result = attune("play", recording, "-o", tmp_path / "music.wav", *options)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "music.wav").exists()


def test_a_deadline_ends_the_command_in_one_line_and_keeps_what_came(attune, samples, tmp_path):
    music = tmp_path / "music.wav"
    result = attune("play", "--text", "calm", "--seconds", 600, "--deadline", 3, "-o", music)
    assert result.exit_code == 1
    told = re.search(
        r"^Error: the deadline passed before \w+ was done; (\d+\.\d) s of music were kept in ", result.stderr, re.M
    )
    assert told, result.stderr
    assert sf.info(music).duration == pytest.approx(float(told[1]), abs=0.1)
    result = attune("analyse", samples[0], "--deadline", 0.001, "--json")
    assert result.exit_code == 1
    [analysed] = json.loads(result.stdout)
    assert analysed["error"]["code"] == "request_timeout"


def test_models_lists_all_of_them(attune):
    result = attune("models")
    assert result.exit_code == 0
    assert result.output.count("READY") == len(MODELS)
    assert len(json.loads(attune("models", "--json").stdout)) == len(MODELS)


def test_memory_and_folders_of_the_server_are_private(server):
    name = server.folder.name
    regions = [path for path in Path("/dev/shm").iterdir() if path.name.startswith(name)]
    assert regions
    assert all(path.stat().st_mode & 0o077 == 0 for path in regions)
    assert server.folder.stat().st_mode & 0o077 == 0
