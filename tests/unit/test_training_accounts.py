"""Words from people's own accounts: diaries, GoEmotions, BRIGHTER and empathic reactions, on miniatures.

.venv/bin/pytest tests/unit/test_training_accounts.py
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest

import attune_training.data
from attune_training.config import DIMENSIONS
from attune_training.data.corpus import CorpusError, default_split, open_corpus
from attune_training.data.diaries import plain_text
from attune_training.data.empathic import distressed_valence
from attune_training.data.norms import category_vad, felt_vad
from attune_training.data.splits import SplitError, check_test_kept, parse_split_policy
from attune_training.emotion_choice.embedding import embed
from attune_training.evaluation.stories.reading import NARRATIONS_FILE, NEGATIONS_FILE, STORIES_FILE, shipped_file
from tests.unit.test_training_corpora import problems

SHIPPED = (STORIES_FILE, NARRATIONS_FILE, NEGATIONS_FILE)
MOST_ALIKE = 0.6001  # cosine; the texts were chosen by .6, and arithmetic differs from machine to machine

DIARIES = "user_id,text_id,text,timestamp,collection_phase,is_words,valence,arousal\n"


def diaries(folder: Path, *rows: str) -> Path:
    path = folder / "train_subtask1.csv"
    path.write_text(DIARIES + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("tokenised", "plain"),
    [
        ("I ' ve been feeling fine . Nice and relaxed ..", "I've been feeling fine. Nice and relaxed.."),
        ("I didn ' t know it ' s Friday , I ' m late", "I didn't know it's Friday, I'm late"),
        ("my sister ' s twins ' birth at 9 o ' clock", "my sister's twins' birth at 9 o'clock"),
        ("Tired , Sad , Annoyed", "Tired, Sad, Annoyed"),
        ("great day \\nI feel fine .\\ n \\ nTired", "great day I feel fine. Tired"),
        ("up at 9 : 30am , I got 100 % !!", "up at 9:30am, I got 100%!!"),
        ('feeling "off " today , not "all there , " but fine', 'feeling "off" today, not "all there," but fine'),
        ('one quote " alone', 'one quote " alone'),
        (
            "engaged - enthusiastic (my dogs) “server nightmares ”",
            "engaged - enthusiastic (my dogs) “server nightmares”",
        ),
        ("I’m hungry   and \n tired", "I’m hungry and tired"),
        ("nothing to undo", "nothing to undo"),
    ],
)
def test_tokenisation_is_undone(tokenised, plain):
    assert plain_text(tokenised) == plain


def test_diaries_are_the_writers_own_valence_and_arousal(tmp_path):
    path = diaries(
        tmp_path,
        "3,251,I ' m fine .,2021-06-08 12:26:16,1,False,1.0,2.0",
        '10,252,"Tired , Sad",2021-06-08 12:26:16,1,True,-2.0,0.0',
        "8,253,No,2021-06-08 12:26:16,1,False,0.0,1.0",
    )
    corpus = open_corpus("diaries", path)
    assert corpus.name == "diaries"
    assert "dominance has no labels" in corpus.note
    assert [(item.transcript, item.speaker, item.split, item.form) for item in corpus.utterances] == [
        ("I'm fine.", "writer-003", "train", "essay"),
        ("Tired, Sad", "writer-010", "test", "words"),
        ("No", "writer-008", "validation", "essay"),
    ]
    assert [item.vad()[:2] for item in corpus.utterances] == [(4.0, 5.0), (1.0, 1.0), (3.0, 3.0)]
    assert all(math.isnan(item.dominance) for item in corpus.utterances)


def test_bad_rows_of_diaries_are_listed_with_their_lines(tmp_path):
    path = diaries(
        tmp_path,
        '3,1,"Two\nlines",t,1,False,1.0,2.0',
        "3,2,High,t,1,False,3.0,2.0",
        "3,3,Missing,t,1,False,,2.0",
        "3,4,Word,t,1,False,1.0,much",
        "ann,5,Name,t,1,False,1.0,2.0",
        "3,6,Form,t,1,maybe,1.0,2.0",
        "3,7, ,t,1,True,1.0,2.0",
    )
    assert problems("diaries", path) == [
        "train_subtask1.csv:4: valence 3 is outside -2..2",
        "train_subtask1.csv:5: valence is missing",
        "train_subtask1.csv:6: arousal 'much' is not a number",
        "train_subtask1.csv:7: the writer 'ann' is not a number",
        "train_subtask1.csv:8: is_words 'maybe' is neither True nor False",
        "train_subtask1.csv:9: the transcript is empty",
    ]


def test_the_form_of_a_text_is_part_of_the_digest(tmp_path):
    essay = open_corpus("diaries", diaries(tmp_path, "3,1,Sad,t,1,False,1.0,2.0")).digest
    assert open_corpus("diaries", diaries(tmp_path, "3,1,Sad,t,1,True,1.0,2.0")).digest != essay


# GoEmotions


def goemotions(folder: Path, train: str, dev: str = "", test: str = "", labels: str = "anger\nsurprise\nneutral\n"):
    for name, text in (("train.tsv", train), ("dev.tsv", dev), ("test.tsv", test), ("labels.txt", labels)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_goemotions_takes_the_norms_of_its_categories(tmp_path):
    folder = goemotions(
        tmp_path,
        "[NAME] is mad at [RELIGION]!\t0\ta\nBoth\t0,2\tb\nOh\t1\tc\nOh no\t0,1\td\n",
        'A "quote\t2\te\n',
        "Last\t0\tf\n",
    )
    corpus = open_corpus("goemotions", folder)
    first, both, oh, oh_no, quote, last = corpus.utterances
    assert (first.transcript, first.category, first.speaker) == ("someone is mad at religion!", "anger", "")
    assert first.vad() == pytest.approx(category_vad("anger"))
    assert both.category == "anger, neutral"
    assert both.vad() == pytest.approx(felt_vad([("anger", 1.0), ("neutral", 1.0)]))
    assert math.isnan(oh.valence)
    assert oh.arousal == pytest.approx(category_vad("surprise")[1])
    assert oh_no.valence == pytest.approx(category_vad("anger")[0])
    assert quote.transcript == 'A "quote'
    assert [item.split for item in (first, quote, last)] == ["train", "validation", "test"]


def test_bad_rows_of_goemotions_are_listed_with_their_lines(tmp_path):
    folder = goemotions(tmp_path, "Good\t0\ta\nNo label\t\tb\nHigh\t3\tc\nShort\t0\n", "\t0\td\n")
    assert problems("goemotions", folder) == [
        "train.tsv:2: the label '' is none of 0 to 2",
        "train.tsv:3: the label '3' is none of 0 to 2",
        "train.tsv:4: not of the form text<tab>labels<tab>id",
        "dev.tsv:1: the transcript is empty",
    ]


def test_a_category_without_norms_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="categories without norms: ennui"):
        open_corpus("goemotions", goemotions(tmp_path, "Hm\t0\ta\n", labels="ennui\n"))


# BRIGHTER

HEADER = "id,text,anger,fear,joy,sadness,surprise\n"


def brighter(folder: Path, train: str) -> Path:
    for name, rows in (("train", train), ("dev", "d,Dev,0,0,0,2,0\n"), ("test", "t,Test,0,0,2,0,0\n")):
        (folder / f"{name}.csv").write_text(HEADER + rows, encoding="utf-8")
    return folder


def test_brighter_moves_away_from_neutral_with_intensity(tmp_path):
    rows = "a,None,0,0,0,0,0\nb,Slight,0,1,0,0,0\nc,Moderate,0,2,0,0,0\nd,Strong,0,3,0,0,0\ne,Two,0,3,0,0,1\n"
    none, slight, moderate, strong, two, *_ = open_corpus("brighter", brighter(tmp_path, rows)).utterances
    assert none.vad() == category_vad("neutral")
    assert moderate.vad() == pytest.approx(category_vad("fear"))
    assert none.valence > slight.valence > moderate.valence > strong.valence
    assert none.arousal < slight.arousal < moderate.arousal < strong.arousal
    assert (none.category, strong.category, two.category) == ("neutral", "fear", "fear, surprise")
    assert two.valence == pytest.approx(strong.valence), "surprise says nothing of valence"
    assert two.vad() == pytest.approx(felt_vad([("fear", 1.5), ("surprise", 0.5)]))


def test_bad_rows_of_brighter_are_listed_with_their_lines(tmp_path):
    folder = brighter(tmp_path, "a,Good,0,0,0,0,0\nb,High,4,0,0,x,0\nc,,0,0,0,0,0\nd,Short,1\n")
    assert problems("brighter", folder) == [
        "train.csv:3: anger '4' is none of 0 to 3; sadness 'x' is none of 0 to 3",
        "train.csv:4: the transcript is empty",
        "train.csv:5: fear '' is none of 0 to 3; joy '' is none of 0 to 3; sadness '' is none of 0 to 3; "
        "surprise '' is none of 0 to 3",
    ]


# Empathic reactions


def messages(folder: Path, *rows: str) -> Path:
    path = folder / "messages.csv"
    path.write_text("message_id,response_id,empathy,distress,essay\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_distress_says_something_of_valence_above_its_middle_alone():
    neutral, norm = category_vad("neutral")[0], category_vad("distress")[0]
    assert distressed_valence(1.0) is distressed_valence(4.0) is None
    assert distressed_valence(7.0) == pytest.approx(norm)
    assert distressed_valence(5.5) == pytest.approx(neutral + 0.75 * (norm - neutral))
    for wrong in (0.9, 7.1, math.nan):
        with pytest.raises(ValueError, match=r"is outside 1\.\.7"):
            distressed_valence(wrong)


def test_empathic_reactions_have_valence_alone_and_one_part_for_each_writer(tmp_path):
    rows = [f"m{index},R_{index // 2},7,{6 if index % 4 else 2},Words {index}" for index in range(400)]
    corpus = open_corpus("empathic", messages(tmp_path, *rows))
    assert len(corpus.utterances) == 300
    assert all(math.isnan(item.arousal) and math.isnan(item.dominance) for item in corpus.utterances)
    part_of = {item.speaker: item.split for item in corpus.utterances}
    assert all(part_of[item.speaker] == item.split for item in corpus.utterances)
    assert set(part_of.values()) == {"train", "validation", "test"}
    assert sum(part == "test" for part in part_of.values()) / len(part_of) == pytest.approx(0.1, abs=0.05)


def test_bad_rows_of_empathic_reactions_are_listed_with_their_lines(tmp_path):
    path = messages(tmp_path, "m1,R_1,3,6,Good", "m2,R_1,3,8,High", "m3,R_1,3,no,Words", "m4,,3,6,No", "m5,R_1,3,6,")
    assert problems("empathic", path) == [
        "messages.csv:3: distress 8 is outside 1..7",
        "messages.csv:4: distress 'no' is not a number",
        "messages.csv:5: the response_id, which tells the writer, is empty",
        "messages.csv:6: the transcript is empty",
    ]


# All of them


@pytest.mark.parametrize("kind", ["diaries", "goemotions", "brighter", "empathic", "cremad"])
def test_they_are_cut_as_they_say_and_their_test_part_is_kept(kind):
    assert default_split(kind) == "given"


@pytest.mark.parametrize(("kind", "name"), [("diaries", "train_subtask1.csv"), ("empathic", "messages.csv")])
def test_a_table_of_another_kind_is_refused(kind, name, tmp_path):
    (tmp_path / name).write_text("word,valence\nhome,8\n")
    with pytest.raises(CorpusError, match="its header must name"):
        open_corpus(kind, tmp_path / name)


def test_a_split_that_trains_on_what_is_kept_for_the_test_is_refused(tmp_path):
    path = diaries(tmp_path, *(f"{writer},1,Words,t,1,False,1.0,{writer % 3}" for writer in range(1, 61)))
    corpus = open_corpus("diaries", path)
    assert corpus.keeps_test
    for policy in ("given", "held-out-speakers:5/10,20,30,40,50,60"):
        check_test_kept(parse_split_policy(policy).split(corpus.utterances, "valence", 0))
    drawn = parse_split_policy("held-out-speakers").split(corpus.utterances, "valence", 0)
    with pytest.raises(SplitError, match="for the last test alone: use the split given"):
        check_test_kept(drawn)
    with pytest.raises(SplitError, match="not every utterance of this corpus has all labels"):
        parse_split_policy("stratified").split(corpus.utterances, "arousal_dominance", 0)
    assert len(parse_split_policy("stratified").split(corpus.utterances, "valence", 0).test) == 6


def test_labels_are_asked_for_by_dimension(tmp_path):
    [utterance] = open_corpus("diaries", diaries(tmp_path, "3,1,Sad,t,1,False,1.0,2.0")).utterances
    assert [utterance.is_labelled([name]) for name in DIMENSIONS] == [True, True, False]
    assert utterance.is_labelled()


WRITTEN = "text,emotion,valence,arousal,dominance,writer,split\n"


def test_written_texts_have_an_anchor_or_a_judgement(tmp_path):
    path = tmp_path / "written.csv"
    path.write_text(
        WRITTEN + 'I could cry,Sad,,,,a,train\n"Not bad, really",,3.6,,3.2,n,validation\n', encoding="utf-8"
    )
    first, second = open_corpus("written", path).utterances
    assert (first.vad(), first.category, first.speaker, first.split) == ((1.8, 2.1, 2.2), "sad", "writer-a", "train")
    assert (second.valence, second.dominance, second.category) == (3.6, 3.2, "")
    assert math.isnan(second.arousal)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("Hm,cheery,,,,a,train", "'cheery' is none of the knowledge base's"),
        ("Hm,sad,2.0,,,a,train", "either an emotion or a judgement"),
        ("Hm,,7.0,,,a,train", "valence 7 is outside 1..5"),
    ],
)
def test_bad_rows_of_written_texts_are_listed(tmp_path, row, reason):
    path = tmp_path / "written.csv"
    path.write_text(WRITTEN + row + "\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=re.escape(reason)):
        open_corpus("written", path)


@pytest.mark.slow
def test_no_written_text_retells_what_is_measured_by():
    """Half a minute: the sentence embeddings of all of them."""
    [written] = Path(attune_training.data.__file__).parent.glob("written.csv")
    trained = [utterance.transcript for utterance in open_corpus("written", written).utterances]
    measured = [row["text"] for name in SHIPPED for row in csv.DictReader(shipped_file(name).open(encoding="utf-8"))]
    likeness = (embed(trained) @ embed(measured).T).max(axis=1)
    assert not [text for text, like in zip(trained, likeness, strict=True) if like > MOST_ALIKE]
