"""Every kind of corpus, on miniatures made here in exactly its layout, with bad rows of every kind.

.venv/bin/pytest tests/unit/test_training_corpora.py
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from attune_training.data.audio import EmbeddedAudio, audio_fault, read_speech, trim_silence
from attune_training.data.corpus import CORPUS_KINDS, CorpusError, open_corpus
from attune_training.data.iemocap import TurnName, find_turn_name
from attune_training.data.ravdess import ClipName, derived_vad, parse_clip_name
from attune_training.data.utterance import Utterance


def tone(size: int = 1600, step: float = 0.2) -> np.ndarray:
    return 0.5 * np.sin(np.arange(size) * step).astype(np.float32)


def write_audio(path: Path, size: int = 1600, step: float = 0.2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(size, step), 16_000)
    return path


def encoded(kind: str, size: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(size), 16_000, format=kind)
    return buffer.getvalue()


def problems(kind: str, path: Path | str) -> list[str]:
    """Return the bad rows as text: listed where they are skipped, and refused otherwise."""
    skipped = [str(problem) for problem in open_corpus(kind, path, "skip").problems]
    if skipped:
        with pytest.raises(CorpusError) as refused:
            open_corpus(kind, path)
        assert all(line in str(refused.value) for line in skipped)
        assert "choose --bad-rows skip to leave them out" in str(refused.value)
    return skipped


# Audio


def test_speech_is_read_as_16_khz_mono(tmp_path):
    stereo = np.stack([np.full(4410, 0.5), np.full(4410, 0.1)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 44_100, subtype="FLOAT")
    samples = read_speech(tmp_path / "a.wav")
    assert samples.shape == (1600,)
    assert samples.dtype == np.float32
    assert samples[800] == pytest.approx(0.3, abs=1e-3)
    embedded = EmbeddedAudio("a.wav", (tmp_path / "a.wav").read_bytes)
    np.testing.assert_array_equal(read_speech(embedded), samples)


def test_unreadable_audio_is_named(tmp_path):
    (tmp_path / "a.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"a\.wav cannot be read as audio"):
        read_speech(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=r"row 3 cannot be read as audio"):
        read_speech(EmbeddedAudio("row 3", lambda: b"no audio"))
    soundfile.write(tmp_path / "b.wav", np.zeros(0), 16_000)
    with pytest.raises(ValueError, match=r"b\.wav holds no audio"):
        read_speech(tmp_path / "b.wav")


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_a_file_cut_short_is_found_without_decoding_it(kind):
    whole = encoded(kind)
    assert audio_fault(whole) == ""
    assert audio_fault(whole[: len(whole) // 2]) != ""


@pytest.mark.parametrize("kind", ["WAV", "AIFF"])
def test_sound_that_is_shorter_than_announced_is_cut_short(kind):
    half = bytearray(encoded(kind)[:2000])
    # As long as the header says of the whole file, unlike the sound in it.
    half[4:8] = (len(half) - 8).to_bytes(4, "little" if kind == "WAV" else "big")
    assert audio_fault(bytes(half)) == "is cut short"


def test_a_streamed_wav_file_of_unknown_length_is_whole():
    streamed = bytearray(encoded("WAV"))
    streamed[40:44] = b"\xff" * 4
    assert audio_fault(bytes(streamed)) == ""


def test_silence_is_trimmed_but_for_a_margin():
    loud = np.sin(np.arange(3200) * 0.3).astype(np.float32)
    padded = np.concatenate([np.zeros(16_000, np.float32), loud, np.zeros(8000, np.float32)])
    trimmed = trim_silence(padded)
    assert len(trimmed) == 3200 + 2 * 1600
    np.testing.assert_array_equal(trimmed[1600:4800], loud)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_silence_alone_is_left(size):
    silence = np.zeros(size, np.float32)
    np.testing.assert_array_equal(trim_silence(silence), silence)


# The entrance


def test_unknown_kinds_are_answered_with_the_known_ones():
    with pytest.raises(CorpusError, match="'iemo' is no kind of corpus; the kinds are iemocap, huggingface, manifest"):
        open_corpus("iemo", "somewhere")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("iemocap", "should hold Session1 to Session5"),
        ("huggingface", "a folder written by save_to_disk"),
        ("manifest", "a CSV or Parquet file is expected"),
        ("ravdess", "a folder of its speech clips is expected"),
        ("emobank", "its table is expected, emobank.csv"),
        ("cremad", "a folder with tabulatedVotes.csv and its clips is expected"),
        ("diaries", "train_subtask1.csv is expected"),
        ("goemotions", "train.tsv, dev.tsv, test.tsv and labels.txt are expected"),
        ("brighter", "a folder with train.csv, dev.csv and test.csv is expected"),
        ("empathic", "messages.csv is expected"),
        ("written", "a CSV file is expected"),
    ],
)
def test_a_wrong_path_is_answered_with_what_was_expected(kind, expected, tmp_path):
    with pytest.raises(CorpusError, match=expected):
        open_corpus(kind, tmp_path / "nowhere")


def test_every_kind_is_tested():
    accounts = {"diaries", "goemotions", "brighter", "empathic", "written"}  # test_training_accounts.py
    here = {"iemocap", "huggingface", "manifest", "ravdess", "emobank"}
    assert set(CORPUS_KINDS) == here | accounts | {"cremad"}  # test_training_cremad.py


def test_bad_rows_are_refused_or_skipped_and_nothing_else():
    with pytest.raises(CorpusError, match="'refuse' or 'skip', not 'ignore'"):
        open_corpus("ravdess", "somewhere", "ignore")


# A manifest

HEADER = "path,transcript,valence,arousal,dominance,speaker,session"


def write_manifest(folder: Path, *rows: str, header: str = HEADER) -> Path:
    write_audio(folder / "clips" / "a.wav")
    path = folder / "speech.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_manifest_is_read(tmp_path):
    path = write_manifest(
        tmp_path,
        'clips/a.wav,"Well, yes.",3.5,2,4,ann,1,Happy,dev',
        f"{tmp_path}/clips/a.wav,No.,1,5,3,bob,,,",
        header=f"{HEADER},category,split",
    )
    corpus = open_corpus("manifest", path)
    audio = tmp_path / "clips" / "a.wav"
    assert (corpus.name, corpus.problems, corpus.note) == ("speech", (), "")
    assert corpus.utterances == (
        Utterance(audio, "Well, yes.", 3.5, 2.0, 4.0, "ann", "1", "happy", "validation"),
        Utterance(audio, "No.", 1.0, 5.0, 3.0, "bob"),
    )


def test_bad_rows_of_a_manifest_are_listed_with_their_lines(tmp_path):
    (tmp_path / "broken.wav").write_text("no audio")
    (tmp_path / "short.wav").write_bytes(encoded("WAV")[:9000])
    path = write_manifest(
        tmp_path,
        "clips/a.wav,Good.,3,3,3,ann,1",  # Line 2.
        "gone.wav,Words.,3,3,3,ann,1",
        "broken.wav,Words.,3,3,3,ann,1",
        "short.wav,Words.,3,3,3,ann,1",
        "clips/a.wav,Words.,5.5,0.9,3,ann,1",
        "clips/a.wav,Words.,,nan,many,ann,1",
        "clips/a.wav, ,3,3,3,ann,1",
        "",  # An empty line is no row.
        'clips/a.wav,"Two\nlines",3,3,6,ann,1',  # Begins on line 10.
        ",Words.,3,3,3,ann,1",
        "clips/a.wav,Words.,3,3",
    )
    assert len(open_corpus("manifest", path, "skip").utterances) == 1
    assert problems("manifest", path) == [
        f"speech.csv:3: missing file {tmp_path / 'gone.wav'}",
        f"speech.csv:4: {tmp_path / 'broken.wav'} cannot be read as audio: Format not recognised.",
        f"speech.csv:5: {tmp_path / 'short.wav'} is cut short",
        "speech.csv:6: valence 5.5 is outside 1..5; arousal 0.9 is outside 1..5",
        "speech.csv:7: valence is missing; arousal is missing; dominance 'many' is not a number",
        "speech.csv:8: the transcript is empty",
        "speech.csv:10: dominance 6 is outside 1..5",
        "speech.csv:12: the path is empty",
        "speech.csv:13: the row has more or fewer fields than the header",
    ]


def test_an_unknown_split_is_a_bad_row(tmp_path):
    path = write_manifest(
        tmp_path, "clips/a.wav,A,3,3,3,s,1,eval", "clips/a.wav,A,3,3,3,s,1,", header=f"{HEADER},split"
    )
    assert problems("manifest", path) == ["speech.csv:2: the split 'eval' is none of train, validation, test"]


def test_missing_columns_are_named_all_at_once(tmp_path):
    path = write_manifest(tmp_path, header="path,valence,speaker,text")
    expected = r"lacks the columns transcript, arousal, dominance; it has path, valence, speaker, text"
    with pytest.raises(CorpusError, match=expected):
        open_corpus("manifest", path)


@pytest.mark.parametrize("content", [b'path,"transcript\n', b"\xff\xfe\x00"])
def test_a_file_that_is_no_csv_is_refused(content, tmp_path):
    path = tmp_path / "speech.csv"
    path.write_bytes(content)
    with pytest.raises(CorpusError):
        open_corpus("manifest", path)


def test_parquet_is_read_as_csv_is(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    write_audio(tmp_path / "clips" / "a.wav")
    table = {
        "path": ["clips/a.wav", "clips/a.wav", None],
        "transcript": ["Yes.", None, "No."],
        "valence": [3.5, float("nan"), 2.0],
        "arousal": [2.0, None, 2.0],
        "dominance": [4.0, 1.0, 2.0],
        "speaker": [7, 8, 9],
        "session": [1.0, float("nan"), 2.0],
    }
    path = tmp_path / "speech.parquet"
    pyarrow.parquet.write_table(pa.table(table), path)
    [utterance] = open_corpus("manifest", path, "skip").utterances
    assert utterance == Utterance(tmp_path / "clips" / "a.wav", "Yes.", 3.5, 2.0, 4.0, "7", "1")
    assert problems("manifest", path) == [
        "speech.parquet:2: the transcript is empty; valence is missing; arousal is missing",
        "speech.parquet:3: the path is empty",
    ]
    pyarrow.parquet.write_table(pa.table({"path": ["a.wav"]}), path)
    with pytest.raises(CorpusError, match="lacks the columns transcript, valence, arousal, dominance, speaker"):
        open_corpus("manifest", path)
    path.write_text("no table")
    with pytest.raises(CorpusError, match="is not a Parquet file"):
        open_corpus("manifest", path)


def test_a_long_list_of_bad_rows_is_cut(tmp_path):
    path = write_manifest(tmp_path, "clips/a.wav,Good.,3,3,3,ann,1", *["clips/a.wav,Words.,9,3,3,ann,1"] * 23)
    with pytest.raises(CorpusError) as refused:
        open_corpus("manifest", path)
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{path} has 23 bad rows:"
    assert lines[20].strip() == "speech.csv:22: valence 9 is outside 1..5"
    assert lines[21].strip() == "and 3 more"
    assert len(lines) == 23


def test_a_corpus_without_a_good_row_is_refused_even_when_bad_rows_are_skipped(tmp_path):
    with pytest.raises(CorpusError, match=r"no good row is left\n.*\n  speech\.csv:2: valence 9"):
        open_corpus("manifest", write_manifest(tmp_path, "clips/a.wav,Words.,9,3,3,ann,1"), "skip")
    with pytest.raises(CorpusError, match=r"speech\.csv holds no row"):
        open_corpus("manifest", write_manifest(tmp_path), "skip")


def test_digest_is_of_labels_words_and_sound_and_not_of_the_place(tmp_path):
    row = "clips/a.wav,Words.,3,3,3,ann,1"
    digest = open_corpus("manifest", write_manifest(tmp_path / "one", row)).digest
    assert digest == open_corpus("manifest", write_manifest(tmp_path / "two", row)).digest
    for changed in (
        "clips/a.wav,Word.,3,3,3,ann,1",
        "clips/a.wav,Words.,3,3.1,3,ann,1",
        "clips/a.wav,Words.,3,3,3,bob,1",
    ):
        assert digest != open_corpus("manifest", write_manifest(tmp_path / "two", changed)).digest
    path = write_manifest(tmp_path / "two", row)
    write_audio(tmp_path / "two" / "clips" / "a.wav", step=0.21)
    assert digest != open_corpus("manifest", path).digest


# IEMOCAP

SHEET = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
C-F1:\tNeutral;\t()
A-E3:\tval 3; act 2; dom  2;\t()
A-F1:\tval 2; act 3; dom  3;\t()

[10.0100 - 11.3925]\tSes01F_impro01_M000\txxx\t[2.5000, 5.0000, 1.0000]
C-E2:\tAnger; Frustration;\t()

"""
WORDS = """Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
Ses01F_impro01_M000 [010.0100-011.3925]: Do you have: your forms?
M: [LAUGHTER]
"""


def write_dialog(folder: Path, session: int, dialog: str, sheet: str, words: str, turns: list[str]) -> None:
    home = folder / f"Session{session}"
    for part, text in (("EmoEvaluation", sheet), ("transcriptions", words)):
        path = home / "dialog" / part / f"{dialog}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for turn in turns:
        write_audio(home / "sentences" / "wav" / dialog / f"{turn}.wav")


@pytest.fixture
def iemocap(tmp_path: Path) -> Path:
    folder = tmp_path / "IEMOCAP_full_release"
    write_dialog(folder, 1, "Ses01F_impro01", SHEET, WORDS, ["Ses01F_impro01_F000", "Ses01F_impro01_M000"])
    turn = "Ses05M_script03_2_MXX0"
    sheet = f"[0.5 - 1.5]\t{turn}\texc\t[4.6667, 3.3333, 4.0000]\n"
    write_dialog(folder, 5, "Ses05M_script03_2", sheet, f"{turn} [000.5-001.5]: Hm.\n", [turn])
    evaluations = folder / "Session1" / "dialog" / "EmoEvaluation"
    (evaluations / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    (evaluations / "Categorical").mkdir()
    (evaluations / "Categorical" / "Ses01F_impro01_e2_cat.txt").write_text("Ses01F_impro01_F000 :Neutral; ()\n")
    return folder


def test_iemocap_is_read_from_its_release(iemocap):
    corpus = open_corpus("iemocap", iemocap)
    wav = iemocap / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    last = iemocap / "Session5" / "sentences" / "wav" / "Ses05M_script03_2" / "Ses05M_script03_2_MXX0.wav"
    assert (corpus.name, corpus.note, corpus.problems) == ("IEMOCAP", "", ())
    assert corpus.utterances == (
        Utterance(wav / "Ses01F_impro01_F000.wav", "Excuse me.", 2.5, 2.5, 2.5, "Ses01F", "1", "neutral"),
        Utterance(wav / "Ses01F_impro01_M000.wav", "Do you have: your forms?", 2.5, 5.0, 1.0, "Ses01M", "1", ""),
        Utterance(last, "Hm.", 4.6667, 3.3333, 4.0, "Ses05M", "5", "excited"),
    )


def test_bad_rows_of_iemocap_are_listed_with_the_lines_of_the_label_files(iemocap):
    home = iemocap / "Session1"
    sheet = home / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    extra = [
        "[12.1 - 13.2]\tSes01F_impro01_F001\thap\t[5.5000, 3.0000, 0.5000]",
        "[14.1 - 15.2]\tSes01F_impro01_F002\thap",
        "[16.1 - 17.2]\tSes01F_F003\thap\t[3.0, 3.0, 3.0]",
        "[18.1 - 19.2]\tSes01F_impro01_F004\thap\t[, nan, three]",
    ]
    sheet.write_text(SHEET + "\n".join(extra) + "\n")
    recordings = home / "sentences" / "wav" / "Ses01F_impro01"
    write_audio(recordings / "Ses01F_impro01_F001.wav")
    write_audio(recordings / "Ses01F_impro01_F004.wav")
    (recordings / "Ses01F_impro01_M000.wav").unlink()
    (home / "dialog" / "transcriptions" / "Ses01F_impro01.txt").write_text(
        WORDS + "Ses01F_impro01_F001 [012.1-013.2]: Hi.\nSes01F_impro01_F004 [018.1-019.2]: \n"
    )
    source = "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    assert problems("iemocap", iemocap) == [
        f"{source}:9: missing file {recordings / 'Ses01F_impro01_M000.wav'}",
        f"{source}:12: valence 5.5 is outside 1..5; dominance 0.5 is outside 1..5",
        f"{source}:13: not of the form [start - end]<tab>turn<tab>emotion<tab>[V, A, D]",
        f"{source}:14: 'Ses01F_F003' is not the name of a turn, such as Ses01F_impro01_M003",
        f"{source}:15: the transcript is empty; valence is missing; arousal is missing; "
        "dominance 'three' is not a number",
    ]
    assert len(open_corpus("iemocap", iemocap, "skip").utterances) == 2


def test_turns_without_a_transcription_file_are_listed(iemocap):
    (iemocap / "Session5" / "dialog" / "transcriptions" / "Ses05M_script03_2.txt").unlink()
    assert problems("iemocap", iemocap) == [
        "Session5/dialog/EmoEvaluation/Ses05M_script03_2.txt:1: the transcript is empty"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ses01F_impro01_M003", TurnName("Ses01F_impro01_M003", "Ses01M", "1")),
        ("data/Ses03M_script01_1b_F012.wav", TurnName("Ses03M_script01_1b_F012", "Ses03F", "3")),
        ("Ses05M_script03_2_MXX0.wav", TurnName("Ses05M_script03_2_MXX0", "Ses05M", "5")),
        ("Ses01F_impro01", None),
        ("clip-17.wav", None),
        ("", None),
    ],
)
def test_a_turns_name_gives_its_speaker(text, expected):
    assert find_turn_name(text) == expected


# Copies in the format of Hugging Face's datasets


def copy(audio: list[dict], **columns: list):
    """Return a data set whose audio column decodes when it is read, as published copies have it."""
    import datasets

    return datasets.Dataset.from_dict({"audio": audio, **columns}).cast_column("audio", datasets.Audio())


def embedded(name: str, content: bytes | None = None) -> dict:
    return {"bytes": encoded("WAV", 1600) if content is None else content, "path": name}


@pytest.fixture
def abstract_tts():
    """A copy with the columns of AbstractTTS/IEMOCAP."""
    names = ["Ses01F_impro01_F000.wav", "Ses02M_script01_1_M004.wav"]
    return copy(
        [embedded(name) for name in names],
        file=names,
        EmoAct=[2.5, 4.0],
        EmoVal=[1.5, 3.0],
        EmoDom=[3.5, 5.0],
        gender=["Female", "Male"],
        transcription=["Excuse me.", "No."],
        major_emotion=["neutral", "angry"],
        angry=[0.0, 1.0],
    )


def test_a_saved_copy_is_read(abstract_tts, tmp_path):
    abstract_tts.save_to_disk(tmp_path / "copy")
    corpus = open_corpus("huggingface", tmp_path / "copy")
    assert (corpus.name, corpus.problems) == ("copy", ())
    first, second = corpus.utterances
    assert (first.vad(), first.transcript, first.category) == ((1.5, 2.5, 3.5), "Excuse me.", "neutral")
    assert (first.speaker, first.session, first.split) == ("Ses01F", "1", "")
    assert (second.speaker, second.session, second.category) == ("Ses02M", "2", "angry")
    assert isinstance(first.audio, EmbeddedAudio)
    assert str(first.audio) == "Ses01F_impro01_F000.wav"
    assert read_speech(first.audio) == pytest.approx(tone(), abs=1e-4)
    np.testing.assert_array_equal(read_speech(pickle.loads(pickle.dumps(first.audio))), read_speech(first.audio))


def test_all_splits_of_a_copy_are_read(abstract_tts, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    parts = datasets.DatasetDict({"train": abstract_tts, "dev": abstract_tts.select([1])})
    parts.save_to_disk(tmp_path / "saved")
    for split, part in parts.items():
        part.to_parquet(tmp_path / "tables" / "data" / f"{split}-00000-of-00001.parquet")
    saved, tables = open_corpus("huggingface", tmp_path / "saved"), open_corpus("huggingface", tmp_path / "tables")
    assert [utterance.split for utterance in saved.utterances] == ["train", "train", "validation"]
    assert saved.utterances == tables.utterances
    assert saved.digest == tables.digest
    single = tmp_path / "tables" / "data" / "train-00000-of-00001.parquet"
    assert len(open_corpus("huggingface", single).utterances) == 2


def test_other_names_of_columns_are_known(tmp_path):
    import datasets

    data = copy(
        [embedded("clip.wav")],
        activation=[2.0],
        dominance=[3.0],
        valence=[4.0],
        emotion=["fru"],
        titre=["Ses03M_impro02_F001"],
        to_translate=["Why?"],
    )
    datasets.DatasetDict({"session3": data}).save_to_disk(tmp_path / "copy")
    [utterance] = open_corpus("huggingface", tmp_path / "copy").utterances
    assert (utterance.vad(), utterance.transcript, utterance.category) == ((4.0, 2.0, 3.0), "Why?", "frustrated")
    assert (utterance.speaker, utterance.session, utterance.split) == ("Ses03F", "3", "")


def test_class_labels_speaker_columns_and_files_beside_the_table_are_read(tmp_path):
    import datasets

    audio = write_audio(tmp_path / "clips" / "a.wav")
    features = datasets.Features(
        {name: datasets.Value("float32") for name in ("valence", "arousal", "domination")}
        | {name: datasets.Value("string") for name in ("audio", "transcript", "session")}
        | {"speakerID": datasets.Value("int64"), "label": datasets.ClassLabel(names=["ang", "hap"])}
    )
    row = {"valence": 2.0, "arousal": 3.0, "domination": 4.0, "transcript": "Hi.", "session": "Session4"}
    row |= {"speakerID": 7, "label": 1, "audio": str(audio)}
    datasets.Dataset.from_list([row], features=features).save_to_disk(tmp_path / "copy")
    [utterance] = open_corpus("huggingface", tmp_path / "copy").utterances
    assert utterance == Utterance(audio, "Hi.", 2.0, 3.0, 4.0, "7", "4", "happy")


def test_bad_rows_of_a_copy_are_listed_with_their_numbers(tmp_path):
    import datasets

    gone = tmp_path / "gone.wav"
    # As plain bytes and paths: the library itself refuses to save an audio column with such rows.
    audio = [
        embedded("a.wav"),
        embedded("b.wav", b"no audio"),
        embedded("c.wav"),
        {"bytes": None, "path": None},
        {"bytes": None, "path": str(gone)},
    ]
    data = datasets.Dataset.from_dict(
        {
            "audio": audio,
            "transcript": ["A", "B", None, "D", "E"],
            "valence": [3.0, 3.0, None, 3.0, 0.5],
            "arousal": [3.0] * 5,
            "dominance": [3.0, 3.0, 3.0, 3.0, 9.0],
        }
    )
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "copy")
    assert problems("huggingface", tmp_path / "copy") == [
        "copy[test]:2: b.wav cannot be read as audio: Format not recognised.",
        "copy[test]:3: the transcript is empty; valence is missing",
        "copy[test]:4: there is no audio",
        f"copy[test]:5: missing file {gone}; valence 0.5 is outside 1..5; dominance 9 is outside 1..5",
    ]


def test_columns_that_cannot_be_matched_are_named_with_those_wanted(tmp_path):
    copy([embedded("a.wav")], words=["Hi."], valence=[3.0], label=[1]).save_to_disk(tmp_path / "copy")
    with pytest.raises(CorpusError) as refused:
        open_corpus("huggingface", tmp_path / "copy")
    message = str(refused.value)
    assert "has the columns audio, words, valence, label; wanted as well: transcript (as transcript, " in message
    assert "arousal (as arousal, activation, EmoAct, act); dominance (as " in message


@pytest.mark.parametrize("audio", [[0.1, 0.2], {"array": [0.1, 0.2], "sampling_rate": 16_000}, 3])
def test_audio_that_is_no_encoded_file_is_refused(audio, tmp_path):
    import datasets

    row = {"audio": audio, "text": "Hi.", "valence": 3.0, "arousal": 3.0, "dominance": 3.0}
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "copy")
    with pytest.raises(CorpusError, match="the column audio holds no encoded audio files"):
        open_corpus("huggingface", tmp_path / "copy")


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    (tmp_path / "notes.xyz").write_text("nothing")
    with pytest.raises(CorpusError, match="cannot be read as a data set"):
        open_corpus("huggingface", tmp_path)


# RAVDESS


def test_a_clips_name_gives_its_emotion():
    assert parse_clip_name("03-01-05-02-01-02-24") == ClipName("angry", "strong", 1, 2, 24)
    assert parse_clip_name("03-01-01-01-02-01-01") == ClipName("neutral", "normal", 2, 1, 1)


@pytest.mark.parametrize(
    "name",
    [
        "03-02-05-02-01-02-24",  # Song, not speech.
        "03-01-09-02-01-02-24",
        "03-01-05-03-01-02-24",
        "03-01-05-02-03-02-24",
        "03-01-05-02-01-03-24",
        "03-01-05-02-01-02-25",
        "03-01-05-02-01-02-00",
        "holiday",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="not the name of a RAVDESS speech clip"):
        parse_clip_name(name)


@pytest.mark.parametrize(
    ("category", "intensity", "expected"),
    [
        ("neutral", "normal", (3.0, 2.575, 3.0)),
        ("happy", "normal", (4.105, 3.595, 3.425)),
        ("angry", "strong", (1.375, 4.5, 4.25)),
        ("sad", "strong", (1.625, 2.0, 2.0)),
    ],
)
def test_targets_are_derived_from_category_and_intensity(category, intensity, expected):
    assert derived_vad(category, intensity) == pytest.approx(expected)


def write_clip(folder: Path, name: str) -> None:
    write_audio(folder / f"{name}.flac")


def test_ravdess_is_one_corpus_of_24_speakers_and_says_that_its_targets_are_derived(tmp_path):
    write_clip(tmp_path, "03-01-05-02-01-01-01")
    write_clip(tmp_path / "Actor_24", "03-01-02-01-02-02-24")
    (tmp_path / "._03-01-05-02-01-01-01.flac").write_bytes(b"\x00\x05")
    corpus = open_corpus("ravdess", tmp_path)
    assert (corpus.name, corpus.note) == ("RAVDESS", "targets derived from category and intensity")
    assert [(clip.speaker, clip.category) for clip in corpus.utterances] == [
        ("actor-01", "angry"),
        ("actor-24", "calm"),
    ]


def test_files_that_are_no_speech_clips_are_bad_rows(tmp_path):
    write_clip(tmp_path, "03-01-05-02-01-01-01")
    write_clip(tmp_path / "Actor_01", "03-02-05-02-01-01-01")  # Song.
    (tmp_path / "03-01-05-02-01-02-01.flac").write_bytes(encoded("FLAC")[:3000])
    first, second = problems("ravdess", tmp_path)
    assert first.startswith(f"03-01-05-02-01-02-01.flac: {tmp_path / '03-01-05-02-01-02-01.flac'} c")
    assert second.startswith("Actor_01/03-02-05-02-01-01-01.flac: '03-02-05-02-01-01-01' is not the name of a RAVDESS")


# EmoBank


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text("word,valence\nhome,8\n")
    with pytest.raises(ValueError, match="its header must name A, D, V, split, text"):
        open_corpus("emobank", path)


def test_emobank_is_one_corpus_of_words_with_its_own_split(tmp_path):
    path = tmp_path / "emobank.csv"
    path.write_text(
        'id,split,V,A,D,text\n1,train,3.5,2,3,"Hi,\nyou."\n2,dev,1,2,3,No\n3,test,3,3,3,!\n4,test,3,3,7,Yes\n'
        "5,final,3,3,,\n",
    )
    corpus = open_corpus("emobank", path, "skip")
    assert (corpus.name, corpus.note) == ("EmoBank", "words alone")
    assert [(row.audio, row.transcript, row.split) for row in corpus.utterances] == [
        (None, "Hi,\nyou.", "train"),
        (None, "No", "validation"),
    ]
    assert problems("emobank", path) == [
        "emobank.csv:6: dominance 7 is outside 1..5",
        "emobank.csv:7: the transcript is empty; dominance is missing; "
        "the split 'final' is none of train, validation, test",
    ]
