"""The clients raise only `AttuneError`s, whatever their arguments: `pytest tests/unit/test_client_errors.py`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import math
import re
import subprocess
import sys
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferResponse

import attune_client
from attune_client import AsyncAttuneClient, AsyncMusicStream, AttuneClient, AttuneError, MusicSpec, MusicStream, wire
from attune_client.connection import check_url
from attune_client.messages import read_response, request_message
from attune_client.protocol import errors
from attune_client.protocol.bounds import LENGTH_TOLERANCE_S
from attune_client.protocol.checks import quote
from attune_client.protocol.models import EMOTION_CLASSIFIER, MUSIC_GENERATOR, MUSIC_PROMPT
from attune_client.results import VAD, MusicPrompt, SpeechEmotion, TherapySession
from attune_client.wire import audio_tensor, therapy_inputs
from tests.conftest import ROOT
from tests.unit.test_client import SESSION

NOWHERE = "127.0.0.1:9"
SPEC = {"tempo_bpm": 72, "mode": "dorian", "tonic": "D", "instruments": ["piano"], "dynamics": "mp"}
HALF_A_CHARACTER = "caf\ud800"
JUNK = [None, True, -1, 0, 1.5, math.nan, math.inf, 10**400, "", " ", "x", HALF_A_CHARACTER, b"x", [], {}, object(), 1j]


def blocking(method, *arguments, **options):
    with AttuneClient(NOWHERE, timeout_s=5) as client:
        return getattr(client, method)(*arguments, **options)


def awaited(method, *arguments, **options):
    async def call():
        async with AsyncAttuneClient(NOWHERE, timeout_s=5) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(call())


@pytest.fixture(params=[blocking, awaited])
def call(request):
    """Call a method of one of the clients, where no server is: what is wrong has to be found before that."""
    return request.param


# --- the two clients ---


def public(kind):
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "awaited"), [(AttuneClient, AsyncAttuneClient), (MusicStream, AsyncMusicStream)])
def test_the_clients_have_the_same_methods_and_parameters(blocking, awaited):
    assert public(blocking).keys() == public(awaited).keys()
    for name, method in {"__init__": AttuneClient.__init__, **public(AttuneClient)}.items():
        other = inspect.signature(getattr(AsyncAttuneClient, name))
        assert inspect.signature(method).parameters == other.parameters, name


def test_every_method_without_a_server_raises_server_unavailable(call):
    for method, arguments in {"models": (), "analyse": (b"x",), "prompt": ("x",), "play_text": ("x",)}.items():
        with pytest.raises(errors.ServerUnavailable, match="attune serve"):
            call(method, *arguments)
    assert call("is_ready") is False


def test_a_type_checker_resolves_the_public_names(tmp_path):
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "from attune_client import AsyncAttuneClient, AttuneClient\n"
        "async def play(client: AttuneClient, other: AsyncAttuneClient) -> None:\n"
        "    reveal_type(client.play(emotion='calm').session.seed)\n"
        "    reveal_type((await other.analyse('x')).probabilities)\n"
        "    client.analise('x')\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports=silent", "--ignore-missing-imports"]
    environment = {"MYPYPATH": str(ROOT / "client")}
    output = subprocess.run([*command, snippet], capture_output=True, text=True, env=environment, check=False).stdout
    assert 'Revealed type is "int"' in output
    assert "Mapping[str, float]" in output
    assert '"AttuneClient" has no attribute "analise"' in output
    assert "Any" not in output
    assert (ROOT / "client" / "attune_client" / "py.typed").is_file()


def test_every_public_name_is_there():
    assert set(attune_client.__all__) <= set(dir(attune_client))
    for name in attune_client.__all__:
        assert inspect.isclass(getattr(attune_client, name))
    with pytest.raises(AttributeError, match="no attribute 'Attune'"):
        _ = attune_client.Attune


# --- arguments ---


@pytest.mark.parametrize("kind", [AttuneClient, AsyncAttuneClient])
@pytest.mark.parametrize("timeout_s", [math.nan, math.inf, 0, -1, 1e300, "5", True])
def test_a_timeout_that_no_clock_takes(kind, timeout_s):
    with pytest.raises(errors.InvalidOption, match="timeout_s must"):
        kind(NOWHERE, timeout_s=timeout_s)


@pytest.mark.parametrize("kind", [AttuneClient, AsyncAttuneClient])
@pytest.mark.parametrize(
    "url",
    [
        *(None, 8001, "", HALF_A_CHARACTER, "localhost", "::1:8001", "[::1]", "http://localhost:8000", "host:0"),
        *("host:65536", "host:-1", "host:port", "host:8001/v2", "two words:8001", "unix:", f"unix:/{'x' * 107}"),
    ],
)
def test_an_address_that_is_none(kind, url):
    with pytest.raises(errors.InvalidOption, match="url"):
        kind(url)


@pytest.mark.parametrize(
    "url",
    ["localhost:1", "127.0.0.1:65535", " host:1 ", "[::1]:8001", "[fe80::1%eth0]:1", "a-b.example:1", "dns:///host:1"],
)
def test_an_address_of_any_kind(url):
    assert check_url(url) == url.strip()
    assert check_url(f"unix:/{'x' * 106}")


@pytest.mark.parametrize("kind", [AttuneClient, AsyncAttuneClient])
@pytest.mark.parametrize("retries", [-1, 101, 1.0, "1", None, True])
def test_retries_that_are_no_number_of_them(kind, retries):
    with pytest.raises(errors.InvalidOption, match="retries must"):
        kind(NOWHERE, retries=retries)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "got none"),
        ({"text": "x", "emotion": "calm"}, "got text and emotion"),
        ({"spec": SPEC, "vad": (3, 3, 3)}, "got vad and music_spec"),
        ({"text": "x", "duration_s": "30"}, "duration_s must be a number, not '30'"),
        ({"text": "x", "duration_s": math.nan}, "duration_s must lie between 1 and 600"),
        ({"text": "x", "duration_s": 601}, "duration_s must lie between 1 and 600"),
        ({"text": "x", "duration_s": True}, "duration_s must be a number"),
        ({"text": "x", "duration_s": 10**400}, "duration_s must lie"),
        ({"text": "x", "seed": 1.5}, "seed must be a whole number from 0 to 2"),
        ({"text": "x", "seed": True}, "seed must be a whole number"),
        ({"text": "x", "seed": -1}, "seed must be a whole number"),
        ({"text": "x", "seed": 2**63}, "seed must be a whole number"),
        ({"text": "x", "engine": 3}, "engine must be a str"),
        *(({"text": "x", "deadline_s": value}, "deadline_s must lie above 0") for value in (0, -1, 3_601, math.nan)),
        ({"text": "x", "deadline_s": "3"}, "deadline_s must be a number, not '3'"),
        ({"text": " "}, "text is empty"),
        ({"text": HALF_A_CHARACTER}, "text is no valid Unicode"),
        ({"text": "x" * 2_001}, "2,000 characters"),
        ({"emotion": 3}, "emotion must be a str"),
        ({"vad": (3, 3)}, "vad must be valence, arousal and dominance"),
        ({"vad": (0.9, 3, 3)}, "each between 1 and 5"),
        ({"vad": (math.nan, 3, 3)}, "each between 1 and 5"),
        ({"vad": 3}, "vad must be"),
        ({"vad": "333"}, "vad must be"),
        ({"spec": 3}, "music_spec must be a JSON object"),
        ({"spec": "[" * 100_000}, "music_spec must be a JSON object"),
        ({"spec": SPEC | {"tempo_bpm": "72"}}, "tempo_bpm must be a number"),
        ({"spec": SPEC | {"tempo_bpm": 10**400}}, "tempo_bpm must lie"),
        ({"spec": SPEC | {"instruments": "piano"}}, "instruments must name"),
        ({"spec": SPEC | {"instruments": ["x" * 10**6]}}, "instruments must be one of"),
        ({"spec": SPEC | {"mode": np.array(["dorian", "dorian"])}}, "mode must be one of"),
        ({"text": "x", "other_languages": "voice"}, "other_languages is for a recording"),
        ({"audio": b"x", "other_languages": 3}, "other_languages must be one of refuse, voice, not 3"),
        ({"audio": 3}, "audio must be bytes, a path or a file"),
        ({"audio": np.zeros(3)}, "audio must be bytes"),
        ({"audio": io.StringIO("text")}, "mode 'rb'"),
    ],
)
def test_options_are_refused_before_anything_is_sent(call, options, words):
    with pytest.raises(errors.InvalidOption, match=words) as caught:
        call("play", **options)
    assert len(str(caught.value)) < 500
    str(caught.value).encode()


def test_options_are_refused_before_a_recording_is_read(call):
    with pytest.raises(errors.InvalidOption, match="seed"):
        call("play", "nowhere.wav", seed="x")


def test_a_deadline_out_of_range_is_refused_by_every_method(call):
    for method, argument in {"analyse": "nowhere.wav", "prompt": "x", "play": "nowhere.wav", "play_text": "x"}.items():
        with pytest.raises(errors.InvalidOption, match="deadline_s must lie above 0"):
            call(method, argument, deadline_s=0)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.wav", "cannot read nowhere.wav: No such file"),
        (ROOT, "Is a directory"),
        (HALF_A_CHARACTER, "cannot read 'caf.*surrogates not allowed"),
        ("a\0b", "null byte"),
        ("a\nb.wav", r"cannot read 'a\\nb.wav'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(call, path, words):
    for method in ("analyse", "play"):
        with pytest.raises(errors.UnreadableFile, match=words) as caught:
            call(method, path)
        assert isinstance(caught.value, errors.InvalidAudio)
        str(caught.value).encode()
        assert "\n" not in str(caught.value)


def test_a_closed_file_cannot_be_read():
    file = io.BytesIO(b"x")
    file.close()
    with pytest.raises(errors.UnreadableFile, match="closed file"):
        audio_tensor(file)


def test_a_device_without_end_is_too_long(monkeypatch):
    monkeypatch.setattr(wire, "MAX_AUDIO_BYTES", 2**20)
    with pytest.raises(errors.AudioTooLong, match="1 MiB"):
        audio_tensor("/dev/zero")


@pytest.mark.parametrize("audio", [b"RIFF", bytearray(b"RIFF"), memoryview(b"RIFF"), io.BytesIO(b"RIFF")])
def test_a_recording_may_be_bytes_or_an_open_file(audio):
    assert audio_tensor(audio).tolist() == [b"RIFF"]


def test_a_recording_may_be_a_path(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    for path in (tmp_path / "a.wav", str(tmp_path / "a.wav")):
        assert audio_tensor(path).tolist() == [b"RIFF"]


def test_what_becomes_of_other_languages_is_sent():
    sent = {"audio": [b"x"], "other_languages": [b"voice"]}
    for inputs in (wire.speech_inputs(b"x", "voice"), therapy_inputs(b"x", other_languages="voice")):
        assert {name: value.tolist() for name, value in inputs.items()} == sent


def test_numbers_of_numpy_are_numbers():
    inputs = therapy_inputs(
        None,
        vad=np.array([3, 2, 1], np.float32),
        emotion=np.str_("calm"),
        duration_s=np.float32(3.5),
        seed=np.uint8(7),
    )
    assert inputs["vad"].tolist() == [3, 2, 1]
    assert (inputs["duration_s"].tolist(), inputs["seed"].tolist()) == ([3.5], [7])
    assert (inputs["duration_s"].dtype, inputs["seed"].dtype) == (np.float32, np.int64)
    assert therapy_inputs(None, vad=VAD(1, 2, 3))["vad"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("spec", [SPEC, MusicSpec.of(SPEC), MusicSpec.of(SPEC).to_json()])
def test_a_specification_may_be_given_as_what_it_is(spec):
    (sent,) = therapy_inputs(None, spec=spec)["music_spec"]
    assert MusicSpec.from_json(sent.decode()) == MusicSpec(72.0, "dorian", "D", ("piano",), "mp")
    assert MusicSpec.of(SPEC | {"tempo_bpm": np.float32(72)}).to_json() == MusicSpec.of(SPEC).to_json()


junk = st.sampled_from(JUNK) | st.text() | st.floats() | st.integers() | st.lists(st.floats()) | st.binary()
OPTIONS = ("audio", "text", "emotion", "vad", "spec", "duration_s", "seed", "engine", "other_languages")


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(OPTIONS), junk))
def test_junk_is_refused_with_errors_of_the_tree(options):
    try:
        inputs = therapy_inputs(options.pop("audio", None), **options)
    except AttuneError as error:
        str(error).encode()
    else:
        request_message(attune_client.protocol.models.MUSIC_THERAPY, inputs)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (MUSIC_PROMPT, {"words": np.array([b"x"], dtype=np.object_)}),
        (MUSIC_PROMPT, {3: np.array([b"x"], dtype=np.object_)}),
        (MUSIC_PROMPT, {"text": ["x"]}),
        (MUSIC_PROMPT, {"text": None}),
        (MUSIC_PROMPT, {"text": np.array(["x"])}),
        (MUSIC_PROMPT, {"text": np.array([object()], dtype=np.object_)}),
        (MUSIC_PROMPT, {"text": np.array([HALF_A_CHARACTER], dtype=np.object_)}),
        (MUSIC_PROMPT, {"vad": np.zeros(3)}),
        (MUSIC_PROMPT, {"vad": np.zeros(2, np.float32)}),
        (EMOTION_CLASSIFIER, {"valence": np.zeros(1, np.float32)}),
        (MUSIC_GENERATOR, {"seed": np.zeros((1, 1), np.int64)}),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(call, model, inputs):
    with pytest.raises(errors.InvalidOption, match=model.name):
        call("infer", model, inputs)
    with AttuneClient(NOWHERE) as client, pytest.raises(errors.InvalidOption, match=model.name):
        next(client.stream(model, inputs))


def test_a_closed_client_raises():
    client = AttuneClient(NOWHERE)
    client.close()
    for method, arguments in {"is_ready": (), "models": (), "prompt": ("x",), "analyse": (b"x",)}.items():
        with pytest.raises(errors.InvalidRequest, match="closed"):
            getattr(client, method)(*arguments)
    with pytest.raises(errors.InvalidRequest, match="closed"):
        client.play_text("x")


async def test_a_closed_asyncio_client_raises():
    client = AsyncAttuneClient(NOWHERE)
    await client.close()
    for method, arguments in {"is_ready": (), "models": (), "prompt": ("x",), "play_text": ("x",)}.items():
        with pytest.raises(errors.InvalidRequest, match="closed"):
            await getattr(client, method)(*arguments)


def test_values_are_quoted_short_and_printable():
    for value in [*JUNK, "x" * 10**7, b"x" * 10**7, np.zeros((999, 999)), Decimal(1), "\n\x1b[2J", [[[[[]]]]] * 99]:
        text = quote(value)
        assert len(text) < 120
        assert text.isprintable()


# --- responses ---


@pytest.mark.parametrize("kind", [SpeechEmotion, MusicPrompt, TherapySession])
@pytest.mark.parametrize("name", sorted(SESSION))
def test_an_answer_of_another_version_is_a_server_error(kind, name):
    lacking = {key: value for key, value in SESSION.items() if key != name}
    for tensors in (lacking, lacking | {name: np.array([object()])}):
        with contextlib.suppress(errors.ServerError):  # not every kind reads every tensor
            wire.read_answer(kind, tensors)
    with pytest.raises(errors.ServerError, match="version"):
        wire.read_answer(kind, {})


def test_an_answer_whose_text_is_none_is_the_server_s_fault():
    broken = SESSION | {"prompt": np.array([b"\xff"], dtype=np.object_)}
    with pytest.raises(errors.ServerError, match="not one of this protocol"):
        wire.read_answer(TherapySession, broken)


def chunks(count, end=None):
    yield SESSION
    yield from ({"music": np.zeros((32_000, 2), np.float32)} for _ in range(count))
    if end is not None:
        raise end


async def async_chunks(count, end=None):
    for response in chunks(count, end):
        yield response


async def async_stream(count, end=None):
    responses = async_chunks(count, end)
    return AsyncMusicStream(TherapySession.from_tensors(await anext(responses)), responses)


ENDS = [None, errors.StreamEndedEarly("the server's words")]


@pytest.mark.parametrize("end", ENDS)
def test_a_stream_that_ends_early_is_an_error_that_says_how_much_came(end):
    stream = MusicStream(chunks(2, end))
    assert [len(next(stream)) for _ in range(2)] == [32_000, 32_000]
    assert stream.received_s == 2.0
    with pytest.raises(errors.StreamEndedEarly, match=r"ended early: 2\.0 s of 3\.3 s came") as caught:
        next(stream)
    assert (caught.value.received_s, caught.value.expected_s) == (2.0, 3.3)
    assert isinstance(caught.value, errors.ServerError)


@pytest.mark.parametrize("end", ENDS)
async def test_an_asyncio_stream_that_ends_early_is_the_same_error(end):
    stream = await async_stream(2, end)
    assert [len(await anext(stream)) for _ in range(2)] == [32_000, 32_000]
    with pytest.raises(errors.StreamEndedEarly, match=r"ended early: 2\.0 s of 3\.3 s came") as caught:
        await anext(stream)
    assert (caught.value.received_s, stream.received_s) == (2.0, 2.0)


async def test_a_stream_that_is_complete_or_was_closed_ends_without_an_error():
    assert len(list(MusicStream(chunks(4)))) == 4
    assert len([chunk async for chunk in await async_stream(4)]) == 4
    stream, other = MusicStream(chunks(2)), await async_stream(2)
    stream.close()
    await other.close()
    assert list(stream) == []
    assert [chunk async for chunk in other] == []


def test_a_piece_may_be_short_by_half_a_frame_of_musicgen_and_no_more():
    def stream(frames):
        def responses():
            yield SESSION
            yield {"music": np.zeros((frames, 1), np.float32)}

        return MusicStream(responses())

    due = round(3.3 * 32_000)
    assert len(list(stream(due - round(LENGTH_TOLERANCE_S * 32_000)))) == 1
    with pytest.raises(errors.StreamEndedEarly):
        list(stream(due - round(2 * LENGTH_TOLERANCE_S * 32_000)))


@pytest.mark.parametrize("response", [{}, {"engine": SESSION["engine"]}, {"music": np.zeros(3)}])
def test_something_else_than_music_is_a_server_error(response):
    stream = MusicStream(item for item in (SESSION, response))
    with pytest.raises(errors.ServerError, match="something else"):
        next(stream)


# --- how long a client waits ---


@pytest.mark.parametrize(
    ("timeout_s", "deadline_s", "waits_s"),
    # The clock of the test goes 2 s ahead after the beginning.
    [
        (300.0, None, 300.0),
        (300.0, 10.0, 9.0),
        (5.0, 10.0, 5.0),
        (300.0, 1.0, 1.0),
        (0.5, 1.0, 0.5),
        (300.0, 3600.0, 300.0),
        (None, 3600.0, 3599.0),
        (None, 1.0, 1.0),
        (None, None, 300.0),
    ],
)
def test_a_client_waits_a_second_longer_than_the_deadline_and_never_longer_than_the_timeout_that_it_was_given(
    monkeypatch, timeout_s, deadline_s, waits_s
):
    clock = iter([100.0, 102.0, 102.0])
    monkeypatch.setattr(wire, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    patience = wire.Patience.of(timeout_s, wire.deadline_inputs(deadline_s))
    assert patience.left_s() == waits_s
    over = deadline_s == 1.0
    words = r"the deadline of 1 s passed, and nothing came" if over else rf"nothing came for {timeout_s or 300:g} s"
    if deadline_s != 3600.0 or timeout_s:  # that wait ends after the deadline
        assert re.fullmatch(words, str(patience.ended()))


# --- responses that are not what they say ---


def test_a_tensor_that_is_not_what_it_says_is_a_server_error():
    output = {"name": "music", "datatype": "FP32", "shape": [3, 2]}
    for content in ([], [b"\0" * 23]):
        with pytest.raises(errors.ServerError, match="music"):
            read_response(ModelInferResponse(outputs=[output], raw_output_contents=content))
