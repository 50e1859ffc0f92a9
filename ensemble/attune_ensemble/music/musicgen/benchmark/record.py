"""What has been measured, kept as it comes: a run that is cut short loses nothing that it had."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attune_client.protocol.errors import AttuneError
from attune_ensemble.music.musicgen.benchmark.rows import Measured

__all__ = ["Record", "RecordError"]


class RecordError(AttuneError):
    """A file holds no measurements."""


@dataclass(slots=True)
class Record:
    """Rows of one run on one machine; `bandwidth` in bytes per second. With `file` each is a line of JSON at once."""

    title: str
    machine: str
    bandwidth: float
    file: Path | None = None
    rows: list[Measured] = field(default_factory=list)
    parts: list[Measured] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def begun(cls, title: str, machine: str, bandwidth: float, file: Path | None) -> Record:
        """An empty record; what was in `file` goes."""
        record = cls(title, machine, bandwidth, file)
        if file is not None:
            file.write_text("")
        record._write("run", {"title": title, "machine": machine, "bandwidth": bandwidth})
        return record

    @classmethod
    def read(cls, file: Path) -> Record:
        """What a run wrote, whether it came to its end or not.

        Raises:
            RecordError: there is no such run in the file.
        """
        try:
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            record = cls(**lines[0]["run"])
            for line in lines[1:]:
                ((kind, value),) = line.items()
                if kind == "failure":
                    record.failures.append(value)
                else:
                    value["first_audio_s"] = tuple(value["first_audio_s"])
                    {"row": record.rows, "part": record.parts}[kind].append(Measured(**value))
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            raise RecordError(f"{file} holds no measurements: {error}") from error
        return record

    def add_row(self, row: Measured) -> None:
        """Of the decoder."""
        self.rows.append(row)
        self._write("row", asdict(row))

    def add_part(self, row: Measured) -> None:
        """Of what stands beside it."""
        self.parts.append(row)
        self._write("part", asdict(row))

    def add_failure(self, failure: str) -> None:
        """What could not be measured, and why."""
        self.failures.append(failure)
        self._write("failure", failure)

    def _write(self, kind: str, value: Any) -> None:
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps({kind: value}) + "\n")
