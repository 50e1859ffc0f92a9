"""IEMOCAP, or a corpus like it, from a copy in the format of Hugging Face's `datasets`.

The copy is a folder written by `save_to_disk`, a folder or file of Parquet, or the name of a data set on the hub.
Copies name their columns differently; the names here are those of copies in use, such as `AbstractTTS/IEMOCAP`
(EmoVal, EmoAct, EmoDom, transcription), `Ar4ikov/iemocap_audio_text` (activation, titre, to_translate) and
`cairocode/IEMOCAP_NLP` (domination, utterance_id).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune_training.data.audio import AudioSource, EmbeddedAudio
from attune_training.data.iemocap import EMOTIONS, TurnName, find_turn_name
from attune_training.data.rows import CorpusError, Problem, Row, cell_text, split_name

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["COLUMN_NAMES", "read_rows"]

COLUMN_NAMES = {
    "audio": ("audio",),
    "transcript": ("transcript", "transcription", "text", "sentence", "to_translate"),
    "valence": ("valence", "EmoVal", "val"),
    "arousal": ("arousal", "activation", "EmoAct", "act"),
    "dominance": ("dominance", "domination", "EmoDom", "dom"),
    "turn": ("file", "path", "file_name", "filename", "utterance_id", "turn", "titre", "name", "id"),
    "speaker": ("speaker", "speaker_id", "speakerID"),
    "session": ("session", "session_id"),
    "category": ("category", "major_emotion", "emotion", "label"),
}
"""Possible names of each column, the preferred one first, case-insensitive."""

_REQUIRED = ("audio", "transcript", "valence", "arousal", "dominance")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SESSION = re.compile(r"(?:session|ses)?[ _-]?0*(\d+)", re.IGNORECASE)


def read_rows(path: Path) -> Iterator[Row | Problem]:
    """Yield the rows of every split; rows are counted from 1 in each.

    The speaker and the session are read from columns of these names, or else from the name of the IEMOCAP turn.

    Raises:
        CorpusError: the data set cannot be found or read, or lacks a required column.
    """
    for split, dataset in _load(path).items():
        yield from _split_rows(path, split, dataset)


def _load(path: Path) -> dict[str, Dataset]:
    """Return the data set's splits by name; one saved without splits has the empty name."""
    # The library takes seconds to import.
    import datasets

    name = path.as_posix()
    if not path.exists() and not _HUB_NAME.fullmatch(name):
        raise CorpusError(
            f"{path} does not exist; a folder written by save_to_disk, Parquet files, or a hub name such as "
            "AbstractTTS/IEMOCAP is expected"
        )
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(name)
        elif path.is_file():
            loaded = datasets.load_dataset("parquet", data_files=name)
        else:
            loaded = datasets.load_dataset(name)
    # The library raises these for a path that is not a data set, or an unreachable hub.
    except (datasets.exceptions.DatasetsError, OSError, ValueError, ImportError) as error:
        raise CorpusError(f"{path} cannot be read as a data set: {error}") from error
    return dict(loaded) if isinstance(loaded, dict) else {"": loaded}


def _split_rows(path: Path, split: str, dataset: Dataset) -> Iterator[Row | Problem]:
    columns = _match_columns(path, dataset)
    audio = _undecoded(dataset, columns["audio"])
    # Rows are small without the audio; categories are read as their names.
    labels = dataset.select_columns([column for part, column in columns.items() if part != "audio"])
    source = f"{path.name}[{split}]" if split else path.name
    for index, values in enumerate(labels):
        row = {part: values[column] for part, column in columns.items() if part != "audio"}
        if "category" in columns:
            row["category"] = _category(dataset.features[columns["category"]], row["category"])
        yield _row(path, source, split, index, row, audio)


def _row(path: Path, source: str, split: str, index: int, values: Mapping[str, Any], audio: Dataset) -> Row | Problem:
    number = index + 1
    encoded = next(iter(audio[index].values())) or {}
    if encoded.get("bytes") is None and not encoded.get("path"):
        return Problem(source, number, "there is no audio")
    turn = _turn_name(values, encoded)
    return Row(
        source,
        number,
        _audio_source(path, f"{source}:{number}", encoded, partial(_read_bytes, audio, index)),
        cell_text(values["transcript"]),
        values["valence"],
        values["arousal"],
        values["dominance"],
        speaker=cell_text(values.get("speaker")) or (turn.speaker if turn else ""),
        session=_session(cell_text(values.get("session")), turn, split),
        category=values.get("category", ""),
        split=split_name(split),
    )


def _match_columns(path: Path, dataset: Dataset) -> dict[str, str]:
    """Return the data set's column for each field of a row that it has."""
    found = {column.lower(): column for column in dataset.column_names}
    columns = {}
    for part, names in COLUMN_NAMES.items():
        if present := [found[name.lower()] for name in names if name.lower() in found]:
            columns[part] = present[0]
    missing = [part for part in _REQUIRED if part not in columns]
    if missing:
        wanted = "; ".join(f"{part} (as {', '.join(COLUMN_NAMES[part])})" for part in missing)
        raise CorpusError(f"{path} has the columns {', '.join(dataset.column_names)}; wanted as well: {wanted}")
    return columns


def _undecoded(dataset: Dataset, column: str) -> Dataset:
    """Return the audio column alone, undecoded as bytes or paths, so that the library needs no decoder."""
    import datasets

    feature = dataset.features[column]
    is_file = isinstance(feature, datasets.Value) and feature.dtype.removeprefix("large_") in ("binary", "string")
    has_file = isinstance(feature, dict) and bool({"bytes", "path"} & set(feature))
    if not (isinstance(feature, datasets.Audio) or is_file or has_file):
        raise CorpusError(f"the column {column} holds no encoded audio files, neither as bytes nor as paths: {feature}")
    return dataset.select_columns([column]).cast_column(column, datasets.Audio(decode=False))


def _category(feature: object, value: object) -> str:
    """Return the name of the emotion: class labels are stored as numbers, IEMOCAP's own as three-letter codes."""
    if value is None:
        return ""
    name = feature.int2str(value) if hasattr(feature, "int2str") else str(value)
    return EMOTIONS.get(name.lower(), name)


def _read_bytes(audio: Dataset, index: int) -> bytes:
    encoded: bytes = next(iter(audio[index].values()))["bytes"]
    return encoded


def _audio_source(folder: Path, name: str, encoded: Mapping[str, Any], load: Callable[[], bytes]) -> AudioSource:
    if encoded.get("bytes") is None:
        return folder / encoded["path"]
    return EmbeddedAudio(Path(encoded.get("path") or name).name, load)


def _turn_name(values: Mapping[str, Any], encoded: Mapping[str, Any]) -> TurnName | None:
    names = (find_turn_name(cell_text(name)) for name in (values.get("turn"), encoded.get("path")))
    return next((name for name in names if name), None)


def _session(column: str, turn: TurnName | None, split: str) -> str:
    """Return the session's number; some copies store each session as a split."""
    for text in (column, "" if turn is None else turn.session, split):
        if match := _SESSION.fullmatch(text):
            return match[1]
    return column
