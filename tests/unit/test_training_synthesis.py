"""Sentences read aloud: what is drawn, what is written, and going on after a stop.

.venv/bin/pytest tests/unit/test_training_synthesis.py
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from attune_training.data.corpus import open_corpus
from attune_training.data.utterance import Utterance
from attune_training.emotion_map.anchors import read_anchors
from attune_training.evaluation.stories.reading import NARRATIONS_FILE, read_narrations, shipped_file
from attune_training.synthesis.command import _short, synthesise_command
from attune_training.synthesis.corpus import MANIFEST_COLUMNS, VOICES, Voice, choose_reading, synthesise
from attune_training.synthesis.engines import SynthesisError, spoken_text
from attune_training.synthesis.texts import SpeechError, Text, find_recordings, read_recordings, read_texts

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")

ONE_VOICE = (Voice("en-us"),)


def sentence(text, split="train", valence=3.0):
    return Utterance(None, text, valence, 2.5, 3.5, speaker="", session="s1", category="sad", split=split)


def rows(manifest):
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sound(manifest, row):
    samples, rate = soundfile.read(manifest.parent / row["path"], dtype="float32")
    assert rate == 16000
    assert samples.ndim == 1
    return samples


def test_the_test_split_has_voices_of_its_own():
    heard = {
        split: {choose_reading(VOICES, split, 0, index).voice for index in range(300)}
        for split in ("train", "validation", "test", "")
    }
    assert len(heard["test"]) == 2
    assert heard["train"] == heard["validation"] == heard[""]
    assert len(heard["train"]) == 10
    assert not heard["test"] & heard["train"]


def test_the_test_voices_share_no_variant_with_the_others():
    variants = {apart: {voice.name.split("+")[1] for voice in VOICES if voice.test_only is apart} for apart in (0, 1)}
    assert not variants[True] & variants[False]


def test_voices_are_drawn_evenly_and_stay_near_their_usual_pitch_and_rate():
    usual = {voice.name: voice for voice in VOICES}
    readings = [choose_reading(VOICES, "train", 3, index) for index in range(3000)]
    assert min(Counter(reading.voice for reading in readings).values()) > 220
    assert {reading.pitch - usual[reading.voice].pitch for reading in readings} == set(range(-4, 5))
    assert {reading.rate_wpm - usual[reading.voice].rate_wpm for reading in readings} == set(range(-10, 11))


def test_the_seed_decides():
    first, again, other = ([choose_reading(VOICES, "train", seed, index) for index in range(20)] for seed in (1, 1, 2))
    assert first == again != other


def test_a_split_without_a_voice_is_refused():
    with pytest.raises(ValueError, match="no voice may read the split 'test': give at least one test_only voice"):
        choose_reading(ONE_VOICE, "test", 0, 0)


@pytest.mark.parametrize(
    ("transcript", "spoken"),
    [
        ("  two\n\nlines\t here ", "two lines here"),
        ("a\x01b\x00c soft\xadhyphen", "abc softhyphen"),
        ("say [[h@l'oU]] and [[[this", "say [ [h@l'oU]] and [ [ [this"),
        ("It’s “so” — isn't it?", "It’s “so” — isn't it?"),
        ("\x01\x02", ""),
    ],
)
def test_what_the_synthesiser_would_take_as_commands_is_made_plain(transcript, spoken):
    assert spoken_text(transcript) == spoken


@needs_espeak
def test_speech_and_manifest_are_written(tmp_path):
    sentences = [sentence('She said, "no, 5 < 6".'), sentence("Good morning.", "test", valence=4.25)]
    steps = []
    manifest = synthesise(sentences, tmp_path / "speech", seed=1, progress=steps.append)
    written = rows(manifest)
    assert tuple(written[0]) == MANIFEST_COLUMNS
    assert [row["transcript"] for row in written] == [one.transcript for one in sentences]
    assert written[1]["speaker"] in {voice.name for voice in VOICES if voice.test_only}
    told = {name: written[1][name] for name in MANIFEST_COLUMNS[2:] if name != "speaker"}
    assert told == {
        "valence": "4.25",
        "arousal": "2.5",
        "dominance": "3.5",
        "session": "s1",
        "category": "sad",
        "split": "test",
    }
    assert steps == [1, 1]
    for row in written:
        samples = sound(manifest, row)
        assert 0.4 * 16000 < len(samples) < 6 * 16000
        assert np.abs(samples).max() > 0.1
    record = json.loads((tmp_path / "speech" / "synthesis.json").read_text())
    assert record["engine"].startswith("espeak-ng ")
    assert (record["seed"], record["sentences"], len(record["voices"])) == (1, 2, len(VOICES))


@needs_espeak
def test_the_manifest_is_a_corpus(tmp_path):
    sentences = [sentence("Good morning."), sentence("Good night.", "test")]
    utterances = open_corpus("manifest", synthesise(sentences, tmp_path)).utterances
    for made, given in zip(utterances, sentences, strict=True):
        assert made.audio is not None
        assert made.speaker
        assert replace(made, audio=None, speaker="") == given


@needs_espeak
@pytest.mark.parametrize(
    "text", ["-v de --help", "<speak>yes</speak> & <break time='9s'/>", "“Ünïcode” 🙂 — ok", "$(id)"]
)
def test_any_text_is_only_read(tmp_path, text):
    manifest = synthesise([sentence(text)], tmp_path, ONE_VOICE)
    (row,) = rows(manifest)
    assert row["transcript"] == text
    assert len(sound(manifest, row)) > 3000


@needs_espeak
def test_a_label_never_changes_the_voice(tmp_path):
    texts = [f"Sentence {number}." for number in range(6)]
    manifests = [
        synthesise([sentence(text, valence=valence) for text in texts], tmp_path / str(valence), seed=5)
        for valence in (1.0, 5.0)
    ]
    low, high = map(rows, manifests)
    assert [row["path"] for row in low] == [row["path"] for row in high]
    for one, other in zip(low, high, strict=True):
        np.testing.assert_array_equal(sound(manifests[0], one), sound(manifests[1], other))


@needs_espeak
def test_a_stopped_run_goes_on_and_keeps_what_is_there(tmp_path):
    texts = ["One.", "Two.", "Three."]
    manifest = synthesise([sentence(text) for text in texts], tmp_path)
    kept, lost, changed = (tmp_path / row["path"] for row in rows(manifest))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    lost.with_name(f".{lost.name}.partial").write_bytes(b"half a file")
    synthesise([sentence(text) for text in ["One.", "Two.", "Other words."]], tmp_path)
    assert kept.stat().st_mtime_ns == before
    assert len(soundfile.read(lost)[0]) > 0
    assert rows(manifest)[2]["path"] != changed.relative_to(tmp_path).as_posix()
    assert not list(tmp_path.rglob("*.partial"))


@needs_espeak
def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sentence 1 has no words to read"):
        synthesise([sentence("Yes."), sentence(" \x01 ")], tmp_path, ONE_VOICE)
    with pytest.raises(SynthesisError, match="has no voice 'no-such-voice\\+f1'"):
        synthesise([sentence("Yes.")], tmp_path, (Voice("no-such-voice+f1"),))
    assert not (tmp_path / "manifest.csv").exists()


def test_a_missing_synthesiser_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SynthesisError, match="apt-get install espeak-ng"):
        synthesise([sentence("Yes.")], tmp_path)


EMOBANK = 'id,split,V,A,D,text\na,train,3.0,3.0,3.2,"Yes, ""yes""."\nb,dev,2.0,3.0,3.2,!\nc,test,4.0,3.0,2.0,Good.\n'


@needs_espeak
def test_the_command_reads_emobank(tmp_path):
    (tmp_path / "emobank.csv").write_text(EMOBANK)
    arguments = ["--emobank", str(tmp_path / "emobank.csv"), "--output", str(tmp_path / "speech")]
    result = CliRunner().invoke(synthesise_command, arguments)
    assert result.exit_code == 0, result.output
    written = rows(tmp_path / "speech" / "manifest.csv")
    assert [(row["transcript"], row["split"]) for row in written] == [('Yes, "yes".', "train"), ("Good.", "test")]


def test_the_command_has_no_traceback(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    arguments = ["--emobank", str(tmp_path / "other.csv"), "--output", str(tmp_path / "speech")]
    result = CliRunner().invoke(synthesise_command, arguments)
    assert result.exit_code == 1
    assert "is not EmoBank" in result.output


def test_emobank_and_texts_have_their_own_options(tmp_path):
    (tmp_path / "emobank.csv").write_text(EMOBANK)
    for arguments, message in (
        (["--emobank", str(tmp_path / "emobank.csv"), "--stories", "shipped"], "give one of --emobank, --written"),
        ([], "give one of --emobank"),
        (["--emobank", str(tmp_path / "emobank.csv"), "--voice", "en-us"], "a corpus is read by twelve voices"),
        (["--stories", "shipped", "--seed", "1"], "--seed is for a corpus"),
    ):
        result = CliRunner().invoke(synthesise_command, [*arguments, "--output", str(tmp_path / "speech")])
        assert result.exit_code == 2
        assert message in result.stderr


# Texts to measure by


FAKE_PIPER = f"""#!{sys.executable}
import math, struct, sys, wave
voice, text = sys.argv[sys.argv.index("--model") + 1], sys.stdin.read()
assert sys.argv[sys.argv.index("--output-file") + 1] == "-"
if "unspeakable" in text:
    print("a traceback\\nValueError: no phonemes", file=sys.stderr)
    raise SystemExit(1)
with wave.open(sys.stdout.buffer, "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(22050)
    count = 2205 * len(text.split())
    file.writeframes(struct.pack(f"<{{count}}h", *(int(9000 * math.sin(i / 9)) for i in range(count))))
"""


@pytest.fixture
def piper(tmp_path):
    """A program that takes what piper takes, and hums a tenth of a second for each word; and a voice for it."""
    program, voice = tmp_path / "piper", tmp_path / "someone.onnx"
    program.write_text(FAKE_PIPER)
    program.chmod(0o755)
    voice.write_bytes(b"weights")
    voice.with_name("someone.onnx.json").write_text("{}")
    return program, voice


def read(*arguments):
    result = CliRunner().invoke(synthesise_command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return Path(result.stdout.strip())


def some_texts(folder, *lines):
    path = folder / "texts.csv"
    path.write_text("\n".join(["id,note,text", *lines]) + "\n", encoding="utf-8")
    return path


def test_texts_are_read_by_piper_and_going_on_keeps_what_is_there(tmp_path, piper):
    program, voice = piper
    texts = some_texts(tmp_path, "a,x,one two three", 'b,y,"-f four, five"')
    arguments = ("--texts", texts, "--piper", program, "--piper-voice", voice, "--output", tmp_path / "speech")
    manifest = read(*arguments)
    first, second = rows(manifest)
    assert (first["id"], first["text"], first["voice"]) == ("a", "one two three", "piper-someone")
    assert len(sound(manifest, first)) == pytest.approx(0.3 * 16000, abs=2)
    before = (manifest.parent / first["path"]).stat().st_mtime_ns
    (manifest.parent / second["path"]).unlink()
    assert rows(read(*arguments)) == [first, second]
    assert (manifest.parent / first["path"]).stat().st_mtime_ns == before
    assert len(sound(manifest, second)) == pytest.approx(0.3 * 16000, abs=2)
    voice.write_bytes(b"other weights")  # the same text by another voice is another recording
    assert rows(read(*arguments))[0]["path"] != first["path"]


@needs_espeak
def test_every_text_is_read_by_every_voice(tmp_path, piper):
    program, voice = piper
    options = ("--voice", "en-us+f3", "--voice", "en-gb", "--piper", program, "--piper-voice", voice)
    manifest = read("--narrations", "shipped", *options, "--output", tmp_path)
    told = read_narrations(shipped_file(NARRATIONS_FILE), read_anchors().labels)
    texts = [Text(narration.id, narration.text) for narration in told]
    found = find_recordings(read_recordings(tmp_path), texts)
    assert list(found) == ["en-us+f3", "en-gb", "piper-someone"]
    assert [item.id for item in found["en-gb"]] == [text.id for text in texts]
    lengths = {name: soundfile.info(items[0].path).duration for name, items in found.items()}
    assert lengths["en-us+f3"] > 8
    assert lengths["piper-someone"] == pytest.approx(len(texts[0].text.split()) / 10, abs=0.01)
    record = json.loads((manifest.parent / "synthesis.json").read_text())
    assert (record["texts"], list(record["voices"])) == (len(texts), ["en-us+f3", "en-gb", "piper-someone"])


@needs_espeak
def test_without_a_voice_stories_are_read_by_one_that_training_does_not_know(tmp_path):
    (tmp_path / "mine.csv").write_text("id,text,emotion\na,I went down to the sea.,calm\n")
    (row,) = rows(read("--stories", tmp_path / "mine.csv", "--output", tmp_path / "speech"))
    assert row["voice"] in {voice.name for voice in VOICES if voice.test_only}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda options: options | {"--piper": "/no/piper"}, "/no/piper cannot be run; install piper in a virtual env"),
        (
            lambda options: options | {"--piper-voice": options["--texts"]},
            "an .onnx file with its .onnx.json is needed",
        ),
    ],
)
def test_what_piper_lacks_is_said(tmp_path, piper, change, message):
    options = {"--texts": some_texts(tmp_path, "a,x,one"), "--piper": piper[0], "--piper-voice": piper[1]}
    arguments = [str(part) for option in change(options).items() for part in option]
    result = CliRunner().invoke(synthesise_command, [*arguments, "--output", str(tmp_path / "speech")])
    assert result.exit_code == 1
    assert message in result.stderr


def test_what_piper_cannot_read_is_said_in_one_line(tmp_path, piper):
    texts = some_texts(tmp_path, "a,x,one unspeakable thing")
    arguments = ("--texts", texts, "--piper", piper[0], "--piper-voice", piper[1], "--output", tmp_path / "speech")
    result = CliRunner().invoke(synthesise_command, [str(argument) for argument in arguments])
    assert result.stderr.endswith("piper cannot read 'one unspeakable thing': ValueError: no phonemes\n")
    assert not (tmp_path / "speech" / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("a,x,one", "a,x,two"), "row 2: the id 'a' comes twice"),
        (("a,x,",), "row 1: the id or the text is empty"),
        (("a,x",), "row 1: more or fewer fields"),
        ((), "there are no rows"),
    ],
)
def test_bad_texts_are_refused(tmp_path, lines, message):
    with pytest.raises(SpeechError, match=message):
        read_texts(some_texts(tmp_path, *lines))


def test_texts_without_the_columns_are_refused(tmp_path):
    (tmp_path / "texts.csv").write_text("id,words\na,one\n")
    with pytest.raises(SpeechError, match="lacks the columns text"):
        read_texts(tmp_path / "texts.csv")


def test_recordings_have_to_be_those_of_the_texts(tmp_path, piper):
    program, voice = piper
    read(
        "--texts", some_texts(tmp_path, "a,x,one two"), "--piper", program, "--piper-voice", voice, "--output", tmp_path
    )
    recordings = read_recordings(tmp_path)
    with pytest.raises(SpeechError, match="'b' was not read by the voice piper-someone"):
        find_recordings(recordings, [Text("b", "one two")])
    with pytest.raises(SpeechError, match="'a' was read with other words"):
        find_recordings(recordings, [Text("a", "one two three")])
    recordings[0].path.unlink()
    with pytest.raises(SpeechError, match="1 recordings are missing"):
        read_recordings(tmp_path)
    with pytest.raises(SpeechError, match=r"cannot read .*manifest\.csv"):
        read_recordings(tmp_path / "speech")


def test_short_written_texts_are_those_with_all_labels():
    def written(words, valence=3.0):
        return Utterance(None, " ".join(["word"] * words), valence, 2.0, 3.0, speaker="writer-a")

    kept = _short([written(5), written(22), written(23), written(5, math.nan)])
    assert [len(item.transcript.split()) for item in kept] == [5, 22]
