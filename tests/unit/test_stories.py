"""Stories to measure by: the texts themselves, their reading, the measures on worked numbers, and the commands.

.venv/bin/pytest tests/unit/test_stories.py
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.speech.overall import SERVED, OverallRule, overall_vad
from attune_ensemble.speech.whisper import Decoding
from attune_training.commands import evaluate
from attune_training.emotion_map.anchors import Anchors, read_anchors
from attune_training.evaluation.stories.families import FAMILIES, TOLD_APART, unplaced
from attune_training.evaluation.stories.hearing import hear
from attune_training.evaluation.stories.measures import (
    OCTANTS,
    Answers,
    Share,
    calibration_error,
    measure,
    measure_negations,
)
from attune_training.evaluation.stories.narrations import measure_narrations, spoken_segments
from attune_training.evaluation.stories.picture import draw_confusion
from attune_training.evaluation.stories.reading import (
    NARRATIONS_FILE,
    NEGATIONS_FILE,
    STORIES_FILE,
    Narration,
    Negation,
    Part,
    StoriesError,
    Story,
    read_narrations,
    read_negations,
    read_stories,
    shipped_file,
    words_of,
)
from attune_training.evaluation.stories.report import negations_markdown, stories_markdown
from attune_training.evaluation.stories.transcription import SETTINGS, spread_out
from attune_training.evaluation.words import word_errors
from attune_training.models.checkpoints import save_model
from attune_training.pretrained import build
from attune_training.providers import RecognisedSegment
from attune_training.synthesis.texts import Reader, Text, find_recordings, read_aloud, read_recordings

EMOTIONS = {emotion.label: emotion.octant for emotion in load_emotions()}
MAX_SHARED_TRIGRAMS = 0.08  # Jaccard: two stories that share a sentence of ten words have about 0.1
MAX_NAMING = 1 / 6

# Words of the same stem as the label, where the label's first letters do not show it.
OTHER_FORMS = {
    "happy": ("happi",),
    "angry": ("anger",),
    "furious": ("fury",),
    "terrified": ("terror", "terrify"),
    "grateful": ("gratitude",),
    "anxious": ("anxiety",),
    "grieving": ("grief",),
    "ashamed": ("shame",),
    "weary": ("weari",),
    "defiant": ("defy", "defied"),
    "impatient": ("impatience",),
    "contemptuous": ("contempt",),
    "indifferent": ("indifference",),
    "nostalgic": ("nostalgia",),
    "trusting": ("trust",),
    "determined": ("determination",),
    "frustrated": ("frustrat",),
    "disgusted": ("disgust",),
    "surprised": ("surpris",),
    "excited": ("excit",),
    "calm": ("calm",),
}


@pytest.fixture(scope="module")
def stories():
    return read_stories(shipped_file(STORIES_FILE), EMOTIONS)


@pytest.fixture(scope="module")
def narrations():
    return read_narrations(shipped_file(NARRATIONS_FILE), EMOTIONS)


@pytest.fixture(scope="module")
def negations():
    return read_negations(shipped_file(NEGATIONS_FILE))


def sentences(text):
    return re.findall(r"[.!?](?=\s|$)", text)


def trigrams(text):
    words = words_of(text)
    return set(zip(words, words[1:], words[2:], strict=False))


def names(text, label):
    stems = (label, *OTHER_FORMS.get(label, ()))
    return any(word.startswith(stems) for word in words_of(text))


# The texts


def test_stories_are_balanced_over_the_emotions_and_so_over_the_octants(stories):
    counts = Counter(story.emotion for story in stories)
    assert set(counts) == set(EMOTIONS)
    assert min(counts.values()) >= 6
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(stories) >= 240
    assert set(Counter(EMOTIONS[story.emotion] for story in stories).values()) == {30}


def test_stories_have_the_length_of_something_told(stories):
    for story in stories:
        assert 25 <= len(words_of(story.text)) <= 70, story.id
        assert 2 <= len(sentences(story.text)) <= 5, story.id


def test_no_two_texts_are_nearly_the_same(stories, narrations):
    texts = [story.text for story in stories] + [part.text for item in narrations for part in item.parts]
    found = [(trigrams(text), text) for text in texts]
    for (one, text), (other, second) in itertools.combinations(found, 2):
        assert len(one & other) / len(one | other) < MAX_SHARED_TRIGRAMS, (text, second)


def test_openings_vary(stories):
    assert max(Counter(tuple(words_of(story.text)[:3]) for story in stories).values()) == 1
    assert max(Counter(tuple(words_of(story.text)[:2]) for story in stories).values()) <= 3


def test_few_stories_name_their_emotion(stories):
    naming = [story.id for story in stories if names(story.text, story.emotion)]
    assert 0 < len(naming) <= MAX_NAMING * len(stories), naming


def test_a_list_of_the_emotions_words_does_not_solve_it(stories):
    solved = [
        story for story in stories if [label for label in EMOTIONS if names(story.text, label)] == [story.emotion]
    ]
    assert len(solved) <= MAX_NAMING * len(stories)


def test_stories_are_told_by_the_one_who_feels(stories):
    for story in stories:
        stems = {word.partition("'")[0] for word in words_of(story.text)}
        assert stems & {"i", "me", "my", "we", "us", "our"}, story.id


def test_texts_can_be_read_aloud_and_name_nobody_s_crisis(stories, narrations, negations):
    texts = [story.text for story in (*stories, *negations)] + [part.text for item in narrations for part in item.parts]
    for text in texts:
        assert not re.search(r"[\d\"“”…;:()]", text), text
        assert not re.search(r"suicid|kill|self-harm|want to die|end my life|end it all|hang myself", text.lower()), (
            text
        )


def test_narrations_change_and_their_overall_emotion_is_not_always_the_last(narrations):
    assert len(narrations) >= 20
    for narration in narrations:
        text = " ".join(part.text for part in narration.parts)
        assert 4 <= len(sentences(text)) <= 8, narration.id
        felt = [part.emotion for part in narration.parts]
        assert all(one != other for one, other in itertools.pairwise(felt)), narration.id
        assert narration.overall in felt[-2:], narration.id
    last = sum(narration.overall == narration.parts[-1].emotion for narration in narrations)
    assert 0.5 <= last / len(narrations) <= 0.8


def test_narrations_reach_every_octant(narrations):
    assert {EMOTIONS[part.emotion] for item in narrations for part in item.parts} == set(OCTANTS)


def test_half_of_the_negations_turn_their_word_around(negations):
    assert len(negations) >= 120
    assert sum(item.is_turned for item in negations) * 2 == len(negations)
    assert len({(item.word_valence, item.valence) for item in negations}) == 4
    assert sum(item.valence == "high" for item in negations) * 2 == len(negations)
    arousal = Counter(item.arousal for item in negations)
    assert min(arousal["low"], arousal["high"]) >= 20


def test_the_word_of_a_negation_has_one_side(negations):
    sides = {}
    for item in negations:
        assert sides.setdefault(item.word, item.word_valence) == item.word_valence, item.word


def test_families_hold_every_emotion_once():
    placed = [label for labels in FAMILIES.values() for label in labels]
    assert sorted(placed) == sorted(EMOTIONS)
    assert unplaced([*EMOTIONS, "puzzled"]) == ["puzzled"]
    assert set(TOLD_APART) <= set(FAMILIES)


# Reading

GOOD = "I went down to the sea, and it was there."


def written(folder, *lines, header="id,text,emotion"):
    file = folder / "mine.csv"
    file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return file


def test_a_file_of_ones_own_is_read(tmp_path):
    file = written(tmp_path, f'a,"{GOOD}",calm', '"b","One, two, three,\nfour and five.",sad')
    assert read_stories(file, EMOTIONS) == [
        Story("a", GOOD, "calm"),
        Story("b", "One, two, three,\nfour and five.", "sad"),
    ]


def test_an_emotion_may_be_written_in_any_case(tmp_path):
    assert [story.emotion for story in read_stories(written(tmp_path, f'a,"{GOOD}", Calm '), EMOTIONS)] == ["calm"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f'b,"{GOOD} And so on.",joyful', "mine.csv:3: emotion 'joyful' is none of the 40 emotions"),
        ('b,"I WENT down to the sea and it was there",calm', "mine.csv:3: the text is that of line 2"),
        (f'a,"{GOOD} And so on.",calm', "mine.csv:3: the id is that of line 2"),
        (f',"{GOOD} And so on.",calm', "mine.csv:3: the id is empty"),
        ("b,It was a day.,calm", "mine.csv:3: the text has 4 words; 5 to 300 are needed"),
        (f"b,{'word ' * 301},calm", "mine.csv:3: the text has 301 words; 5 to 300 are needed"),
        ("b,calm", "mine.csv:3: the row has more or fewer fields than the header"),
        (f'b,"{GOOD} And so on.",calm,more', "mine.csv:3: the row has more or fewer fields"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, line, message):
    with pytest.raises(StoriesError) as error:
        read_stories(written(tmp_path, f'a,"{GOOD}",calm', line), EMOTIONS)
    assert message in str(error.value)


def test_all_bad_rows_are_listed_and_many_are_counted(tmp_path):
    with pytest.raises(StoriesError) as error:
        read_stories(written(tmp_path, *(f"{number},too short,glad" for number in range(25))), EMOTIONS)
    lines = str(error.value).splitlines()
    assert (
        lines[0] == "mine.csv:2: the text has 2 words; 5 to 300 are needed; emotion 'glad' is none of the 40 emotions"
    )
    assert lines[20] == "and 5 more"
    assert lines[21:] == [f"the emotions are {', '.join(sorted(EMOTIONS))}"]


def test_the_emotions_are_not_listed_where_none_was_missed(tmp_path):
    with pytest.raises(StoriesError) as error:
        read_stories(written(tmp_path, "1,too short,calm"), EMOTIONS)
    assert "the emotions are" not in str(error.value)


def test_lines_count_through_texts_of_several_lines(tmp_path):
    file = written(tmp_path, 'a,"One two\nthree four\nfive six.",calm', "b,short,calm")
    with pytest.raises(StoriesError, match=r"mine\.csv:5: the text has 1 words"):
        read_stories(file, EMOTIONS)


@pytest.mark.parametrize("header", ["id,text", "id,text,feeling", "id,text,emotion,note", ""])
def test_bad_columns_are_refused(tmp_path, header):
    with pytest.raises(StoriesError, match=r"mine\.csv:1: the columns must be id, text, emotion; the file has "):
        read_stories(written(tmp_path, header=header), EMOTIONS)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(StoriesError, match=r"cannot read .*nothing\.csv: No such file"):
        read_stories(tmp_path / "nothing.csv", EMOTIONS)
    with pytest.raises(StoriesError, match="there are no rows"):
        read_stories(written(tmp_path), EMOTIONS)
    (tmp_path / "mine.csv").write_bytes(b"id,text,emotion\na,\xff\xfe,calm\n")
    with pytest.raises(StoriesError, match="not a CSV file in UTF-8"):
        read_stories(tmp_path / "mine.csv", EMOTIONS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("a,1,one two three four five,calm,calm", "a,3,six seven eight nine ten,sad,calm"), "got 1, 3"),
        (("a,1,one two three four five,calm,calm",), "must be numbered 1, 2"),
        (("a,1,one two three four five,calm,calm", "a,2,six seven eight nine ten,sad,sad"), "got calm, sad"),
        (("a,1,one two three four five,calm,lonely", "a,2,six seven eight nine ten,sad,lonely"), "that of a part"),
        (("a,1,one two three four five,calm,glad", "a,2,six seven eight nine ten,sad,calm"), "mine.csv:2: overall 'gl"),
    ],
)
def test_a_bad_narration_is_refused(tmp_path, lines, message):
    with pytest.raises(StoriesError) as error:
        read_narrations(written(tmp_path, *lines, header="id,part,text,emotion,overall"), EMOTIONS)
    assert message in str(error.value)


def test_a_bad_negation_is_refused(tmp_path):
    header = "id,text,word,word_valence,valence,arousal"
    file = written(tmp_path, "a,I am not sad,glad,low,up,", header=header)
    with pytest.raises(StoriesError) as error:
        read_negations(file)
    assert str(error.value) == "mine.csv:2: valence 'up' is neither low nor high; the word 'glad' is not in the text"


# Measures

# One emotion of each of five octants.
SMALL = Anchors(
    ("happy", "calm", "angry", "fearful", "sad"),
    np.array([[4.4, 3.6, 3.6], [3.9, 2.0, 3.4], [1.9, 3.8, 3.6], [1.9, 3.6, 2.1], [1.8, 2.1, 2.2]]),
)


def told(*labels):
    return [Story(f"s{number}", "text", label) for number, label in enumerate(labels)]


def sure(vad, *labels, probability=1.0):
    """Answers with one emotion at `probability`, the others sharing the rest."""
    chosen = np.array([SMALL.labels.index(label) for label in labels])
    table = np.full((len(labels), 5), (1 - probability) / 4)
    table[np.arange(len(labels)), chosen] = probability
    return Answers(np.asarray(vad, float), table, chosen)


def test_what_is_all_right_measures_so():
    scores = measure(told(*SMALL.labels), sure(SMALL.vad, *SMALL.labels), SMALL)
    for share in (scores.emotion, scores.family, scores.octant, scores.vad_octant, scores.valence_side):
        assert (share.right, share.count, share.share) == (5, 5, 1.0)
    assert scores.used == 5
    assert scores.entropy == pytest.approx(np.log2(5))
    assert scores.told_apart.balanced_accuracy == 1.0
    assert (scores.emotion_calibration, scores.octant_calibration) == (0.0, 0.0)
    assert all(item.ccc == pytest.approx(1) for item in scores.dimensions.values())
    assert scores.spread == pytest.approx({"valence": 1, "arousal": 1, "dominance": 1})
    assert sum(map(sum, scores.confusion)) == sum(row[index] for index, row in enumerate(scores.confusion)) == 5


def test_one_answer_for_everything_is_seen():
    """VAD in the middle, which is L on each axis, and always angry."""
    middle = sure(np.full((5, 3), 3.0), *["angry"] * 5, probability=0.8)
    scores = measure(told(*SMALL.labels), middle, SMALL)
    assert (scores.emotion.right, scores.family.right, scores.octant.right) == (1, 1, 1)
    assert (scores.vad_octant.right, scores.valence_side.right) == (1, 3)
    assert (scores.used, scores.entropy, scores.most_frequent, scores.most_frequent_share) == (1, 0.0, "angry", 1.0)
    assert scores.told_apart.balanced_accuracy == pytest.approx(1 / 3)
    assert scores.emotion_calibration == pytest.approx(0.8 - 0.2)
    assert scores.spread == {"valence": 0, "arousal": 0, "dominance": 0}
    assert [row[OCTANTS.index("LHH")] for row in scores.confusion] == [1, 0, 1, 0, 1, 1, 0, 1]


def test_the_nearest_anchor_is_sought_among_the_three_families_alone():
    """The point is nearest to calm of all, but of fear, sadness and anger it is sad; each family counts the same."""
    vad = [[3.3, 2.0, 3.1], [1.8, 2.1, 2.2], [1.9, 3.6, 2.1], [1.9, 3.6, 2.1]]
    answers = sure(vad, "calm", "sad", "fearful", "fearful")
    scores = measure(told("sad", "sad", "fearful", "angry"), answers, SMALL)
    assert scores.told_apart.recall == {"fear": 1.0, "sadness": 1.0, "anger": 0.0}
    assert scores.told_apart.balanced_accuracy == pytest.approx(2 / 3)
    assert scores.told_apart.count == 4
    assert measure(told("sad", "fearful"), sure(vad[:2], "sad", "sad"), SMALL).told_apart is None


def test_a_choice_other_than_the_most_probable_counts():
    answers = sure(SMALL.vad, *SMALL.labels, probability=0.6)
    chosen = answers.chosen.copy()
    chosen[0] = 1
    scores = measure(told(*SMALL.labels), Answers(answers.vad, answers.probabilities, chosen), SMALL)
    assert scores.emotion.right == 4
    assert scores.octant_calibration == pytest.approx((0.1 + 4 * 0.4) / 5)


def test_calibration_on_worked_numbers():
    # (.4, .5]: mean .45, half of two right: 2 * .05; (.8, .9]: mean .85, 1 of 2 right: 2 * .35; of four: .2.
    assert calibration_error([0.44, 0.46, 0.82, 0.88], [0, 1, 0, 1]) == pytest.approx((0.1 + 0.7) / 4)
    assert calibration_error([0.0, 1.0, 1.0], [0, 1, 1]) == 0.0
    random = np.random.default_rng(0)
    confidence = random.uniform(size=20_000)
    assert calibration_error(confidence, random.uniform(size=20_000) < confidence) < 0.02


def test_a_share_has_wilson_s_interval():
    share = Share.of([True] * 8 + [False] * 2)
    assert (share.share, share.interval.low, share.interval.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert Share.of([True] * 4).interval.high == pytest.approx(1.0)


def test_answers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="sum 1"):
        Answers(np.ones((2, 3)), np.ones((2, 5)), np.zeros(2, int))
    with pytest.raises(ValueError, match="expected VAD"):
        Answers.most_probable(np.ones((2, 2)), np.full((2, 5), 0.2))
    with pytest.raises(ValueError, match="finite"):
        Answers.most_probable([[np.nan, 1, 1]], np.full((1, 5), 0.2))
    with pytest.raises(ValueError, match="do not fit"):
        measure(told("sad", "calm", "happy"), sure(SMALL.vad[:2], "sad", "sad"), SMALL)
    with pytest.raises(ValueError, match="two or more"):
        measure(told("sad"), sure(SMALL.vad[:1], "sad"), SMALL)


def test_negations_are_measured_by_their_sides():
    items = [
        Negation("a", "not sad", "sad", "low", "high", ""),
        Negation("b", "not afraid", "afraid", "low", "high", "low"),
        Negation("c", "never so proud", "proud", "high", "high", "high"),
        Negation("d", "never so alone", "alone", "low", "low", ""),
    ]
    scores = measure_negations(items, [[2, 2, 3], [4, 4, 3], [4, 4, 3], [2, 2, 3]])
    assert (scores.valence.right, scores.turned.right, scores.kept.right, scores.arousal.right) == (3, 1, 2, 1)
    assert "| right valence side | 75.0% [" in negations_markdown(scores)
    assert measure_negations(items[:1], [[2, 2, 3]]).kept is None
    with pytest.raises(ValueError, match="expected VAD"):
        measure_negations(items, [[2, 2, 3]])


def test_the_table_and_the_picture_show_the_scores(tmp_path):
    scores = measure(told(*SMALL.labels), sure(np.full((5, 3), 3.0), *["angry"] * 5), SMALL)
    table = stories_markdown(scores, 5)
    assert "| emotions used | 1 of 5 |" in table
    assert "| most frequent emotion | angry, 100.0% |" in table
    assert "0.333 (fear 0.00, sadness 0.00, anger 1.00; 3 stories)" in table
    draw_confusion(scores, tmp_path / "octants.png")
    assert (tmp_path / "octants.png").read_bytes().startswith(b"\x89PNG")


# The commands


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for target in ("valence", "arousal_dominance"):
        save_model(build("tiny", "cross-modal-separate", target, None).model, folder / target)
    return folder


def run(*arguments):
    result = CliRunner().invoke(evaluate, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_stories_are_measured_and_written(models, tmp_path):
    text = run("stories", "--model", models, "--output", tmp_path / "out")
    assert "| 240 stories | measured [95 %] |" in text
    record = json.loads((tmp_path / "out" / "stories.json").read_text())
    assert record["count"] == len(record["stories"]) == 240
    assert sum(record["chosen"].values()) == 240
    first = record["stories"][0]
    assert (first["id"], first["emotion"]) == ("excited-1", "excited")
    assert first["heard"] in EMOTIONS
    assert 1 <= first["arousal"] <= 5
    assert (tmp_path / "out" / "octants.png").stat().st_size > 1000


def test_stories_of_ones_own_are_measured(models, tmp_path):
    file = written(tmp_path, f"a,{'one two three ' * 9},calm", f"b,{'four five six ' * 9},furious")
    record = json.loads(run("stories", "--model", models, "--data", file, "--json"))
    assert (record["count"], record["told_apart"]) == (2, None)


def test_negations_are_measured(models, tmp_path):
    assert "| 128 negations |" in run("negations", "--model", models, "--output", tmp_path)
    assert len(json.loads((tmp_path / "negations.json").read_text())["sentences"]) == 128


def test_the_corpus_is_what_is_measured_where_nothing_is_named(tmp_path):
    for arguments in (["--data", "nothing.csv"], ["corpus", "--data", "nothing.csv"]):
        result = CliRunner().invoke(evaluate, arguments)
        assert result.exit_code == 1
        assert "nothing.csv" in result.stderr
    assert "no such command" in CliRunner().invoke(evaluate, ["storeys"]).stderr.lower()
    assert re.search(r"corpus .*\n.*narrations .*\n.*negations .*\n.*stories .*\n.*transcription ", run("--help"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nothing.csv"), "cannot read nothing.csv"),
        (("--model", "MODELS/valence"), "does not predict arousal, dominance"),
        (("--emotion-map", "MODELS/valence"), "map.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(models, arguments, message):
    words = [argument.replace("MODELS", str(models)) for argument in arguments]
    result = CliRunner().invoke(evaluate, ["stories", "--model", str(models), *words])
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_map_of_other_emotions_is_refused(models, tmp_path):
    labels = list(read_anchors().labels)
    (tmp_path / "labels.json").write_text(json.dumps([*labels[1:], labels[0]]))
    points = [[0.0] * 3] * 40
    (tmp_path / "map.json").write_text(json.dumps({"minimum": [1] * 3, "maximum": [5] * 3, "centroids": points}))
    result = CliRunner().invoke(evaluate, ["stories", "--model", str(models), "--emotion-map", str(tmp_path)])
    assert result.exit_code == 1
    assert "are not those of the knowledge base" in result.stderr


# What is heard


@pytest.fixture
def recordings(tmp_path):
    """Two stories, each read by two voices that hum, and the file of the stories."""

    def reader(voice, pitch):
        def read(text):
            times = np.arange(16_000 * len(text.split()) // 2) / 16_000
            return (0.3 * np.sin(2 * np.pi * pitch * times)).astype(np.float32)

        return Reader(voice, (voice,), read)

    file = written(tmp_path, 'a,"We went down\nto the sea.",calm', "b,He never once looked up.,furious")
    told = read_stories(file, EMOTIONS)
    texts = [Text(story.id, story.text) for story in reversed(told)]  # joined by id, not by order
    read_aloud(texts, [reader("low", 120), reader("high", 240)], tmp_path / "speech")
    return file, tmp_path / "speech"


def hears(monkeypatch, *places, words):
    """In place of the served transcriber: what it hears in the recording of each length, in two segments."""
    asked = []

    def transcribe(waveform):
        first, second = words[len(waveform)]
        return [RecognisedSegment(0, 16_000, first), RecognisedSegment(16_000, len(waveform), second)]

    def transcriber(**decoding):
        asked.append(decoding)
        return transcribe

    for place in places:
        monkeypatch.setattr(f"attune_training.evaluation.stories.{place}.transcriber", transcriber)
    return asked


RIGHT = {48_000: ("We went down", "to the sea"), 40_000: ("he never", "once looked up!")}
WRONG = {48_000: ("We went down", "two the"), 40_000: ("he", "")}


def test_stories_are_measured_as_they_are_heard(models, recordings, tmp_path, monkeypatch):
    file, speech = recordings
    hears(monkeypatch, "command", words=WRONG)
    arguments = ("stories", "--model", models, "--data", file, "--speech", speech, "--output", tmp_path / "out")
    text = run(*arguments)
    record = json.loads((tmp_path / "out" / "stories.json").read_text())
    voices = record["speech"]
    assert list(voices) == ["low", "high"]
    # "to" became "two", "sea" and four other words are missing: six of eleven.
    assert voices["low"]["words_wrong"] == pytest.approx(
        {"substitutions": 1, "deletions": 5, "insertions": 0, "count": 11, "rate": 6 / 11}
    )
    assert "| words wrong | | 54.5% | 54.5% |" in text
    found = voices["high"]
    assert found["difference"]["valence_pcc"] == pytest.approx(
        found["scores"]["dimensions"]["valence"]["pcc"] - record["dimensions"]["valence"]["pcc"]
    )
    assert [row["words"] for row in record["heard"]["low"]] == ["We went down two the", "he"]
    assert {row["valence"] for row in record["heard"]["low"]} != {row["valence"] for row in record["heard"]["high"]}
    assert set(found["by_rule"]) == set(OverallRule)
    assert f"| high, {SERVED} (served) |" in text


def test_the_whole_that_is_measured_is_that_of_the_rule(models, recordings):
    file, speech = recordings
    told = read_stories(file, EMOTIONS)
    found = find_recordings(read_recordings(speech), [Text(story.id, story.text) for story in told])["low"]

    def transcribe(waveform):
        return [RecognisedSegment(0, 16_000, "one"), RecognisedSegment(16_000, len(waveform), "")]

    heard = hear(models, found, transcribe)
    assert [course.lengths.tolist() for course in heard.courses] == [[16_000, 32_000], [16_000, 24_000]]
    assert [course.texts for course in heard.courses] == [("one", ""), ("one", "")]
    assert heard.transcripts == ("one", "one")
    for rule in OverallRule:
        for course, whole in zip(heard.courses, heard.wholes(rule), strict=True):
            np.testing.assert_allclose(whole.vad, overall_vad(course.vad, course.lengths, rule), rtol=1e-6)
            np.testing.assert_allclose(whole.shares @ course.vad, whole.vad)
    for served, named in zip(heard.wholes(), heard.wholes(SERVED), strict=True):
        np.testing.assert_array_equal(served.vad, named.vad)


def test_speech_of_other_stories_is_refused(models, recordings, tmp_path):
    file, speech = recordings
    file.write_text(file.read_text().replace("never once", "once never"))
    result = CliRunner().invoke(
        evaluate, ["stories", "--model", str(models), "--data", str(file), "--speech", str(speech)]
    )
    assert result.exit_code == 1
    assert "'b' was read with other words by the voice low: run attune synthesise again" in result.stderr


def narration(overall, *parts):
    return Narration("n", tuple(Part(text, emotion) for text, emotion in parts), overall)


def test_narrations_are_measured_against_what_is_felt_on_the_whole():
    told = [narration("sad", ("one two", "happy"), ("three", "sad")), narration("happy", ("four", "happy"))]
    answers = sure([[4.4, 3.6, 3.6], [4.4, 3.6, 4.6]], "fearful", "happy")
    scores = measure_narrations(told, answers, SMALL)
    assert (scores.valence_side.right, scores.octant.right, scores.family.right, scores.emotion.right) == (1, 1, 1, 1)
    far = np.linalg.norm(SMALL.vad[0] - SMALL.vad[4])
    assert scores.distance == pytest.approx((far + 1) / 2)


def test_words_are_cut_as_speech_would_be():
    """At 2.5 words a second 20 words are 8 s."""
    phrase = "one two three four five six seven,"
    assert spoken_segments(f"{phrase} {phrase} {phrase} end.") == [f"{phrase} {phrase}", f"{phrase} end."]
    assert spoken_segments(" No, never! ") == ["No, never!"]
    without_pauses = " ".join(["word"] * 30)
    assert spoken_segments(f"Well. {without_pauses} So.") == ["Well.", f"{without_pauses} So."]
    assert spoken_segments("") == []
    assert spoken_segments(f"{without_pauses}. ...") == [f"{without_pauses}. ..."]


def test_narrations_are_measured_by_each_rule(models, tmp_path):
    text = run("narrations", "--model", models, "--output", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "narrations.json").read_text())
    assert record["served"] == SERVED
    assert list(record["scores"]) == ["words alone"]
    by_rule = record["scores"]["words alone"]
    assert list(by_rule) == list(OverallRule)
    assert len({item["distance"] for item in by_rule.values()}) == len(OverallRule)
    assert all(item["octant"]["count"] == 20 for item in by_rule.values())
    assert f"| {SERVED} (served) | " in text


def test_narrations_are_measured_as_they_are_heard(models, recordings, tmp_path, monkeypatch):
    _, speech = recordings
    parts = ("a,1,We went to the sea.,calm,sad", "a,2,Now nobody goes there anymore.,sad,sad")
    file = written(tmp_path, *parts, header="id,part,text,emotion,overall")
    text = "We went to the sea. Now nobody goes there anymore."
    read_aloud([Text("a", text)], [Reader("hum", (), lambda text: np.sin(np.arange(48_000) / 9).astype("f4"))], speech)
    hears(monkeypatch, "narrations", words={48_000: ("we went to the sea", "now nobody goes there")})
    arguments = ("narrations", "--model", models, "--data", file, "--speech", speech, "--json")
    assert list(json.loads(run(*arguments))) == ["words alone", "hum, 10.0% of the words wrong"]


def test_settings_of_decoding_are_compared(models, recordings, monkeypatch, tmp_path):
    file, speech = recordings
    asked = hears(monkeypatch, "transcription", words=RIGHT)
    arguments = ("transcription", "--model", models, "--data", file, "--speech", speech, "--output", tmp_path)
    text = run(*arguments, "--setting", "beam-1", "--setting", "beam-5")
    assert asked == [{}, {"beam_size": 5}] * 2
    assert "| 2 stories, low | words wrong |" in text
    record = json.loads((tmp_path / "transcription.json").read_text())
    trial = record["voices"]["high"]["beam-5"]
    assert trial["transcripts"] == ["We went down to the sea", "he never once looked up!"]
    assert trial["rate"] == 0
    assert trial["agreement"] == pytest.approx(1)  # two stories
    assert trial["lost"] == pytest.approx(trial["given_pcc"] - trial["recognised_pcc"])
    assert 0 < trial["cpu_s_per_s"] < 10


def test_every_setting_is_one_that_the_transcriber_has():
    decodings = [Decoding(**settings) for settings in SETTINGS.values()]
    assert decodings[0] == Decoding()
    assert len(set(decodings)) == len(decodings)


def test_a_few_stories_are_spread_over_the_emotions(stories):
    some = spread_out(stories, 30)
    assert len({story.emotion for story in some}) >= 28
    assert (some[0], some[-1], len(some)) == (stories[0], stories[-1], 30)
    assert spread_out(stories, None) == spread_out(stories, 1000) == stories


@pytest.mark.parametrize(
    ("said", "recognised", "expected"),
    [
        ("It's eleven o'clock.", "It's 11 o'clock", (0, 0, 0)),
        ("I won't, it's twenty-five.", "i will not it is 25", (0, 0, 0)),
        ("up and down", "up or down the road", (1, 0, 2)),
        ("up and down", "", (0, 3, 0)),
        ("up and down", "Up ... and down...", (0, 0, 0)),
    ],
)
def test_words_are_compared_without_their_writing(said, recognised, expected):
    errors = word_errors([said], [recognised])
    assert (errors.substitutions, errors.deletions, errors.insertions) == expected
    assert errors.rate == pytest.approx(sum(expected) / errors.count)


def test_words_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="expected texts that have words"):
        word_errors(["..."], ["a"])
    with pytest.raises(ValueError, match="expected texts that have words"):
        word_errors(["a"], [])
