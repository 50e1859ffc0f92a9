"""IEMOCAP, the paper's corpus, from the folder of its original release (Busso et al. 2008).

    SessionN/dialog/EmoEvaluation/<dialog>.txt     [start - end]<tab>turn<tab>emotion<tab>[V, A, D]
    SessionN/dialog/transcriptions/<dialog>.txt    turn [start-end]: words
    SessionN/sentences/wav/<dialog>/<turn>.wav

The corpus is licensed to each user by its owner (USC SAIL).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attune_training.data.rows import CorpusError, Problem, Row

__all__ = ["EMOTIONS", "TurnName", "find_turn_name", "read_rows"]

EMOTIONS = {
    "neu": "neutral",
    "ang": "angry",
    "hap": "happy",
    "sad": "sad",
    "exc": "excited",
    "fru": "frustrated",
    "fea": "fearful",
    "sur": "surprised",
    "dis": "disgust",
    "oth": "other",
    "xxx": "",  # The annotators did not agree.
}
"""Names of the release's emotion codes; RAVDESS's names where both corpora have the emotion."""

_TURN_NAME = re.compile(r"(?P<turn>Ses(?P<session>\d{2})[FM]_\w+?_(?P<speaker>[FM])(?:XX)?\d+)(?!\w)")
_LABEL_LINE = re.compile(
    r"\[[\d.]+ - [\d.]+\]\t(?P<turn>\S+)\t(?P<emotion>\S+)\t"
    r"\[(?P<valence>[^,\]]*),(?P<arousal>[^,\]]*),(?P<dominance>[^,\]]*)\]"
)
_WORDS_LINE = re.compile(r"(?P<turn>Ses\w+) \[[^\]]*\]:(?P<words>.*)")


@dataclass(frozen=True, slots=True)
class TurnName:
    """Fields of a turn's name: `Ses01F_impro01_M003` is spoken by Ses01M in session 1.

    The first letter denotes the speaker with the motion-capture markers, not the speaker of the turn.
    """

    turn: str
    speaker: str
    session: str


def find_turn_name(text: str) -> TurnName | None:
    """Return the turn named by `text` (a bare name, a file name or a path); None if there is none."""
    match = _TURN_NAME.search(text)
    if match is None:
        return None
    session = match["session"]
    return TurnName(match["turn"], f"Ses{session}{match['speaker']}", str(int(session)))


def read_rows(folder: Path) -> Iterator[Row | Problem]:
    """Yield the annotated turns of all sessions, in order; lines are those of the EmoEvaluation files.

    Raises:
        CorpusError: the folder is not that of the release.
    """
    sheets = sorted(
        path for path in folder.glob("Session[0-9]*/dialog/EmoEvaluation/*.txt") if not path.name.startswith(".")
    )
    if not sheets:
        raise CorpusError(
            f"{folder} is not the folder of IEMOCAP's release: it should hold Session1 to Session5, each with "
            "dialog/EmoEvaluation/*.txt, dialog/transcriptions/*.txt and sentences/wav"
        )
    for sheet in sheets:
        yield from _dialog_rows(folder, sheet)


def _dialog_rows(folder: Path, sheet: Path) -> Iterator[Row | Problem]:
    session = sheet.parents[2]
    words = _transcripts(session / "dialog" / "transcriptions" / sheet.name)
    recordings = session / "sentences" / "wav" / sheet.stem
    source = str(sheet.relative_to(folder))
    for number, line in enumerate(_lines(sheet), start=1):
        # The other lines are the header and the single annotators' ratings.
        if line.startswith("["):
            yield _turn_row(source, number, line, words, recordings)


def _turn_row(source: str, number: int, line: str, words: dict[str, str], recordings: Path) -> Row | Problem:
    match = _LABEL_LINE.match(line)
    if match is None:
        return Problem(source, number, "not of the form [start - end]<tab>turn<tab>emotion<tab>[V, A, D]")
    name = find_turn_name(match["turn"])
    if name is None:
        return Problem(source, number, f"{match['turn']!r} is not the name of a turn, such as Ses01F_impro01_M003")
    return Row(
        source,
        number,
        recordings / f"{name.turn}.wav",
        words.get(name.turn, ""),
        match["valence"].strip(),
        match["arousal"].strip(),
        match["dominance"].strip(),
        name.speaker,
        name.session,
        EMOTIONS.get(match["emotion"], match["emotion"]),
    )


def _transcripts(path: Path) -> dict[str, str]:
    """Return the transcript of each turn; empty where there is no such file, so that each of its turns is a problem."""
    if not path.is_file():
        return {}
    matches = map(_WORDS_LINE.match, _lines(path))
    return {match["turn"]: match["words"].strip() for match in matches if match}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
