"""`attune play`, `analyse` and `models` with a stand-in for the client: `pytest tests/unit/test_commands.py`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from click.testing import CliRunner

from attune_client import cli
from attune_client.commands import analysis, audio_output, listing, playing
from attune_client.commands.audio_output import AudioOutput, Destination
from attune_client.help_lines import crisis_notice
from attune_client.protocol.errors import RequestTimeout, ServerError, SilentAudio, UnreadableFile
from attune_client.protocol.models import CrisisKind
from attune_client.results import VAD, CrisisWords, ModelStatus, MusicPrompt, Segment, SpeechEmotion

RATE = 32_000
MUSIC = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * RATE, 2)).astype(np.float32)
WORDS = "a long sentence, " * 20 + "with a\nbreak"
SPEECH = SpeechEmotion(
    transcript=WORDS,
    language="en",
    language_probability=0.99,
    vad=VAD(3.5, 2.0, 3.0),
    emotion="calm",
    probabilities={"calm": 1.0},
    segments=(
        Segment(0.0, 2.0, WORDS, VAD(3.5, 2.0, 3.0), "calm"),
        Segment(2.0, 3.0, "é", VAD(3.5, 2.0, 3.0), "alert"),
    ),
    transcribe_s=0.5,
    recognise_s=0.25,
)
PROMPT = MusicPrompt("calm", 0.75, "Slow.", "slow piano", "template", {"tempo_bpm": 60})


@dataclass
class FakeSession:
    speech: SpeechEmotion | None = None
    prompt: MusicPrompt = PROMPT
    emotion: str | None = "calm"
    vad: VAD | None = None
    seed: int = 41
    duration_s: float = 3.0
    engine: str = "composer"
    sample_rate: int = RATE
    crisis: tuple[CrisisWords, ...] = ()

    def to_dict(self, *, first_audio_s: float, total_s: float) -> dict:
        crisis = {"crisis": [words.to_dict() for words in self.crisis]} if self.crisis else {}
        timings = {"timings_s": {"first_audio": first_audio_s, "total": total_s}}
        return {"seed": self.seed, "engine": self.engine} | crisis | timings


class FakeStream:
    def __init__(self, session, chunks):
        self.session = session
        self._chunks = iter(chunks)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __iter__(self):
        return self

    def __next__(self):
        chunk = next(self._chunks)
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk() if callable(chunk) else chunk


@dataclass
class FakeClient:
    """Remembers what it was asked for; `chunks` are arrays, or errors to raise, or functions that make one."""

    chunks: list = field(default_factory=lambda: np.array_split(MUSIC, 3))
    session: FakeSession = field(default_factory=lambda: FakeSession(speech=SPEECH, vad=SPEECH.vad))
    asked: list = field(default_factory=list)

    def __call__(self, url, *, timeout_s, retries=0):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def play(self, audio=None, **options):
        self.asked.append({"audio": audio} | options)
        return FakeStream(self.session, self.chunks)

    def models(self):
        return [ModelStatus("valence", "1", "READY", ""), ModelStatus("elsewhere", "1", "", "")]


@pytest.fixture
def client(monkeypatch):
    fake = FakeClient()
    monkeypatch.setattr(playing, "AttuneClient", fake)
    monkeypatch.setattr(listing, "AttuneClient", fake)
    return fake


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("speech.wav").write_bytes(b"speech")
    return tmp_path


def attune(*arguments, stdin=None):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], input=stdin)


def read(path) -> np.ndarray:
    return sf.read(path, dtype="float32", always_2d=True)[0]


# --- formats ---


@pytest.mark.parametrize(
    ("name", "container", "error"),
    [("a.wav", "WAV", 1e-4), ("a.flac", "FLAC", 1e-4), ("a.OGG", "OGG", None), ("a.mp3", "MP3", None)],
)
def test_a_file_is_written_in_the_format_of_its_name(client, folder, name, container, error):
    result = attune("play", "speech.wav", "-o", name)
    assert result.exit_code == 0, result.output
    assert sf.info(name).format == container
    assert sf.info(name).samplerate == RATE
    music = read(name)
    assert len(music) == pytest.approx(len(MUSIC), abs=0.1 * RATE)
    if error is not None:
        np.testing.assert_allclose(music, MUSIC, atol=error)


@pytest.mark.parametrize(
    "options",
    [["-o", "a.aac"], ["-o", "a"], ["-o", "a.mp3", "--format", "flac"], ["-o", "-", "--format", "aac"]],
)
def test_another_format_is_refused_before_anything_is_sent(client, folder, options):
    result = attune("play", "speech.wav", *options)
    assert result.exit_code == 2
    assert not client.asked
    assert {path.name for path in folder.iterdir()} == {"speech.wav"}


def test_a_format_may_be_given_where_the_name_has_none(client, folder):
    assert attune("play", "speech.wav", "-o", "music", "--format", "flac").exit_code == 0
    assert sf.info("music").format == "FLAC"


def test_a_long_piece_is_written_in_pieces(tmp_path):
    # libsndfile crashes on a single long OGG write.
    path = tmp_path / "long.ogg"
    output = AudioOutput(Destination(path, "ogg"), RATE, 2)
    output.write(np.tile(MUSIC, (20, 1)))
    output.close()
    assert sf.info(path).frames == 20 * len(MUSIC)


# --- standard output ---

PIPED = """
import sys
from tests.unit.test_commands import FakeClient, cli, playing
playing.AttuneClient = FakeClient()
cli.main(sys.argv[1:])
"""
ROOT = Path(__file__).parents[2]


def piped(*arguments, **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PIPED, *map(str, arguments)]
    options = {"stdout": subprocess.PIPE} | options
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=60, env=environment, **options)


def test_music_goes_to_a_pipe_and_text_to_standard_error():
    done = piped("play", "--text", "rain", "-o", "-")
    assert done.returncode == 0, done.stderr
    header = done.stdout[:44]
    assert header[4:8] == header[40:44] == b"\xff" * 4, "the length of a stream is not known"
    assert len(done.stdout) == 44 + MUSIC.size * 2
    np.testing.assert_allclose(read(io.BytesIO(done.stdout)), MUSIC, atol=1e-4)
    assert b"seed\t41" in done.stderr


@pytest.mark.parametrize("name", ["flac", "ogg", "mp3"])
def test_a_pipe_takes_every_format(name):
    done = piped("play", "--text", "rain", "-o", "-", "--format", name)
    assert done.returncode == 0, done.stderr
    with sf.SoundFile(io.BytesIO(done.stdout)) as file:
        assert file.format == name.upper()
        # The length is not in the header of a FLAC that was written to a pipe.
        blocks = [file.read(4096, dtype="float32") for _ in range(len(MUSIC) // 4096)]
    assert sum(map(len, blocks)) >= len(MUSIC) - 8192


def test_standard_output_cannot_hold_both():
    done = piped("play", "--text", "rain", "-o", "-", "--json")
    assert done.returncode == 2
    assert not done.stdout


def test_a_reader_that_leaves_is_no_traceback():
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = piped("play", "--text", "rain", "-o", "-", stdout=write_end)
    os.close(write_end)
    assert done.returncode == 1
    assert b"standard output: Broken pipe; no music was kept" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.parametrize("arguments", [["--json"], ["-o", "-"], []], ids=["json", "music", "text"])
def test_a_full_standard_output_is_one_line(arguments, tmp_path):
    with Path("/dev/full").open("wb") as full:
        done = piped("play", "--text", "rain", *(arguments or []), stdout=full, cwd=tmp_path)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert done.stderr.count(b"Error") == 1
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("arguments", ["-o a.wav", "-o b.wav --json"])
def test_closed_streams_are_no_traceback(tmp_path, redirection, arguments):
    (tmp_path / "program.py").write_text(PIPED)
    line = f"{sys.executable} program.py play --text rain {arguments} {redirection}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_gets_a_bar_a_table_and_no_music():
    ours, theirs = pty.openpty()
    done = piped("play", "--text", "rain", "-o", "-", stdout=theirs)
    assert done.returncode == 2
    assert b"standard output is a terminal" in done.stderr
    with subprocess.Popen(
        [sys.executable, "-c", PIPED, "play", "--text", "rain", "-o", "/dev/null"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"},
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    ):
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end was closed
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert b"writing" in shown
    assert b"of 3 s" in shown
    assert b"seed\t" not in shown
    assert b"total" in shown


def test_a_name_in_another_encoding_is_shown(tmp_path):
    name = os.fsdecode(tmp_path / "caf") + "\udce9.wav"
    Path(name).write_bytes(b"x")
    done = piped("analyse", name, "--url", "127.0.0.1:9", "--timeout", "2", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)[0]["error"]["code"] == "server_unreachable"


# --- odd places ---


def test_a_full_disk_is_one_line_and_says_what_was_kept(client, folder):
    result = attune("play", "speech.wav", "-o", "/dev/full")
    assert result.exit_code == 1
    assert result.stderr == "Error: /dev/full: No space left on device; no music was kept\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize(("name", "kept_s"), [("a.wav", 1.0), ("a.flac", 1.0), ("a.ogg", 2.0), ("a.mp3", 2.0)])
def test_what_a_disk_held_before_it_was_full_can_be_played(client, folder, name, kept_s):
    client.chunks = np.array_split(np.tile(MUSIC, (10, 1)), 30)
    disk = folder / "disk"
    disk.mkdir()
    size = {"a.wav": "200k", "a.flac": "200k"}.get(name, "80k")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        result = attune("play", "speech.wav", "-o", disk / name)
        assert result.exit_code == 1
        assert "No space left on device" in result.stderr
        kept = audio_output.readable_s(disk / name)
        assert kept >= kept_s
        assert f"{kept:.1f} s of music were kept in" in result.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (".", "directory"),
        ("speech.wav/a.wav", "Not a directory"),
        ("/proc/nothing/a.wav", "No such file"),
        ("/proc/a.wav", ""),
    ],
)
@pytest.mark.parametrize("option", ["-o", "--session"])
def test_an_odd_place_is_refused_before_anything_is_sent(client, folder, path, words, option):
    result = attune("play", "--text", "rain", option, path)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not client.asked


def test_nothing_is_written_over_unasked(client, folder):
    for name in ("music.wav", "session.json"):
        Path(name).write_text("precious")
    options = ["play", "speech.wav", "--session", "session.json"]
    for name in ("music.wav", "session.json"):
        result = attune(*options)
        assert result.exit_code == 1
        assert f"{name} exists; --force writes over it" in result.stderr
        assert Path(name).read_text() == "precious"
        Path(name).unlink()
        assert not client.asked
    Path("music.wav").write_text("precious")
    assert attune(*options, "--force").exit_code == 0
    np.testing.assert_allclose(read("music.wav"), MUSIC, atol=1e-4)


def test_a_failed_request_leaves_what_was_there(client, folder):
    Path("music.wav").write_text("precious")
    client.chunks = [ServerError("no")]
    assert attune("play", "speech.wav", "-f").exit_code == 1
    assert Path("music.wav").read_text() == "precious"


@pytest.mark.parametrize("options", [["-o", "speech.wav", "-f"], ["-o", "a.wav", "--session", "./a.wav"]])
def test_one_file_has_one_purpose(client, folder, options):
    result = attune("play", "speech.wav", *options)
    assert result.exit_code == 2
    assert not client.asked
    assert Path("speech.wav").read_bytes() == b"speech"


# --- music that ends before its time ---


def test_an_error_in_the_middle_says_what_was_kept(client, folder):
    client.chunks = [MUSIC[:RATE], ServerError("the engine stopped")]
    result = attune("play", "speech.wav", "--session", "s.json")
    assert result.exit_code == 1
    assert result.stderr == "Error: the engine stopped; 1.0 s of music were kept in music.wav\n"
    assert sf.info("music.wav").frames == RATE
    assert json.loads(Path("s.json").read_text())["music"] == {
        "file": "music.wav", "format": "wav", "seconds": 1.0, "complete": False
    }  # fmt: skip


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_an_interruption_keeps_a_file_that_can_be_played(client, folder, number, status, name):
    def wait():
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("the signal did not end the wait")

    client.chunks = [MUSIC[: 2 * RATE], wait]
    before = signal.getsignal(number)
    result = attune("play", "speech.wav", "-o", name)
    assert result.exit_code == status
    assert result.stderr.startswith("interrupted; 2.0 s of music were kept in ") or name == "a.mp3"
    assert len(read(name)) == pytest.approx(2 * RATE, abs=0.1 * RATE)
    assert signal.getsignal(number) is before


def test_an_interruption_does_not_tear_a_write(client, folder, monkeypatch):
    write = sf.SoundFile.write

    def slow_write(self, data):
        os.kill(os.getpid(), signal.SIGINT)
        write(self, data)

    monkeypatch.setattr(sf.SoundFile, "write", slow_write)
    result = attune("play", "speech.wav")
    assert result.exit_code == 130
    assert sf.info("music.wav").frames == RATE
    assert "1.0 s of music were kept in music.wav" in result.stderr


def test_an_interruption_before_any_music_leaves_no_file(client, folder):
    client.chunks = [KeyboardInterrupt()]
    result = attune("play", "speech.wav")
    assert (result.exit_code, result.stderr) == (130, "interrupted; no music was kept\n")
    assert not Path("music.wav").exists()


def test_a_server_that_sends_nothing_is_an_error(client, folder):
    client.chunks = []
    result = attune("play", "speech.wav")
    assert (result.exit_code, result.stderr) == (1, "Error: the server sent no music; no music was kept\n")


# --- sources and options ---


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["speech.wav"], {"audio": Path("speech.wav")}),
        (["-"], {"audio": b"spoken"}),
        (["--text", "rain, slowly"], {"text": "rain, slowly"}),
        (["--emotion", "calm"], {"emotion": "calm"}),
        (["--vad", "4, 2,3.5"], {"vad": (4.0, 2.0, 3.5)}),
        (["--vad", "4,2,3", "--emotion", "calm"], {"emotion": "calm", "vad": (4.0, 2.0, 3.0)}),
        (["--spec", "spec.json"], {"spec": {"tempo_bpm": 70}}),
        (["--spec", "spec.json", "--text", "rain"], {"spec": {"tempo_bpm": 70}, "text": "rain"}),
    ],
)
def test_a_source_reaches_the_client(client, folder, arguments, asked):
    Path("spec.json").write_text('{"tempo_bpm": 70}')
    result = attune("play", *arguments, "--seconds", 3, "--engine", "composer", stdin=b"spoken")
    assert result.exit_code == 0, result.output
    nothing = dict.fromkeys(("audio", "text", "emotion", "vad", "spec"))
    rest = {"duration_s": 3.0, "seed": None, "engine": "composer", "other_languages": None, "deadline_s": None}
    assert client.asked == [nothing | rest | asked]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["speech.wav", "--text", "rain"],
        ["--text", "rain", "--emotion", "calm"],
        ["--spec", "spec.json", "--emotion", "calm"],
        ["--text", ""],
        ["--text", "\udcff"],
        ["--emotion", "\udcff"],
        ["speech.wav", "--engine", "\udcff"],
        ["--vad", "4,2"],
        ["--vad", "4,2,6"],
        ["--vad", "4,nan,3"],
        ["--vad", "4,x,3"],
        ["--spec", "speech.wav"],
        ["--spec", "list.json"],
        ["--spec", "latin1.json"],
        ["--spec", "nowhere.json"],
        ["nowhere.wav"],
        ["speech.wav", "--seed", "-1"],
        ["speech.wav", "--seed", str(2**63)],
        *(["speech.wav", "--seconds", value] for value in ("nan", "inf", "-inf", "0", "601", "x")),
        *(["speech.wav", "--timeout", value] for value in ("nan", "inf", "-1", "0", "1e300", "x")),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(client, folder, arguments):
    Path("spec.json").write_text("{}")
    Path("list.json").write_text("[1]")
    Path("latin1.json").write_bytes(b'{"tonic": "\xe9"}')
    result = attune("play", *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not client.asked
    assert not Path("music.wav").exists()


def test_a_session_file_asks_for_the_same_piece(client, folder):
    session = {"music_spec": {"tempo_bpm": 70}, "prompt": "slow", "duration_s": 4.5, "seed": 0, "engine": "musicgen"}
    Path("session.json").write_text(json.dumps(session))
    assert attune("play", "--spec", "session.json").exit_code == 0
    assert attune("play", "--spec", "session.json", "--seed", 3, "--seconds", 9, "-f").exit_code == 0
    same = {"audio": None, "text": "slow", "emotion": None, "vad": None, "spec": {"tempo_bpm": 70}}
    same |= {"duration_s": 4.5, "seed": 0, "engine": "musicgen", "other_languages": None, "deadline_s": None}
    assert client.asked == [same, same | {"duration_s": 9.0, "seed": 3}]


def test_the_seed_is_printed(client, folder):
    assert "seed\t41\n" in attune("play", "speech.wav").stdout


# --- what is printed ---


def test_a_pipe_gets_a_line_for_each_value(client, folder):
    lines = attune("play", "speech.wav").stdout.splitlines()
    values = dict(line.split("\t") for line in lines)
    assert values["transcript"] == " ".join(WORDS.split())
    assert set(values) >= {"emotion", "retrieved", "description", "prompt", "engine", "seed", "first audio", "total"}
    assert all(line == line.strip() for line in lines[:2])


def test_json_is_one_object(client, folder):
    result = attune("play", "speech.wav", "--json", "--session", "s.json")
    assert json.loads(result.stdout) == json.loads(Path("s.json").read_text())
    assert json.loads(result.stdout)["music"]["complete"] is True


def test_models_as_json_and_as_lines(client):
    first, second = json.loads(attune("models", "--json").stdout)
    assert (first["name"], first["state"]) == ("valence", "READY")
    assert "audio_state?" in first["inputs"]
    assert second["inputs"] == []
    assert attune("models").stdout.splitlines()[0].split("\t")[:2] == ["valence", "READY"]


def test_without_a_recording_the_options_are_printed(client, folder):
    client.session = FakeSession(vad=VAD(4, 2, 3))
    out = attune("play", "--vad", "4,2,3").stdout
    assert "transcript" not in out
    assert "VAD\tvalence 4.00 arousal 2.00 dominance 3.00\n" in out


class FakeAsyncClient:
    def __init__(self, url, *, timeout_s, retries):
        pass

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def analyse(self, audio, *, other_languages=None, deadline_s=None):
        if audio == b"":
            raise SilentAudio("silent")
        return SPEECH


def test_analyse_reads_standard_input_and_keeps_the_order(monkeypatch, folder):
    monkeypatch.setattr(analysis, "AsyncAttuneClient", FakeAsyncClient)
    result = attune("analyse", "speech.wav", "-", "speech.wav", "--json", stdin=b"")
    assert result.exit_code == 1
    first, second, third = json.loads(result.stdout)
    assert second == {"file": "-", "error": {"code": "silent_audio", "message": "silent"}}
    assert first == third
    assert attune("analyse", "-", stdin=b"spoken").stdout.startswith("file\tstandard input\ntranscript\ta long")
    assert attune("analyse", "-", "-").exit_code == 2


# --- words of a crisis ---

CRISIS = (CrisisWords(CrisisKind.SUICIDE, 0, 2, 0, 9),)


@pytest.fixture
def crisis(client, folder, monkeypatch):
    """A client whose answers carry words of a crisis, in a locale that names no country."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "ATTUNE_COUNTRY"):
        monkeypatch.delenv(name, raising=False)
    client.session = FakeSession(speech=SPEECH, vad=SPEECH.vad, crisis=CRISIS)
    monkeypatch.setattr(analysis, "AsyncAttuneClient", FakeAsyncClient)
    monkeypatch.setattr(sys.modules[__name__], "SPEECH", replace(SPEECH, crisis=CRISIS))
    return client


def helped(result) -> list[str]:
    """The lines of the notice in a pipe."""
    return [line.removeprefix("help\t") for line in result.stdout.splitlines() if line.startswith("help\t")]


def notice_lines(country) -> list[str]:
    return [" ".join(line.split()) for line in crisis_notice(country).splitlines()]


@pytest.mark.parametrize("command", [["play", "speech.wav"], ["analyse", "speech.wav", "speech.wav"]])
@pytest.mark.parametrize(
    ("options", "environment", "country"),
    [
        ([], {}, None),
        ([], {"LANG": "C.UTF-8"}, None),
        ([], {"LANG": "en_GB.UTF-8"}, "GB"),
        ([], {"LANG": "en_GB.UTF-8", "LC_ALL": "de_AT"}, "AT"),
        ([], {"LANG": "en_GB.UTF-8", "ATTUNE_COUNTRY": "NZ"}, "NZ"),
        (["--country", "us"], {"LANG": "en_GB.UTF-8"}, "US"),
        (["--country", "ZZ"], {}, None),
    ],
)
def test_where_to_find_help_is_shown_once_for_the_country(crisis, monkeypatch, command, options, environment, country):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = attune(*command, *options)
    assert result.exit_code == 0, result.output
    told = helped(result)
    assert told[-len(notice_lines(country)) :] == notice_lines(country)
    assert told[: -len(notice_lines(country))] == (["This is about speech.wav."] if "analyse" in command else [])


def test_the_notice_names_the_recordings_that_it_is_about(crisis, monkeypatch):
    class OfSome(FakeAsyncClient):
        async def analyse(self, audio, **options):
            return replace(SPEECH, crisis=CRISIS if "calm" not in audio.name else ())

    monkeypatch.setattr(analysis, "AsyncAttuneClient", OfSome)
    for name in ("calm.wav", "late.wav"):
        Path(name).write_bytes(Path("speech.wav").read_bytes())
    several = helped(attune("analyse", "late.wav", "calm.wav", "speech.wav"))
    assert several == ["This is about late.wav, speech.wav.", *notice_lines(None)]
    assert helped(attune("analyse", "speech.wav")) == notice_lines(None)
    assert helped(attune("analyse", "calm.wav", "calm.wav")) == []


@pytest.mark.parametrize("command", [["play", "speech.wav"], ["analyse", "speech.wav"]])
def test_nothing_is_shown_where_nothing_was_found(client, folder, monkeypatch, command):
    monkeypatch.setattr(analysis, "AsyncAttuneClient", FakeAsyncClient)
    result = attune(*command)
    assert (result.exit_code, helped(result)) == (0, [])
    assert "crisis_notice" not in attune(*command, "--json", *(["-f"] if "play" in command else [])).stdout


def test_what_is_printed_beside_music_on_standard_output_says_it_too(crisis):
    result = attune("play", "speech.wav", "-o", "-")
    assert "help\tSome of these words" in result.stderr


def test_json_carries_the_finds_and_the_notice(crisis):
    played = json.loads(attune("play", "speech.wav", "--json", "--country", "IE").stdout)
    [analysed] = json.loads(attune("analyse", "speech.wav", "--json", "--country", "IE").stdout)
    for result in (played, analysed):
        assert result["crisis"] == [CRISIS[0].to_dict()]
        assert result["crisis_notice"] == crisis_notice("IE")


def test_a_session_file_keeps_no_finds(crisis):
    assert attune("play", "speech.wav", "--session", "s.json").exit_code == 0
    kept = Path("s.json").read_text()
    assert "seed" in kept
    assert "crisis" not in kept
    assert "suicide" not in kept


@pytest.mark.parametrize("country", ["", "G", "GBR", "1A", "ÄÖ"])
def test_what_is_no_country_is_refused_before_anything_is_sent(crisis, country):
    result = attune("play", "speech.wav", "--country", country)
    assert result.exit_code == 2
    assert "--country" in result.stderr
    assert not crisis.asked


# --- the command as a whole ---


def test_an_unknown_command_or_option_is_answered_with_the_nearest(client):
    result = attune("analyze")
    assert result.exit_code == 2
    assert "did you mean 'analyse'?" in result.stderr
    assert "Did you mean" not in attune("xyzzy").stderr
    assert "--seconds" in attune("play", "a.wav", "--second", "3").stderr
    assert "did you mean 'pipeline'?" in attune("bench", "pipelin").stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "x"), "Error: x: No space left on device\n"),
        (FileNotFoundError(2, "No usable temporary directory"), "Error: No usable temporary directory\n"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "Error: 'utf-8' codec"),
        (ServerError("no"), "Error: no\n"),
        (KeyboardInterrupt(), "interrupted\n"),
    ],
)
def test_any_sub_command_fails_in_one_line(client, monkeypatch, error, line):
    def fail(self):
        raise error

    monkeypatch.setattr(FakeClient, "models", fail)
    result = attune("models")
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert result.stderr.startswith(line)
    assert len(result.output.splitlines()) == 1


def test_an_unexpected_error_keeps_its_traceback(client, monkeypatch, tmp_path):
    monkeypatch.setattr(FakeClient, "models", lambda self: {}["missing"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = attune("models")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: unforeseen KeyError: 'missing'\n")
    [kept] = tmp_path.iterdir()
    assert str(kept) in result.stderr
    assert "Traceback" in kept.read_text()
    assert isinstance(attune("--debug", "models").exception, KeyError)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert isinstance(attune("models").exception, KeyError), "a traceback that cannot be kept is shown"


def test_what_becomes_of_other_languages_reaches_the_client(client, folder):
    assert attune("play", "speech.wav", "--other-languages", "voice").exit_code == 0
    assert client.asked[0]["other_languages"] == "voice"
    assert attune("play", "speech.wav", "-f", "--other-languages", "guess").exit_code == 2


def test_a_deadline_reaches_the_client_and_one_out_of_range_does_not(client, folder):
    assert attune("play", "speech.wav", "--deadline", "2.5").exit_code == 0
    assert client.asked[0]["deadline_s"] == 2.5
    for seconds in ("0", "-1", "3601", "nan", "soon"):
        for command in ("play", "analyse"):
            result = attune(command, "speech.wav", "--deadline", seconds)
            assert result.exit_code == 2
            assert "--deadline" in result.stderr
    assert len(client.asked) == 1


def test_a_deadline_that_passed_is_one_line_and_what_came_before_is_kept(client, folder):
    client.chunks = [np.zeros((RATE, 2), np.float32), RequestTimeout("the deadline passed before the music was done")]
    result = attune("play", "speech.wav", "--deadline", "2.5")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last == "Error: the deadline passed before the music was done; 1.0 s of music were kept in music.wav"


def test_a_specification_that_is_nested_too_deep_is_refused_in_one_line(client, folder):
    Path("deep.json").write_text("[" * 100_000)
    result = attune("play", "--spec", "deep.json")
    assert result.exit_code == 2
    assert "deep.json is not JSON" in result.stderr


def test_a_recording_that_is_missing_does_not_stop_the_others(monkeypatch, folder):
    monkeypatch.setattr(analysis, "AsyncAttuneClient", FakeAsyncClient)
    monkeypatch.setattr(FakeAsyncClient, "analyse", missing_is_unreadable)
    result = attune("analyse", "speech.wav", "missing.wav", "speech.wav", "--json")
    assert result.exit_code == 1
    first, second, third = json.loads(result.stdout)
    assert second["error"]["code"] == UnreadableFile.code
    assert first["emotion"] == third["emotion"] == "calm"


async def missing_is_unreadable(self, audio, *, other_languages=None, deadline_s=None):
    if not Path(audio).exists():
        raise UnreadableFile(f"{audio}: no such file")
    return SPEECH
