"""The clients' conversions and the command, without a server: `pytest tests/unit/test_client.py`."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from click.testing import CliRunner
from grpc import StatusCode

from attune_client import AttuneClient, AttuneError, cli
from attune_client.client import MusicStream
from attune_client.connection import Failure, translate
from attune_client.installation import install_command
from attune_client.messages import request_message
from attune_client.protocol import errors
from attune_client.protocol.models import MUSIC_THERAPY, NEXT_PART, SPEECH_EMOTION, CrisisKind
from attune_client.results import CrisisWords, SpeechEmotion, TherapySession
from attune_client.wire import read_answer

SPEECH = {
    "transcript": np.array(["héllo [all]".encode()], dtype=np.object_),
    "language": np.array([b"en"], dtype=np.object_),
    "language_probability": np.array([0.975], np.float32),
    "vad": np.array([3.5, 2.0, 3.0], np.float32),
    "emotion": np.array([b"calm"], dtype=np.object_),
    "emotion_probabilities": np.eye(40, dtype=np.float32)[3],
    "emotion_labels": np.array([b"eager", b"proud", b"glad", b"calm", *(b"e%d" % i for i in range(36))], np.object_),
    "segment_start_s": np.array([0.1], np.float32),
    "segment_end_s": np.array([2.1], np.float32),
    "segment_transcript": np.array(["héllo [all]".encode()], dtype=np.object_),
    "segment_vad": np.array([[3.5, 2.0, 3.0]], np.float32),
    "segment_emotion": np.array([b"calm"], dtype=np.object_),
    "emotion_unsure": np.array([0], np.int32),
    "crisis_kind": np.array([], dtype=np.object_),
    "crisis_place": np.zeros((0, 4), np.int32),
    "transcribe_s": np.array([0.5], np.float32),
    "recognise_s": np.array([0.25], np.float32),
}
FOUND = {
    "retrieved_emotion": np.array([b"calm"], dtype=np.object_),
    "similarity": np.array([0.75], np.float32),
    "description": np.array([b"Slow."], dtype=np.object_),
}
MUSIC = {
    "prompt": np.array([b"slow piano"], dtype=np.object_),
    "prompt_writer": np.array([b"template"], dtype=np.object_),
    "music_spec": np.array([b'{"tempo_bpm": 60}'], dtype=np.object_),
    "prompt_s": np.array([0.125], np.float32),
    "engine": np.array([b"composer"], dtype=np.object_),
    "sample_rate": np.array([32_000], np.int32),
    "duration_s": np.array([3.3], np.float32),
    "seed": np.array([2**53 - 1], np.int64),
    "server_version": np.array([b"1.2.3"], dtype=np.object_),
}
SESSION = SPEECH | FOUND | MUSIC


def test_speech_emotion_reads_every_tensor():
    assert set(SPEECH) == {tensor.name for tensor in SPEECH_EMOTION.outputs}
    result = SpeechEmotion.from_tensors(SPEECH)
    assert result.transcript == "héllo [all]"
    assert result.segments[0].vad.valence == 3.5
    assert result.segments[0].emotion == result.segments[0].to_dict()["emotion"] == "calm"
    assert result.probabilities["calm"] == 1.0
    assert result.probability_array.tolist() == SPEECH["emotion_probabilities"].tolist()
    assert next(iter(result.to_dict()["probabilities"])) == "calm"
    assert len(result.to_dict()["probabilities"]) == 40
    assert (result.language, result.to_dict()["language_probability"]) == ("en", 0.975)
    assert result.to_dict()["timings_s"] == {"transcribe": 0.5, "recognise": 0.25}


CRISIS = {
    "crisis_kind": np.array([b"suicide", b"self_harm"], dtype=np.object_),
    "crisis_place": np.array([[0, 2, 0, 9], [0, 12, 1, 3]], np.int32),
}


def test_words_of_a_crisis_are_read_with_their_places():
    quiet = SpeechEmotion.from_tensors(SPEECH)
    assert (quiet.crisis, quiet.to_dict()["crisis"]) == ((), [])
    speech = SpeechEmotion.from_tensors(SPEECH | CRISIS)
    first, second = speech.crisis
    assert first == CrisisWords(CrisisKind.SUICIDE, 0, 2, 0, 9)
    assert (second.kind, second.segment, second.last_segment) == ("self_harm", 0, 1)
    assert json.loads(json.dumps(speech.to_dict()["crisis"])) == [
        {"kind": "suicide", "segment": 0, "start": 2, "last_segment": 0, "end": 9},
        {"kind": "self_harm", "segment": 0, "start": 12, "last_segment": 1, "end": 3},
    ]
    session = TherapySession.from_tensors(SESSION | CRISIS)
    assert session.crisis == session.speech.crisis == speech.crisis
    assert session.to_dict()["crisis"] == speech.to_dict()["crisis"]


def test_a_text_has_words_of_a_crisis_without_any_speech():
    assert TherapySession.from_tensors(FOUND | MUSIC).crisis == ()
    session = TherapySession.from_tensors(CRISIS | FOUND | MUSIC)
    assert session.speech is None
    assert [words["kind"] for words in session.to_dict()["crisis"]] == ["suicide", "self_harm"]
    assert "crisis" not in TherapySession.from_tensors(FOUND | MUSIC).to_dict()


def test_an_unknown_kind_of_crisis_is_not_of_this_protocol():
    odd = SPEECH | CRISIS | {"crisis_kind": np.array([b"suicide", b"weather"], dtype=np.object_)}
    with pytest.raises(errors.ServerError, match="not one of this protocol"):
        read_answer(SpeechEmotion, odd)


def test_the_session_file_has_the_promised_keys():
    assert set(SESSION) | {"music", NEXT_PART.name} == {tensor.name for tensor in MUSIC_THERAPY.outputs}
    session = TherapySession.from_tensors(SESSION).to_dict(first_audio_s=1.0, total_s=2.0)
    assert set(session) >= {
        *("transcript", "segments", "vad", "emotion", "similarity", "description", "prompt"),
        *("prompt_writer", "engine", "sample_rate", "timings_s"),
        *("probabilities", "retrieved_emotion", "music_spec", "seed", "duration_s", "versions"),
    }
    assert (session["seed"], session["duration_s"]) == (2**53 - 1, 3.3)
    assert session["versions"]["server"] == "1.2.3"
    assert session["vad"] == {"valence": 3.5, "arousal": 2.0, "dominance": 3.0}
    assert session["timings_s"] == {
        "transcribe": 0.5, "recognise": 0.25, "prompt": 0.125, "first_audio": 1.0, "total": 2.0
    }  # fmt: skip
    assert json.loads(json.dumps(session)) == session


def test_a_session_without_a_recording_has_no_speech():
    wish = {"emotion": SPEECH["emotion"], "vad": SPEECH["vad"]}
    session = TherapySession.from_tensors(wish | FOUND | MUSIC)
    assert (session.speech, session.emotion, session.probabilities) == (None, "calm", None)
    assert list(session.vad) == [3.5, 2.0, 3.0]
    assert set(session.to_dict()) >= {"emotion", "vad", "retrieved_emotion", "prompt", "seed"}
    assert not {"transcript", "segments", "probabilities"} & set(session.to_dict())
    assert session.to_dict()["timings_s"] == {"prompt": 0.125}


def test_a_session_of_a_specification_has_nothing_retrieved():
    session = TherapySession.from_tensors(MUSIC)
    assert (session.emotion, session.vad, session.prompt.similarity) == (None, None, None)
    assert not {"emotion", "vad", "retrieved_emotion", "similarity", "description"} & set(session.to_dict())
    assert session.to_dict()["music_spec"] == {"tempo_bpm": 60}


def test_a_stream_gives_its_session_first_and_closing_it_closes_the_source():
    closed = []

    def responses():
        try:
            yield SESSION
            yield {"music": np.zeros((10, 2), np.float32)}
            yield {"music": np.ones((10, 2), np.float32)}
        finally:
            closed.append(True)

    with MusicStream(responses()) as stream:
        assert stream.session.engine == "composer"
        assert next(stream).shape == (10, 2)
        assert not closed
    assert closed


def test_a_stream_without_any_answer_is_a_server_error():
    with pytest.raises(errors.ServerError):
        MusicStream(iter(()))


def test_inputs_take_their_type_from_the_protocol():
    message = request_message(SPEECH_EMOTION, {"audio": np.array([b"x"], dtype=np.object_)})
    (tensor,) = message.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("audio", "BYTES", [1])
    assert list(message.raw_input_contents) == [b"\1\0\0\0x"]
    with pytest.raises(errors.InvalidOption, match="no input 'sound'; it has audio"):
        request_message(SPEECH_EMOTION, {"sound": np.zeros(1)})


@pytest.mark.parametrize(
    ("status", "message", "kind", "words"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", errors.ServerUnreachable, "no server answers at host:1"),
        ("UNAVAILABLE", "Socket closed", errors.ServerUnreachable, "host:1 went away before .* [(]Socket closed[)]"),
        ("UNAVAILABLE", "keepalive watchdog timeout", errors.ServerUnreachable, "went away"),
        ("UNAVAILABLE", "server_unavailable: valence is started again", errors.ServerUnavailable, "^valence is"),
        ("INTERNAL", "Received RST_STREAM with error code 2", errors.ServerUnreachable, "went away"),
        ("UNKNOWN", "Stream removed", errors.ServerUnreachable, "went away"),
        ("CANCELLED", "", errors.ServerUnreachable, "went away"),
        ("CANCELLED", "Locally cancelled by application!", errors.RequestCancelled, "given up here"),
        ("CANCELLED", "request_cancelled: the caller gave it up", errors.RequestCancelled, "^the caller"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", errors.RequestTimeout, "the time for the request passed"),
        ("DEADLINE_EXCEEDED", "request_timeout: too late", errors.RequestTimeout, "^too late$"),
        ("INVALID_ARGUMENT", "no_speech: none", errors.NoSpeech, "^none$"),
        ("INVALID_ARGUMENT", "unexpected shape", errors.InvalidRequest, "^unexpected shape$"),
        ("PERMISSION_DENIED", "no", errors.InvalidRequest, "does not permit this [(]no[)]"),
        ("PERMISSION_DENIED", "server_error: not for clients", errors.ServerError, "^not for clients$"),
        ("UNAUTHENTICATED", "", errors.InvalidRequest, "does not permit this$"),
        ("UNIMPLEMENTED", "Method not found!", errors.InvalidRequest, "is it an Attune server"),
        ("NOT_FOUND", "unknown model", errors.InvalidRequest, "is it an Attune server"),
        (
            "RESOURCE_EXHAUSTED",
            "SERVER: Received message larger than max (209715200 vs. 134217728)",
            errors.InvalidRequest,
            "the request has 200.0 MiB, and the server takes at most 128.0: send an encoded recording",
        ),
        ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (2 vs. 1)", errors.InvalidRequest, "at most"),
        ("RESOURCE_EXHAUSTED", "memory", errors.ServerBusy, "no room for the request [(]memory[)]"),
        ("INTERNAL", "Stub process is not healthy", errors.ServerError, "^Stub"),
        ("INTERNAL", "in /opt/x/y.py", errors.ServerError, "^in …$"),
    ],
)
def test_foreign_errors_join_our_tree(status, message, kind, words):
    error = translate(Failure(StatusCode[status], message), "host:1")
    assert type(error) is kind
    assert re.search(words, str(error)), str(error)


def test_when_to_try_again_is_kept():
    busy = errors.ServerBusy("speech_emotion has 16 requests at work and 16 waiting", 8)
    error = translate(Failure(StatusCode.UNAVAILABLE, busy.to_wire()), "host:1")
    assert isinstance(error, errors.ServerBusy)
    assert (str(error), error.retry_after_s) == (str(busy), 8)


def test_no_server_is_one_clear_line(tmp_path):
    with AttuneClient("127.0.0.1:9", timeout_s=2) as client:
        assert not client.is_ready()
        with pytest.raises(AttuneError, match="attune serve"):
            client.models()
    (tmp_path / "a.wav").write_bytes(b"x")
    for arguments in (["models"], ["play", str(tmp_path / "a.wav")]):
        result = CliRunner().invoke(cli.main, [*arguments, "--url", "127.0.0.1:9", "--timeout", "5"])
        assert result.exit_code == 1
        assert result.output.startswith("Error: no server answers at 127.0.0.1:9")
        assert "Traceback" not in result.output


def test_a_missing_file_is_named():
    result = CliRunner().invoke(cli.main, ["play", "nowhere.wav"])
    assert result.exit_code == 2
    assert "nowhere.wav" in result.output


COMMAND_MODULES = ("analysis", "listing", "options", "playing")


def test_a_sub_command_without_its_extra_says_which_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    for name in ("aio", "client", "messages", "wire", "commands", *(f"commands.{part}" for part in COMMAND_MODULES)):
        monkeypatch.delitem(sys.modules, f"attune_client.{name}", raising=False)
    point = EntryPoint("play", "attune_client.commands:play [client]", cli.COMMANDS)
    monkeypatch.setattr(cli, "entry_points", lambda **_: [point])
    result = CliRunner().invoke(cli.main, ["play", "any.wav", "--seed", "1"])
    assert result.exit_code == 1
    assert install_command("client") in result.output
