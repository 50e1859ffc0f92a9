"""The knowledge base: the packaged file is valid, and an invalid one is rejected with the name of the entry.

Run: pytest tests/unit/test_knowledge.py
"""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from attune_client.protocol.errors import AttuneError
from attune_client.protocol.music_spec import INSTRUMENTS, MODES
from attune_ensemble.prompting.knowledge import EMOTIONS_FILE, OCTANTS, KnowledgeError, load_emotions, octant_of
from attune_ensemble.prompting.specification import music_spec
from attune_ensemble.prompting.writers.template import spoken_instrument, spoken_key
from tests.conftest import ROOT

EMOTIONS = load_emotions()
LABELS = [emotion.label for emotion in EMOTIONS]
each_emotion = pytest.mark.parametrize("emotion", EMOTIONS, ids=LABELS)

DYNAMICS_WORDS = {
    "pp": {"very soft", "very softly"},
    "p": {"soft", "quiet"},
    "mp": {"moderate", "conversational"},
    "mf": {"full", "firm"},
    "f": {"loud", "strong"},
}
MEDICAL = re.compile(
    r"\b(anxiolytic|clinical|cortisol|cure|diagnos\w*|disease|disorder|heal\w*|patient's|relieves?|symptom\w*|treat\w*)\b"
)


def test_the_readme_lists_the_emotions_by_octant():
    """Who names an emotion that there is none of is sent there."""
    rows = re.findall(r"^ *\| ([HL]) ([HL]) ([HL]) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    listed = {"".join(levels): names.split(", ") for *levels, names in rows}
    assert listed == {octant: [item.label for item in EMOTIONS if item.octant == octant] for octant in OCTANTS}


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def test_order_and_octants():
    """The order is the class index of the shipped classifier: moving an entry needs a new emotion map."""
    assert " ".join(LABELS) == (
        "excited happy triumphant determined hopeful surprised awed infatuated moved expectant "
        "grateful content calm confident composed tender nostalgic trusting dreamy sleepy "
        "furious angry defiant disgusted impatient terrified fearful anxious overwhelmed frustrated "
        "contemptuous cynical sullen indifferent guarded grieving ashamed sad lonely weary"
    )
    assert Counter(emotion.octant for emotion in EMOTIONS) == dict.fromkeys(OCTANTS, 5)


def test_one_entry_in_full():
    anxious = EMOTIONS[LABELS.index("anxious")]
    assert anxious.octant == "LHL"
    assert anxious.anchor == (2.4, 3.3, 2.1)
    assert (anxious.tempo_low_bpm, anxious.tempo_high_bpm) == (68, 80)
    assert (anxious.tonic, anxious.mode, anxious.dynamics) == ("E", "dorian", "p")
    assert anxious.instruments == ("piano", "vibraphone", "strings", "contrabass")
    assert anxious.objective.startswith("Keep company with anxious")


def test_the_whole_vocabulary_is_used():
    assert {name for emotion in EMOTIONS for name in emotion.instruments} == set(INSTRUMENTS)
    assert {emotion.mode for emotion in EMOTIONS} == set(MODES)
    assert min(emotion.tempo_low_bpm for emotion in EMOTIONS) < 50
    assert max(emotion.tempo_high_bpm for emotion in EMOTIONS) > 120


def test_anchors_lie_apart():
    for index, one in enumerate(EMOTIONS):
        for other in EMOTIONS[:index]:
            distance = sum((a - b) ** 2 for a, b in zip(one.anchor, other.anchor, strict=True)) ** 0.5
            assert distance >= 0.4, f"{one.label} and {other.label}"


def test_no_two_descriptions_are_alike():
    for index, one in enumerate(EMOTIONS):
        for other in EMOTIONS[:index]:
            mine, theirs = words_of(one.description), words_of(other.description)
            assert len(mine & theirs) / len(mine | theirs) < 0.45, f"{one.label} and {other.label}"


@each_emotion
def test_prose_has_the_promised_length(emotion):
    assert 40 <= len(emotion.description.split()) <= 80
    assert 2 <= len(re.findall(r"[.!?](?:\s|$)", emotion.description)) <= 4
    assert len(emotion.objective.split()) <= 25


@each_emotion
def test_prose_makes_no_medical_claim(emotion):
    assert not MEDICAL.findall(f"{emotion.objective} {emotion.description}".lower())


@each_emotion
def test_prose_names_just_the_instruments_of_its_fields(emotion):
    prose = emotion.description.lower()
    named = set()
    # The longest names first, so that "electric piano" is not a piano.
    for name in sorted(INSTRUMENTS, key=lambda name: -len(spoken_instrument(name))):
        pattern = rf"\b{spoken_instrument(name).removeprefix('wordless ').lower()}\b"
        if re.search(pattern, prose):
            named.add(name)
            prose = re.sub(pattern, "", prose)
    assert named == set(emotion.instruments)


@each_emotion
def test_prose_names_the_key_and_the_dynamics_of_its_fields(emotion):
    assert re.search(rf"\b{spoken_key(music_spec(emotion, None))}\b", emotion.description)
    assert any(re.search(rf"\b{words}", emotion.description.lower()) for words in DYNAMICS_WORDS[emotion.dynamics])


@each_emotion
def test_prose_and_tempo_agree(emotion):
    prose = emotion.description.lower().replace("neither slow nor quick", "")
    if re.search(r"\b(slow|lullaby)\b", prose):
        assert emotion.tempo_high_bpm <= 76
    if re.search(r"\b(brisk|quick|lively|fast)\b", prose):
        assert emotion.tempo_low_bpm >= 88


def test_octant_of_takes_the_middle_as_low():
    assert octant_of((3.0, 3.1, 5.0)) == "LHH"


@pytest.fixture
def document() -> dict:
    return yaml.safe_load(EMOTIONS_FILE.read_text(encoding="utf-8"))


def change(**fields):
    """An edit of the first entry."""
    return lambda entries: entries[0].update(fields)


BREAKAGES = {
    "count": (lambda entries: entries.pop(), r"must hold 40 emotions, not 39"),
    "octant": (change(octant="LLL"), r"entry 1 \(excited\): octant must be HHH, where its anchor lies"),
    "octant sizes": (
        change(octant="LLL", anchor={"valence": 2.0, "arousal": 1.2, "dominance": 1.2}),
        r"octant HHH must hold 5 emotions, not 4",
    ),
    "anchor range": (
        change(anchor={"valence": 5.5, "arousal": 4, "dominance": 4}),
        r"\(excited\): anchor must lie between 1 and 5",
    ),
    "anchor fields": (change(anchor={"valence": 4}), r"\(excited\): anchor must be numbers for valence, arousal"),
    "anchor type": (
        change(anchor={"valence": True, "arousal": 4, "dominance": 4}),
        r"\(excited\): anchor must be numbers",
    ),
    "label form": (change(label="Very happy"), r"entry 1: label must be one lower-case word"),
    "label twice": (change(label="happy"), r"happy and happy must not share one label"),
    "tempo order": (change(tempo_bpm={"low": 90, "high": 80}), r"\(excited\): tempo_bpm must rise from low to high"),
    "tempo range": (change(tempo_bpm={"low": 90, "high": 200}), r"within 40\.\.180"),
    "mode": (change(mode="major"), r"\(excited\): mode must be one of phrygian, .*got 'major'"),
    "tonic": (change(tonic="H"), r"\(excited\): tonic must be one of C, C#"),
    "dynamics": (change(dynamics="ff"), r"\(excited\): dynamics must be one of pp"),
    "unknown instrument": (
        change(instruments=["piano", "kazoo"]),
        r"\(excited\): instruments must be one of .*'kazoo'",
    ),
    "too few": (change(instruments=["piano"]), r"\(excited\): instruments must list 2 to 5"),
    "one twice": (change(instruments=["piano", "piano"]), r"\(excited\): instruments must not name one twice"),
    "prose": (change(objective=" "), r"\(excited\): objective must be a text"),
    "same prose": (
        lambda entries: entries[1].update(description=entries[0]["description"]),
        r"excited and happy must not share one description",
    ),
    "missing field": (
        lambda entries: entries[0].pop("mode"),
        r"\(excited\): must have exactly the fields .*check mode",
    ),
    "no mapping": (lambda entries: entries.__setitem__(2, "joy"), r"entry 3: must be a mapping"),
}


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_broken_file_is_refused_by_name(document, tmp_path, breakage, message):
    breakage(document["emotions"])
    path = tmp_path / "emotions.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(KnowledgeError, match=message):
        load_emotions(path)


def test_an_edited_copy_loads(document, tmp_path):
    document["emotions"][0]["tonic"] = "F#"
    path = tmp_path / "emotions.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert load_emotions(path)[0].tonic == "F#"
    assert load_emotions(path)[1:] == EMOTIONS[1:]


@pytest.mark.parametrize("content", [None, "emotions: [", "- 1", "emotions: 3"])
def test_a_file_that_is_no_knowledge_base_is_refused(tmp_path: Path, content):
    path = tmp_path / "emotions.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(KnowledgeError, match=r"emotions\.yaml"):
        load_emotions(path)
    assert issubclass(KnowledgeError, AttuneError)
