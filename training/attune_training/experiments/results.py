"""A finished table: every row on every split, and its caveats."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attune_training.experiments.paper import TableName, checks, paper
from attune_training.experiments.plan import SplitChoice
from attune_training.experiments.runs import Cell, Failed, Measured, Subject
from attune_training.fitting.settings import Recipe

__all__ = ["TableResult", "to_json"]


@dataclass(frozen=True, slots=True)
class TableResult:
    """`cells` by row and then by split, in the order of `splits`."""

    table: TableName
    subject: Subject
    recipe: Recipe
    splits: tuple[SplitChoice, ...]
    cells: dict[str, tuple[Cell, ...]]

    @property
    def failures(self) -> list[tuple[str, SplitChoice, Failed]]:
        """The rows without a result."""
        return [
            (name, split, cell)
            for name, cells in self.cells.items()
            for split, cell in zip(self.splits, cells, strict=True)
            if isinstance(cell, Failed)
        ]

    @property
    def git_revisions(self) -> list[str]:
        """The revisions of the sources that the runs were made with; several if they were made at different times."""
        folders = [
            folder
            for cells in self.cells.values()
            for cell in cells
            if isinstance(cell, Measured)
            for folder in cell.folders
        ]
        records = (json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in folders)
        return sorted({record["git"] or "unknown" for record in records})

    @property
    def notes(self) -> list[str]:
        """Caveats that follow from the corpus and the choice of splits."""
        corpus = self.subject.corpus
        notes = [f"{corpus.name}: {corpus.note}."] if corpus.note else []
        if "iemocap" not in corpus.name.lower():
            notes.append(f"The paper's figures are of IEMOCAP; on {corpus.name} they are a landmark, not a target.")
        if corpus.problems:
            notes.append(f"{len(corpus.problems)} bad rows of the corpus were left out.")
        if not any(split.is_speaker_independent for split in self.splits):
            notes.append(
                "No speaker-independent split was asked for: nothing here says how the models do on new voices."
            )
        return notes


def command_line() -> str:
    """Return the command that is running."""
    return shlex.join(["attune", *sys.argv[1:]])


def to_json(result: TableResult, hardware: str) -> dict[str, Any]:
    """Return plain data, with the paper's own figures in each row."""
    corpus, figures = result.subject.corpus, paper()
    return {
        "table": result.table,
        "corpus": {
            "name": corpus.name,
            "digest": corpus.digest,
            "utterances": len(corpus.utterances),
            "left_out": len(corpus.problems),
        },
        "notes": result.notes,
        "seed": result.recipe.seed,
        "epochs": result.recipe.optimisation.epochs,
        "towers": result.recipe.model.towers,
        "splits": [
            {"split": split.text, "label": split.label, "speaker_independent": split.is_speaker_independent}
            for split in result.splits
        ],
        "rows": [
            {
                "row": name,
                "paper": asdict(row) | {"average_of_columns": row.average_of_columns},
                "results": _cells(result.splits, result.cells[name]),
            }
            for name, row in figures.tables[result.table].rows.items()
        ],
        "paper_checks": [asdict(check) | {"text": str(check)} for check in checks(figures)],
        "paper_storage": asdict(figures.storage),
        "hardware": hardware,
        "git": result.git_revisions,
        "command": command_line(),
    }


def _cells(splits: Sequence[SplitChoice], cells: Sequence[Cell]) -> dict[str, Mapping[str, Any]]:
    return {split.text: _cell(cell) for split, cell in zip(splits, cells, strict=True)}


def _cell(cell: Cell) -> dict[str, Any]:
    if isinstance(cell, Failed):
        return {"failed": cell.reason}
    return asdict(cell) | {"mean_loss": cell.mean_loss, "folders": [str(folder) for folder in cell.folders]}
