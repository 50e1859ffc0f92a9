"""The attune command against the real server: `pytest tests/integration/test_cli.py` (after `attune export`)."""

from __future__ import annotations

import json

import pytest
import soundfile as sf
from click.testing import CliRunner

from attune_client.cli import main


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
            *("segments", "vad", "emotion", "probabilities", "timings_s"),
        }


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
        *("prompt_writer", "engine", "sample_rate", "timings_s"),
    }
    timings = session["timings_s"]
    assert set(timings) == {"transcribe", "recognise", "prompt", "first_audio", "total"}
    assert timings["transcribe"] + timings["recognise"] < timings["first_audio"] <= timings["total"]


@pytest.mark.parametrize("options", [["--engine", "theremin"], []])
def test_play_says_what_is_wrong_in_one_line(attune, samples, not_a_recording, tmp_path, options):
    recording = samples[0] if options else not_a_recording
    result = attune("play", recording, "-o", tmp_path / "music.wav", *options)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "music.wav").exists()


def test_models_lists_all_of_them(attune):
    result = attune("models")
    assert result.exit_code == 0
    assert result.output.count("READY") == 11
