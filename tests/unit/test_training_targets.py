"""From categories, ratings and strength to targets, and the statistics of what comes of it.

.venv/bin/pytest tests/unit/test_training_targets.py
ATTUNE_DATA=DIR .venv/bin/pytest tests/unit/test_training_targets.py    (with glasgow/ in DIR)
"""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from attune_training.commands import experiments
from attune_training.data.norms import category_vad, category_words, felt_vad
from attune_training.data.splits import Split
from attune_training.data.statistics import Spread, describe, markdown
from attune_training.data.targets import away_from, mean_vad, rescaled
from attune_training.data.utterance import Utterance

NAN = math.nan


@pytest.mark.parametrize(
    ("rating", "low", "high", "expected"),
    [(-2, -2, 2, 1.0), (0, -2, 2, 3.0), (1, 0, 2, 3.0), (2, 0, 2, 5.0), (5, 1, 9, 3.0), (7, 1, 9, 4.0)],
)
def test_ratings_are_rescaled_to_one_to_five(rating, low, high, expected):
    assert rescaled(rating, low, high) == expected


@pytest.mark.parametrize("rating", [-2.1, 2.1, NAN])
def test_a_rating_off_its_scale_is_refused(rating):
    with pytest.raises(ValueError, match=r"is outside -2\.\.2"):
        rescaled(rating, -2, 2)


def test_strength_moves_away_from_neutral_along_a_line_and_stops_at_the_ends():
    """From (3, 2, 3) towards (2, 4, NaN): half way, all the way, and twice: 3 - 2 = 1, 2 + 4 = 6 clipped to 5."""
    neutral, point = (3.0, 2.0, 3.0), (2.0, 4.0, NAN)
    assert away_from(neutral, point, 0.5)[:2] == (2.5, 3.0)
    assert away_from(neutral, point, 1.0)[:2] == (2.0, 4.0)
    assert away_from(neutral, point, 2.0)[:2] == (1.0, 5.0)
    assert math.isnan(away_from(neutral, point, 2.0)[2])


def test_a_mean_is_over_those_that_know_the_dimension():
    """Valence (1 * 1 + 3 * 4) / 4 = 3.25; arousal of the second alone; dominance of none."""
    valence, arousal, dominance = mean_vad([((1.0, NAN, NAN), 1.0), ((4.0, 2.0, NAN), 3.0)])
    assert (valence, arousal) == (3.25, 2.0)
    assert math.isnan(dominance)


def test_a_category_is_the_mean_of_its_words():
    """Anger 2.529 and angry 2.394 of 9: 2.4615, on 1..5 that is 1 + 1.4615 / 2 = 1.73075."""
    assert category_vad("anger")[0] == pytest.approx(1.73075)
    assert category_vad("grief") == pytest.approx((1.4705, 2.9375, 2.3145))


def test_surprise_has_no_valence_and_nothing_else_lacks_any():
    assert math.isnan(category_vad("surprise")[0])
    for name in category_words():
        known = [not math.isnan(value) for value in category_vad(name)]
        assert known == [name != "surprise", True, True]
        assert all(1 <= value <= 5 for value in category_vad(name) if not math.isnan(value))


def test_several_categories_are_averaged_and_strength_weighs():
    neutral, joy, fear = map(category_vad, ("neutral", "joy", "fear"))
    assert felt_vad([]) == felt_vad([("joy", 0.0)]) == neutral
    assert felt_vad([("joy", 1.0)]) == pytest.approx(joy)
    assert felt_vad([("joy", 1.0), ("fear", 1.0)]) == pytest.approx(
        [(a + b) / 2 for a, b in zip(joy, fear, strict=True)]
    )
    # 1.5 of fear with .5 of joy: each moved from neutral by its strength (fear's valence stops at 1), and three of the
    # first to one of the second.
    expected = [
        (3 * max(1.0, n + 1.5 * (f - n)) + (n + 0.5 * (j - n))) / 4 for n, j, f in zip(neutral, joy, fear, strict=True)
    ]
    assert felt_vad([("fear", 1.5), ("joy", 0.5)]) == pytest.approx(expected)
    assert felt_vad([("surprise", 1.0), ("joy", 1.0)])[0] == pytest.approx(joy[0])


@pytest.mark.parametrize("category", ["sadness", "fear", "joy", "anger"])
def test_the_stronger_the_further_from_neutral(category):
    neutral = category_vad("neutral")[0]
    distances = [abs(felt_vad([(category, strength)])[0] - neutral) for strength in (0.5, 1.0, 1.5)]
    assert distances == sorted(set(distances))


def test_the_committed_numbers_are_the_published_ones():
    path = Path(os.environ.get("ATTUNE_DATA", "")) / "glasgow" / "glasgow_norms.csv"
    if not os.environ.get("ATTUNE_DATA") or not path.is_file():
        pytest.skip("needs the Glasgow Norms: set ATTUNE_DATA")
    with path.open(encoding="utf-8") as file:
        published = {row["Word"].lower(): row for row in csv.DictReader(file)}
    for words in category_words().values():
        for word, means in words.items():
            assert list(means) == [float(published[word][name]) for name in ("Valence", "Arousal", "Dominance")]


# Statistics


def utterance(vad, speaker=""):
    return Utterance(None, "words", *vad, speaker)


def test_statistics_of_a_test_part_are_counts_alone():
    test = (utterance((5.0, NAN, 5.0), "c"),)
    parts = describe(Split((utterance((1.0, 2.0, NAN), "a"), utterance((3.0, NAN, NAN), "a")), (), test))
    assert [(part.part, part.utterances, part.speakers) for part in parts] == [
        ("train", 2, 1),
        ("validation", 0, 0),
        ("test", 1, 1),
    ]
    assert parts[0].dimensions == {
        "valence": Spread(2, 2.0, 1.0),
        "arousal": Spread(1, 2.0, 0.0),
        "dominance": Spread(0, None, None),
    }
    assert parts[2].dimensions["valence"] == Spread(1, None, None)
    table = markdown([("mini", parts)]).splitlines()
    assert table[2] == "| mini | train | 2 | 1 | 2.00 ± 1.00 | 2.00 ± 0.00 (1) | no labels |"
    assert table[4] == "| mini | test | 1 | 1 | not looked at | no labels | not looked at |"


def test_the_command_describes_corpora_in_their_own_split(tmp_path):
    path = tmp_path / "train_subtask1.csv"
    rows = [f"{writer},w,t,1,False,{writer % 3 - 1},1" for writer in range(1, 21)]
    path.write_text("user_id,text,timestamp,collection_phase,is_words,valence,arousal\n" + "\n".join(rows) + "\n")
    result = CliRunner().invoke(experiments, ["corpora", "--data", f"diaries={path}", "--json"])
    assert result.exit_code == 0, result.output
    parts = json.loads(result.stdout)["diaries"]
    assert [part["utterances"] for part in parts] == [16, 2, 2]
    assert parts[2]["dimensions"]["valence"] == {"labels": 2, "mean": None, "deviation": None}
