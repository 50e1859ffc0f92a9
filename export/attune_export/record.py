"""The record of a profile's export, in the repository's root: which parts belong together.

It is marked unfinished for as long as parts are replaced, so that `attune_ensemble.serving.launcher.repository` can
refuse what a broken-off export left.
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
    """Where the record of a profile's export lies; a server that looks for models reads folders only."""
    return repository / exported_name(EXPORT_RECORD, profile)


class ExportRecord:
    """What belongs together in one profile: stamps by model, and the labels that the served code has to agree with."""

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
        """Say why the parts may be a mixture: before the first of them changes."""
        if self._unfinished != reason:
            self._write(reason)
        self._unfinished = reason

    def finish(self) -> None:
        """Say that the parts are those of one export."""
        self._write("")

    def _write(self, unfinished: str) -> None:
        content = {"unfinished": unfinished, "command": self._command, "labels": self._labels, "parts": self._parts}
        write_json(self._path, content)
