"""Options that the commands about stories share, and how they write a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from attune_training.evaluation.command import shipped_model

__all__ = [
    "choice_option",
    "data_option",
    "emotion_map_option",
    "json_option",
    "model_option",
    "output_option",
    "shipped_choice",
    "shipped_emotion_map",
    "speech_option",
    "threads_option",
    "write_record",
]

BY_VAD = "vad"

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def shipped_emotion_map() -> Path:
    """Return the folder of the emotion map that ships."""
    return shipped_model().parent / "emotion_map"


def shipped_choice() -> Path:
    """Return the folder of the choice of an emotion that ships."""
    return shipped_model().parent / "emotion_choice"


def _choice(context: click.Context, option: click.Parameter, value: str | None) -> Path | None:
    if value == BY_VAD:
        return None
    folder = Path(value) if value else shipped_choice()
    if not folder.is_dir():
        raise click.BadParameter(f"{folder} is not a folder", context, option)
    return folder


model_option = click.option(
    "--model",
    type=_FOLDER,
    default=shipped_model,
    help="A saved model of all dimensions, or a folder with valence/ and arousal_dominance/.  "
    "[default: the one that ships]",
)
emotion_map_option = click.option(
    "--emotion-map", type=_FOLDER, default=shipped_emotion_map, help="[default: the one that ships]"
)
choice_option = click.option(
    "--emotion-choice",
    "choice",
    metavar=f"FOLDER|{BY_VAD}",
    callback=_choice,
    help=f"How VAD and words choose an emotion; {BY_VAD}: by VAD alone, as in the paper.  [default: the shipped one]",
)
output_option = click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for scores and answers (JSON, picture)."
)
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def data_option(columns: str) -> Any:
    """Return the option `--data FILE`; `columns` are those of the file."""
    return click.option(
        "--data",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"CSV: {columns}.  [default: the one that ships]",
    )


def speech_option(*, required: bool = False) -> Any:
    """Return the option `--speech FOLDER`."""
    text = "Folder in which `attune synthesise` read the texts aloud: what is heard in it is measured."
    return click.option("--speech", type=_FOLDER, required=required, help=text)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, and the folder for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
