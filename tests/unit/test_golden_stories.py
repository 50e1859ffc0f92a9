"""What the shipped weights hear in the stories: golden figures.

Run: pytest tests/unit/test_golden_stories.py     (all 240 stories: -m slow)
After the weights were changed on purpose, write the figures again, and look at the difference before it is committed:
    python -m tests.unit.test_golden_stories
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from attune_training.commands import evaluate
from attune_training.config import DIMENSIONS
from attune_training.emotion_map.anchors import read_anchors
from attune_training.evaluation.command import shipped_model
from attune_training.evaluation.stories.answering import Chooser, answer
from attune_training.evaluation.stories.command import predict_words
from attune_training.evaluation.stories.options import shipped_choice, shipped_emotion_map
from attune_training.evaluation.stories.reading import STORIES_FILE, read_stories, shipped_file
from attune_training.evaluation.stories.wholes import wholes_of_texts
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "stories.json"
EVERY = 10  # one story of ten is heard in every run of the tests
# Float32 on another CPU differs in the last digits, and a story between two emotions may change sides.
TOLERANCE = 5e-3
MOST_CHANGED = 1
MEASURE_TOLERANCE = 0.015


def golden() -> dict[str, Any]:
    assert GOLDEN.is_file(), "no golden figures; write them with `python -m tests.unit.test_golden_stories`"
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def measured(folder: Path) -> dict[str, Any]:
    """The record of `attune evaluate stories`."""
    result = CliRunner().invoke(evaluate, ["stories", "--output", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads((folder / "stories.json").read_text(encoding="utf-8"))


def figures(record: dict[str, Any]) -> dict[str, float]:
    shares = ("valence_side", "octant", "family", "emotion")
    return {
        **{name: record[name]["share"] for name in shares},
        "used": record["used"],
        "most_frequent_share": record["most_frequent_share"],
        "told_apart": record["told_apart"]["balanced_accuracy"],
        "emotion_calibration": record["emotion_calibration"],
    }


def test_some_stories_are_heard_as_they_were():
    expected = golden()["stories"][::EVERY]
    anchors = read_anchors()
    told = read_stories(shipped_file(STORIES_FILE), anchors.labels)[::EVERY]
    assert [story.id for story in told] == [row["id"] for row in expected]
    texts, chooser = [story.text for story in told], Chooser(shipped_emotion_map(), shipped_choice())
    answers = answer(chooser, wholes_of_texts(predict_words(shipped_model(), texts), texts), anchors.labels)
    np.testing.assert_allclose(answers.vad, [[row[name] for name in DIMENSIONS] for row in expected], atol=TOLERANCE)
    heard = [anchors.labels[index] for index in answers.chosen]
    changed = [(now, row["heard"]) for now, row in zip(heard, expected, strict=True) if now != row["heard"]]
    assert len(changed) <= MOST_CHANGED, changed


@pytest.mark.slow
def test_the_figures_hold(tmp_path):
    assert figures(measured(tmp_path)) == pytest.approx(golden()["figures"], abs=MEASURE_TOLERANCE)


def main() -> None:
    """Write the golden figures."""
    with TemporaryDirectory() as folder:
        record = measured(Path(folder))
    keys = ("id", "heard", *DIMENSIONS)
    stories = [
        {key: round(row[key], 4) if key in DIMENSIONS else row[key] for key in keys} for row in record["stories"]
    ]
    GOLDEN.write_text(json.dumps({"figures": figures(record), "stories": stories}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
