"""Options that the commands about stories share, and how they write a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from attune_training.evaluation.command import shipped_model
from attune_training.providers import by_vad

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

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def shipped_emotion_map() -> Path:
    """Return the folder of the emotion map that ships."""
    return shipped_model().parent / "emotion_map"


def shipped_choice() -> Path:
    """Return the folder of the choice of an emotion that ships."""
    return shipped_model().parent / "emotion_choice"


class _Choice(click.ParamType):
    """The folder of a fitted choice; the name of the paper's way is None."""

    name = "choice"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the form of the value."""
        return f"FOLDER|{by_vad()}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | None:
        """Return the folder; fails if there is none."""
        return None if value == by_vad() else Path(_FOLDER.convert(value, param, ctx))


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
    type=_Choice(),
    default=shipped_choice,
    help="How an emotion is chosen: by VAD and words, as fitted by `attune train emotion-choice`, or by VAD alone, as "
    "in the paper.  [default: the shipped one]",
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
