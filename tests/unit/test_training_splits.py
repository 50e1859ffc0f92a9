"""The ways to cut a corpus into train, validation and test.

.venv/bin/pytest tests/unit/test_training_splits.py
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attune_training.data.splits import HeldOutSpeakers, Split, SplitError, parse_split_policy
from attune_training.data.utterance import Utterance

TARGETS = ["valence", "arousal_dominance", "valence_arousal_dominance"]


def utterance(number: int, vad=(3.0, 3.0, 3.0), speaker: str = "ann", session: str = "", split: str = "") -> Utterance:
    """Return an utterance that its words tell from all others."""
    return Utterance(None, str(number), *vad, speaker, session, split=split)


def speakers(part: tuple[Utterance, ...]) -> set[str]:
    return {item.speaker for item in part}


def sessions(part: tuple[Utterance, ...]) -> set[str]:
    return {item.session for item in part}


def sizes(split: Split) -> tuple[int, int, int]:
    return len(split.train), len(split.validation), len(split.test)


@st.composite
def corpora(draw) -> list[Utterance]:
    """Corpora of 3 to 8 sessions, two speakers each, with few utterances and possibly constant labels."""
    label = st.floats(1.0, 5.0) if draw(st.booleans()) else st.just(2.5)
    count = draw(st.integers(3, 8))
    names = [(f"Ses{session:02d}{letter}", str(session)) for session in range(1, count + 1) for letter in "FM"]
    pool = names + draw(st.lists(st.sampled_from(names), min_size=4, max_size=60))
    parts = ["train", "validation", "test"]
    return [
        utterance(number, (draw(label), draw(label), draw(label)), *name, parts[number % 3])
        for number, name in enumerate(pool)
    ]


POLICIES = [
    "stratified",
    "leave-one-session-out:2",
    "held-out-speakers",
    "held-out-speakers:Ses01F/2",
    "held-out-speakers:1-2/Ses03M,Ses03F",
    "given",
]


@pytest.mark.parametrize("text", POLICIES)
@given(utterances=corpora(), target=st.sampled_from(TARGETS), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_parts_are_the_corpus_and_share_nothing(text, utterances, target, seed):
    policy = parse_split_policy(text)
    if text.endswith("Ses03M,Ses03F") and len(sessions(tuple(utterances))) == 3:
        return  # No speaker would be left for training.
    split = policy.split(utterances, target, seed)
    words = [item.transcript for part in (split.train, split.validation, split.test) for item in part]
    assert sorted(words, key=int) == [item.transcript for item in utterances]
    assert all(sizes(split))
    assert split == policy.split(utterances, target, seed)
    if policy.is_speaker_independent:
        assert not speakers(split.train) & speakers(split.validation)
        assert not speakers(split.train) & speakers(split.test)
        assert not speakers(split.validation) & speakers(split.test)


@pytest.mark.parametrize("text", POLICIES)
def test_a_policy_is_written_as_it_is_read(text):
    assert str(parse_split_policy(text)) == text


def test_which_policies_keep_speakers_apart_and_what_tables_call_them():
    read = [parse_split_policy(text) for text in POLICIES]
    assert [policy.is_speaker_independent for policy in read] == [False, True, True, True, True, False]
    assert [policy.label for policy in read] == [
        "random, stratified",
        "session 2 left out",
        "held-out speakers",
        "held-out speakers 2",
        "held-out speakers Ses03M, Ses03F",
        "the corpus's own split",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random", "'random' is no split policy; the policies are stratified, leave-one-session-out:K, held-out"),
        ("stratified:5", "stratified stands alone, without :5"),
        ("given:x", "given stands alone"),
        ("leave-one-session-out", "needs the session to test on"),
        ("held-out-speakers:1", "must name the speakers for validation and for the test"),
        ("held-out-speakers:1/", "must name the speakers for validation and for the test"),
        ("held-out-speakers:1/2/3", "must name the speakers for validation and for the test"),
    ],
)
def test_policies_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(SplitError, match=message):
        parse_split_policy(text)


# Stratified


def test_valence_bins_are_spread_alike_over_80_10_10():
    # 100 utterances in each of the five bins of 1..5, arousal and dominance unrelated.
    random = np.random.default_rng(0)
    utterances = [utterance(number, (1.4 + 0.8 * (number % 5), *random.uniform(1, 5, 2))) for number in range(500)]
    split = parse_split_policy("stratified").split(utterances, "valence", seed=1)
    assert sizes(split) == (400, 50, 50)
    for part, count in ((split.train, 80), (split.validation, 10), (split.test, 10)):
        assert set(Counter(item.valence for item in part).values()) == {count}
    assert split != parse_split_policy("stratified").split(utterances, "valence", seed=2)


@pytest.mark.parametrize("target", ["arousal_dominance", "valence_arousal_dominance"])
def test_arousal_and_dominance_are_binned_together(target):
    # Nine groups, each 10 times as large as the parts it is cut into; alone, either dimension has three bins.
    levels = (1.0, 3.0, 5.0)
    groups = [
        (1.0 if target == "arousal_dominance" else arousal, arousal, dominance)
        for arousal in levels
        for dominance in levels
    ]
    utterances = [utterance(number, groups[number % 9]) for number in range(180)]
    split = parse_split_policy("stratified").split(utterances, target, seed=0)
    for part, count in ((split.train, 16), (split.validation, 2), (split.test, 2)):
        assert Counter(item.vad() for item in part) == dict.fromkeys(groups, count)


def test_bins_are_of_equal_width_over_the_labels_that_there_are():
    # A narrow corpus, 2.5 to 3.5: five bins of 0.2 are still told apart.
    utterances = [utterance(number, (2.5 + 0.25 * (number % 5), 3.0, 3.0)) for number in range(200)]
    test = parse_split_policy("stratified").split(utterances, "valence", seed=0).test
    assert Counter(item.valence for item in test) == {2.5: 4, 2.75: 4, 3.0: 4, 3.25: 4, 3.5: 4}


def test_rare_bins_are_merged():
    # Two bins of six are too small for ten tenths; as one of twelve they reach test and validation.
    utterances = [
        utterance(number, (1.0 if number < 6 else 5.0 if number < 12 else 3.0, 3.0, 3.0)) for number in range(112)
    ]
    for seed in range(5):
        split = parse_split_policy("stratified").split(utterances, "valence", seed)
        assert all(any(item.valence != 3.0 for item in part) for part in (split.validation, split.test))


def test_a_corpus_of_less_than_ten_cannot_be_stratified():
    with pytest.raises(SplitError, match="at least 10 utterances; there are 9"):
        parse_split_policy("stratified").split([utterance(number) for number in range(9)], "valence", 0)


# Sessions


def iemocap_like(count: int = 5) -> list[Utterance]:
    return [
        utterance(2 * session + offset, speaker=f"Ses{session:02d}{letter}", session=str(session))
        for session in range(1, count + 1)
        for offset, letter in enumerate("FM")
    ]


@pytest.mark.parametrize(("tested", "validated"), [("1", "2"), ("4", "5"), ("5", "1"), ("9", "10"), ("10", "1")])
def test_one_session_is_left_out_and_the_next_validates(tested, validated):
    utterances = iemocap_like(10 if int(tested) > 5 else 5)
    split = parse_split_policy(f"leave-one-session-out:{tested}").split(utterances, "valence", 0)
    assert (sessions(split.test), sessions(split.validation)) == ({tested}, {validated})
    if validated in "12345" and len(utterances) == 10:
        assert speakers(split.test) == {f"Ses0{tested}F", f"Ses0{tested}M"}
        assert len(split.train) == 6


@pytest.mark.parametrize(
    ("utterances", "message"),
    [
        (iemocap_like(4), "the sessions of this corpus are 1, 2, 3, 4"),
        ([*iemocap_like(), utterance(99, speaker="ann")], "not every utterance of this corpus has a session"),
        (
            [*iemocap_like(), utterance(99, speaker="", session="1")],
            "not every utterance of this corpus names its speaker",
        ),
        (
            [*iemocap_like(), utterance(99, speaker="Ses01F", session="2")],
            "Ses01F speaks in the sessions 1 and 2; choose held-out",
        ),
        (
            [utterance(0, session="5"), utterance(1, session="6", speaker="bob")],
            "at least three sessions are needed; there are 5, 6",
        ),
    ],
)
def test_corpora_that_do_not_fit_leaving_a_session_out_are_refused(utterances, message):
    with pytest.raises(SplitError, match=f"leave-one-session-out:5: {message}"):
        parse_split_policy("leave-one-session-out:5").split(utterances, "valence", 0)


# Speakers


def ravdess_like() -> list[Utterance]:
    return [utterance(number, speaker=f"actor-{number % 24 + 1:02d}") for number in range(48)]


def test_speakers_are_held_out_by_number():
    split = parse_split_policy("held-out-speakers:17-20/21-24").split(ravdess_like(), "valence", 0)
    assert speakers(split.validation) == {"actor-17", "actor-18", "actor-19", "actor-20"}
    assert speakers(split.test) == {"actor-21", "actor-22", "actor-23", "actor-24"}
    assert sizes(split) == (32, 8, 8)


def test_speakers_are_held_out_by_name_number_and_list():
    split = parse_split_policy("held-out-speakers: Ses01F, Ses02M / 3, Ses04F").split(iemocap_like(), "valence", 0)
    assert speakers(split.validation) == {"Ses01F", "Ses02M"}
    assert speakers(split.test) == {"Ses03F", "Ses03M", "Ses04F"}


def test_a_name_that_is_a_number_is_that_speaker():
    utterances = [utterance(number, speaker=name) for number, name in enumerate(["7", "voice-7", "8", "9"])]
    assert speakers(parse_split_policy("held-out-speakers:7/8").split(utterances, "valence", 0).validation) == {"7"}


@pytest.mark.parametrize(("make", "expected"), [(ravdess_like, (20, 2, 2)), (iemocap_like, (8, 1, 1))])
def test_a_tenth_of_the_speakers_is_drawn(make, expected):
    def heard(seed: int) -> tuple[int, int, int]:
        split = HeldOutSpeakers().split(make(), "valence", seed)
        drawn.add(frozenset(speakers(split.test)))
        return tuple(len(speakers(part)) for part in (split.train, split.validation, split.test))

    drawn: set[frozenset[str]] = set()
    assert {heard(seed) for seed in range(10)} == {expected}
    assert len(drawn) > 3, "the seed draws"


@pytest.mark.parametrize(
    ("text", "utterances", "message"),
    [
        ("held-out-speakers", iemocap_like(1), "at least three speakers are needed; there are Ses01F, Ses01M"),
        ("held-out-speakers", [*iemocap_like(), utterance(99, speaker="")], "not every utterance .* names its speaker"),
        ("held-out-speakers:1/7", iemocap_like(3), "'7' matches no speaker of this corpus: Ses01F, Ses01M, Ses02F"),
        ("held-out-speakers:1/bob", iemocap_like(3), "'bob' matches no speaker of this corpus"),
        ("held-out-speakers:1-2/2-3", iemocap_like(), "Ses02F, Ses02M cannot be in validation and test"),
        ("held-out-speakers:1/2-3", iemocap_like(3), "no speaker is left to train on"),
    ],
)
def test_corpora_that_do_not_fit_holding_speakers_out_are_refused(text, utterances, message):
    with pytest.raises(SplitError, match=message):
        parse_split_policy(text).split(utterances, "valence", 0)


# The corpus's own


def test_the_given_split_is_kept():
    utterances = [utterance(number, split=name) for number, name in enumerate(["test", "train", "validation", "train"])]
    split = parse_split_policy("given").split(utterances, "valence", 0)
    assert [item.transcript for item in split.train] == ["1", "3"]
    assert (split.validation, split.test) == ((utterances[2],), (utterances[0],))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train", "train", "test"], "test 1, train 2"),
        (["", "train", "validation", "test"], "none 1, test 1, train 1, va"),
    ],
)
def test_a_corpus_without_a_whole_split_of_its_own_is_refused(names, found):
    utterances = [utterance(number, split=name) for number, name in enumerate(names)]
    with pytest.raises(SplitError, match=f"must be in train, validation, test; this corpus has {found}"):
        parse_split_policy("given").split(utterances, "valence", 0)
