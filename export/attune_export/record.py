"""The record of a profile's export, in the repository's root: the parts that belong together.

It is marked as unfinished while parts are being replaced, so that `attune_ensemble.serving.repository` can
refuse the result of an interrupted export.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attune_client.protocol.profiles import EXPORT_RECORD, Profile, exported_name
from attune_export.parts import Part
from attune_export.placing import stamp_file
from attune_weights.files import write_json

__all__ = ["ExportRecord", "record_file"]


def record_file(repository: Path, profile: Profile) -> Path:
    """Return the path of a profile's record. The server ignores it: it looks for folders only."""
    return repository / exported_name(EXPORT_RECORD, profile)


class ExportRecord:
    """The parts of one profile's export: stamps by model, and the emotion labels that the served code must have."""

    def __init__(self, repository: Path, profile: Profile, parts: Sequence[Part], command: str) -> None:
        from attune_ensemble.prompting.knowledge import load_emotions

        self._labels = [emotion.label for emotion in load_emotions()]
        self._path = record_file(repository, profile)
        self._parts = {
            part.model: {
                "stamp": str(stamp_file(repository, part, profile).relative_to(repository)),
                "fingerprint": part.fingerprint(),
            }
            for part in parts
        }
        self._command, self._unfinished = command, ""

    def mark_unfinished(self, reason: str = "it broke off") -> None:
        """Mark the export as unfinished, with the reason; call it before the first part is replaced."""
        if self._unfinished != reason:
            self._write(reason)
        self._unfinished = reason

    def leave_out(self, model: str) -> None:
        """Leave out a part that turned out to be none."""
        self._parts.pop(model, None)

    def finish(self) -> None:
        """Mark the export as finished."""
        self._write("")

    def _write(self, unfinished: str) -> None:
        content = {"unfinished": unfinished, "command": self._command, "labels": self._labels, "parts": self._parts}
        write_json(self._path, content)
