"""CREMA-D: the rule from listeners' votes to targets by hand, and the corpus on a miniature of its release.

.venv/bin/pytest tests/unit/test_training_cremad.py
ATTUNE_DATA=DIR .venv/bin/pytest tests/unit/test_training_cremad.py    (with cremad/ in DIR)
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from attune_training.data.audio import audio_fault, read_speech
from attune_training.data.corpus import open_corpus
from attune_training.data.cremad import ClipName, Heard, heard_vad, parse_clip_name, part_of_actor
from attune_training.data.targets import ACTED_VAD
from tests.unit.test_training_corpora import problems, tone, write_audio

LETTERS = "ADFHNS"
LEVELS = [f"mean{name}Resp" for name in ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad")]
HEADER = ",".join(['""', *(f'"{letter}"' for letter in LETTERS), '"fileName"', *(f'"{name}"' for name in LEVELS)])


def votes(clip, number="100001", **heard):
    """A row of the table; `heard` is by letter: (votes, level)."""
    counts = [heard.get(letter, (0, -1))[0] for letter in LETTERS]
    levels = [heard.get(letter, (0, -1))[1] for letter in LETTERS]
    return ",".join(map(str, [f'"{number}"', *counts, f'"{clip}"', *levels]))


def release(folder: Path, *rows: str, clips: tuple[str, ...] = ()) -> Path:
    (folder / "tabulatedVotes.csv").parent.mkdir(parents=True, exist_ok=True)
    (folder / "tabulatedVotes.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    for clip in clips:
        write_audio(folder / "audio" / f"{clip}.wav")
    return folder


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ({"neutral": Heard(9, 80.0)}, (3.0, 2.5, 3.0)),  # how neutral it is moves nothing
        ({"sad": Heard(10, 55.0)}, (1.9, 2.2, 2.2)),  # at the anchor
        ({"sad": Heard(5, 55.0), "neutral": Heard(5, 70.0)}, (2.45, 2.35, 2.6)),  # half way
        ({"sad": Heard(8, 27.5)}, (2.45, 2.35, 2.6)),  # half as strongly
        ({"angry": Heard(10, 100.0)}, (1.0, 5.0, 4.818182)),  # 3 - 1.3 * 1.818 and 2.5 + 1.7 * 1.818 are cut
        ({"angry": Heard(3, 0.0), "neutral": Heard(1, 9.0)}, (3.0, 2.5, 3.0)),
        # One of four heard joy, 1.818 times as far as its anchor: valence is cut to 5, arousal 4.682, dominance 3.909.
        ({"happy": Heard(1, 100.0), "neutral": Heard(3, 50.0)}, (3.5, 3.045455, 3.227273)),
    ],
)
def test_targets_are_the_mean_of_the_listeners_votes(heard, expected):
    assert heard_vad(heard) == pytest.approx(expected, abs=1e-5)


def test_the_more_listeners_and_the_more_strongly_the_further_from_neutral():
    by_votes = [heard_vad({"angry": Heard(n, 60.0), "neutral": Heard(10 - n, 60.0)})[1] for n in range(1, 10)]
    by_level = [heard_vad({"angry": Heard(5, 10.0 * n), "neutral": Heard(5, 60.0)})[1] for n in range(1, 8)]
    assert by_votes == sorted(set(by_votes))
    assert by_level == sorted(set(by_level))


def test_categories_are_those_of_the_anchors():
    assert {"neutral", "happy", "sad", "angry", "fearful", "disgust"} <= set(ACTED_VAD)


def test_a_clips_name_says_what_was_asked_for():
    assert parse_clip_name("1001_IEO_ANG_HI") == ClipName(1001, "IEO", "angry", "high")
    assert parse_clip_name("1091_WSI_NEU_XX") == ClipName(1091, "WSI", "neutral", "")
    for name in ("1001_XXX_ANG_HI", "1001_IEO_JOY_HI", "1001_IEO_ANG_UP", "2001_IEO_ANG_HI", "holiday"):
        with pytest.raises(ValueError, match="is not the name of a CREMA-D clip"):
            parse_clip_name(name)


def test_test_actors_are_in_no_other_part():
    assert {part_of_actor(actor) for actor in range(1061, 1092)} == {"test"}
    validation = [actor for actor in range(1001, 1061) if part_of_actor(actor) == "validation"]
    assert validation == list(range(1005, 1061, 5))


def test_the_release_is_read(tmp_path):
    folder = release(
        tmp_path,
        votes("1001_IEO_SAD_LO", S=(5, 55), N=(5, 70)),
        votes("1005_DFA_NEU_XX", "100002", N=(10, 70)),
        votes("1062_TSI_ANG_XX", "100003", A=(4, 55)),
        votes("1080_TSI_ANG_XX", "100004", A=(4, 55)),  # of this actor there is no clip
        votes("1001_IEO_SAD_LO", "200001", A=(9, 90)),  # the face alone
        votes("1001_IEO_SAD_LO", "300001", H=(9, 90)),  # both
        clips=("1001_IEO_SAD_LO", "1005_DFA_NEU_XX", "1062_TSI_ANG_XX"),
    )
    (folder / "audio" / "._1001_IEO_SAD_LO.wav").write_bytes(b"\x00\x05")
    corpus = open_corpus("cremad", folder)
    assert (corpus.name, corpus.problems) == ("CREMA-D", ())
    assert "listeners' votes" in corpus.note
    sad, neutral, angry = corpus.utterances
    assert sad.vad() == pytest.approx((2.45, 2.35, 2.6))
    assert (sad.transcript, sad.speaker, sad.category) == ("It's eleven o'clock.", "actor-1001", "sad")
    assert [item.split for item in (sad, neutral, angry)] == ["train", "validation", "test"]
    assert [item.agreement for item in (sad, neutral, angry)] == [0.5, 1.0, 1.0]


def test_the_faulty_clip_is_left_out_and_every_result_says_so(tmp_path):
    folder = release(
        tmp_path,
        votes("1076_MTI_SAD_XX", N=(9, 50)),
        votes("1076_MTI_ANG_XX", "100002", A=(9, 50)),
        clips=("1076_MTI_SAD_XX", "1076_MTI_ANG_XX"),
    )
    corpus = open_corpus("cremad", folder)
    assert [item.category for item in corpus.utterances] == ["angry"]
    assert "left out, faulty in the release: 1076_MTI_SAD_XX" in corpus.note


def test_bad_rows_are_listed_with_their_lines(tmp_path):
    folder = release(
        tmp_path,
        votes("1001_IEO_SAD_LO", S=(5, 55)),  # Line 2.
        votes("1001_IEO_SAD_MD", "100002", S=(5, 55)),
        votes("1001_IEO_SAD_HI", "100003"),
        votes("1001_IEO_ANG_LO", "100004", A=("few", 55)),
        votes("1001_IEO_ANG_MD", "100005", A=(3, "NA")),
        votes("1001_IEO_ANG_HI", "100006", A=(3, 101), N=(1, 50)),
        votes("1001_ABC_ANG_HI", "100007", A=(3, 50)),
        clips=("1001_IEO_SAD_LO", "1001_IEO_ANG_HI", "1001_DFA_ANG_XX"),
    )
    assert problems("cremad", folder) == [
        "tabulatedVotes.csv:3: there is no recording of 1001_IEO_SAD_MD",
        "tabulatedVotes.csv:4: nobody voted on the voice",
        "tabulatedVotes.csv:5: the votes 'few' for angry are not a number",
        "tabulatedVotes.csv:6: the level 'NA' of angry is not a number",
        "tabulatedVotes.csv:7: the level 101 of angry is outside 0..100",
        "tabulatedVotes.csv:8: '1001_ABC_ANG_HI' is not the name of a CREMA-D clip, such as 1001_IEO_ANG_HI",
        "audio/1001_DFA_ANG_XX.wav: tabulatedVotes.csv has no votes on the voice of '1001_DFA_ANG_XX'",
    ]


def test_opus_is_decoded(tmp_path):
    folder = release(tmp_path, votes("1001_IEO_SAD_LO", S=(5, 55)))
    path = folder / "audio" / "1001_IEO_SAD_LO.opus"
    path.parent.mkdir()
    soundfile.write(path, tone(16_000), 16_000, format="OGG", subtype="OPUS")
    [utterance] = open_corpus("cremad", folder).utterances
    samples = read_speech(utterance.audio)
    assert samples.shape == (16_000,)
    assert np.corrcoef(samples, tone(16_000))[0, 1] > 0.95
    path.write_bytes(path.read_bytes()[:200])
    assert audio_fault(path.read_bytes()) != ""


def test_the_real_release_has_76_actors_and_no_bad_row():
    folder = Path(os.environ.get("ATTUNE_DATA", "")) / "cremad"
    if not os.environ.get("ATTUNE_DATA") or not folder.is_dir():
        pytest.skip("ATTUNE_DATA names no folder with cremad/ in it")
    corpus = open_corpus("cremad", folder)
    assert len(corpus.utterances) == 6211
    assert len({item.speaker for item in corpus.utterances}) == 76
