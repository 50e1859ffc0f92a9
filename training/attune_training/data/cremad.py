"""CREMA-D: speech acted by 91 people of many ages and origins (Cao et al. 2014; ODbL 1.0, contents DbCL 1.0).

CREMA-D has no valence, arousal or dominance. The targets here are DERIVED from what about ten listeners heard in the
voice alone, and how strongly (0..100); every figure that rests on them has to say so. The rule: each listener's vote is
a point, and the target is their mean. The point of a vote for neutral is neutral's anchor (`ACTED_VAD`); that of
a vote for an emotion lies on the line from there through the emotion's anchor, further out the more strongly those who
voted so heard it on average: at the anchor itself for a level of 55, which is the mean over the training actors' clips.
So a clip that half of the listeners hear as sad and half as neutral lies half way between. What the actor was asked for
is the category, and does not enter the target.

Actors 1061 and above are the test part. Validation are those of the others whose number five divides: twelve, six women
and six men, 22 to 62 years old. The statistics of a vote were laid down on the training and validation actors alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from attune_training.data.rows import CorpusError, Problem, Row
from attune_training.data.tables import table_rows
from attune_training.data.targets import ACTED_VAD, VAD, away_from, mean_vad

__all__ = ["FAULTY", "FIRST_TEST_ACTOR", "NOTE", "SENTENCES", "ClipName", "Heard", "heard_vad", "parse_clip_name"]
__all__ += ["part_of_actor", "read_rows"]

FAULTY = frozenset({"1076_MTI_SAD_XX"})
"""Clips that are not fit for use in the release itself."""

NOTE = (
    "targets derived from listeners' votes on the voice and its heard intensity; "
    f"left out, faulty in the release: {', '.join(sorted(FAULTY))}"
)

FIRST_TEST_ACTOR = 1061

SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}

_CATEGORIES = {"ANG": "angry", "DIS": "disgust", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
_LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": ""}

_TABLE = "tabulatedVotes.csv"
_VOTES = {"A": "angry", "D": "disgust", "F": "fearful", "H": "happy", "N": "neutral", "S": "sad"}
_LEVEL_COLUMNS = {
    "A": "meanAngerResp",
    "D": "meanDisgustResp",
    "F": "meanFearResp",
    "H": "meanHappyResp",
    "N": "meanNeutralResp",
    "S": "meanSadResp",
}
_VOICE_ALONE = "1"  # The first digit of a row's number; 2 is the face alone, 3 both.
_LEVEL_AT_ANCHOR = 55.0
_SUFFIXES = (".opus", ".ogg", ".wav", ".flac")
_NAME = re.compile(r"(1\d{3})_([A-Z]{3})_([A-Z]{3})_([A-Z]{2})")


@dataclass(frozen=True, slots=True)
class ClipName:
    """What a clip's file name says: who, which sentence, which category was asked for, and how strong ("" unsaid)."""

    actor: int
    sentence: str
    category: str
    level: str


@dataclass(frozen=True, slots=True)
class Heard:
    """How many listeners heard a category, and how strongly on average, 0..100."""

    votes: int
    level: float


def parse_clip_name(stem: str) -> ClipName:
    """Read a file name such as `1001_IEO_ANG_HI` (without its suffix).

    Raises:
        ValueError: the name is not one of CREMA-D's clips.
    """
    match = _NAME.fullmatch(stem)
    if match and match[2] in SENTENCES and match[3] in _CATEGORIES and match[4] in _LEVELS:
        return ClipName(int(match[1]), match[2], _CATEGORIES[match[3]], _LEVELS[match[4]])
    raise ValueError(f"{stem!r} is not the name of a CREMA-D clip, such as 1001_IEO_ANG_HI")


def part_of_actor(actor: int) -> str:
    """Return the part of an actor; 1061 and above are the test part, and used for nothing else."""
    if actor >= FIRST_TEST_ACTOR:
        return "test"
    return "train" if actor % 5 else "validation"


def heard_vad(heard: Mapping[str, Heard]) -> VAD:
    """Return the target of a clip by the rule of this module; `heard` is by category, with a vote at least."""
    return mean_vad((_vote(category, item.level), item.votes) for category, item in heard.items())


def _vote(category: str, level: float) -> VAD:
    neutral = ACTED_VAD["neutral"]
    return away_from(neutral, ACTED_VAD[category], level / _LEVEL_AT_ANCHOR)


def read_rows(folder: Path) -> Iterator[Row | Problem]:
    """Yield the clips that listeners voted on, in the table's order; lines are those of tabulatedVotes.csv.

    The recordings may lie in any sub-folder, as Ogg/Opus, WAV or FLAC. A clip that is missing is a bad row; an actor
    of whom there is no clip at all is not part of this copy. A recording without votes is a bad row.

    Raises:
        CorpusError: the folder holds no table of votes or no clip.
    """
    table = next(iter(sorted(folder.rglob(_TABLE))), None)
    clips = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES}
    clips = {stem: path for stem, path in clips.items() if not stem.startswith(".")}
    if table is None or not clips:
        raise CorpusError(
            f"{folder} is not CREMA-D: a folder with {_TABLE} and its clips is expected, such as 1001_IEO_ANG_HI.wav"
        )
    actors = {stem[:4] for stem in clips}
    columns = {"", "fileName", *_VOTES, *_LEVEL_COLUMNS.values()}
    voted = set()
    for line, values in table_rows(table, columns, "CREMA-D's table of votes"):
        name = values["fileName"]
        if values[""].startswith(_VOICE_ALONE) and name[:4] in actors and name not in FAULTY:
            voted.add(name)
            yield _row(table.name, line, values, clips.get(name))
    for stem in sorted(set(clips) - voted - FAULTY):
        yield Problem(str(clips[stem].relative_to(folder)), None, f"{_TABLE} has no votes on the voice of {stem!r}")


def _row(source: str, line: int, values: dict[str, str], clip: Path | None) -> Row | Problem:
    try:
        name = parse_clip_name(values["fileName"])
        heard = _heard(values)
    except ValueError as error:
        return Problem(source, line, str(error))
    if clip is None:
        return Problem(source, line, f"there is no recording of {values['fileName']}")
    valence, arousal, dominance = heard_vad(heard)
    return Row(
        source,
        line,
        clip,
        SENTENCES[name.sentence],
        valence,
        arousal,
        dominance,
        speaker=f"actor-{name.actor}",
        category=name.category,
        split=part_of_actor(name.actor),
        agreement=_agreement(name.category, heard),
    )


def _agreement(category: str, heard: Mapping[str, Heard]) -> float:
    """Return the share of the votes that are for the category that was asked for."""
    votes = sum(item.votes for item in heard.values())
    return heard[category].votes / votes if category in heard else 0.0


def _heard(values: Mapping[str, str]) -> dict[str, Heard]:
    """Return what listeners heard, by category.

    Raises:
        ValueError: a number is none, a level is outside 0..100, or nobody voted.
    """
    heard = {}
    for letter, category in _VOTES.items():
        votes = values[letter]
        if not votes.isdecimal():
            raise ValueError(f"the votes {votes!r} for {category} are not a number")
        if int(votes):
            heard[category] = Heard(int(votes), _level(category, values[_LEVEL_COLUMNS[letter]]))
    if not heard:
        raise ValueError("nobody voted on the voice")
    return heard


def _level(category: str, raw: str) -> float:
    try:
        level = float(raw)
    except ValueError as error:
        raise ValueError(f"the level {raw!r} of {category} is not a number") from error
    if not 0 <= level <= 100:
        raise ValueError(f"the level {level:g} of {category} is outside 0..100")
    return level
