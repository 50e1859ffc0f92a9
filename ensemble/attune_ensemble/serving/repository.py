"""Check that a model repository is complete for a profile, before a server is started on it.

python -m attune_ensemble.serving.repository model_repository gpu  # in front of a tritonserver started by hand
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from attune_client.protocol.errors import AttuneError
from attune_client.protocol.profiles import (
    EMBEDDED,
    ENGINE_FILE,
    ENGINE_SCRIPT,
    EXPORT_RECORD,
    INDEX_DIR,
    MODEL_FILE,
    Profile,
    export_command,
    exported_name,
    profile_named,
)
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.serving.configuration import BrokenRepository, read_config

__all__ = ["BrokenRepository", "check_repository"]

_DEFAULT_FILES = {"python": "model.py", "onnxruntime": MODEL_FILE, "tensorrt": ENGINE_FILE}


def check_repository(repository: Path, models: tuple[str, ...] = (), profile: Profile = EMBEDDED) -> None:
    """Check that every model, or each of `models`, has the files of one finished export for `profile`.

    Each must have the file that its configuration refers to. If the repository was exported by `attune export`, its
    record of the profile must show that the parts are of one export. A repository without any stamps was assembled
    otherwise.

    Raises:
        BrokenRepository: no such folder, no models in it, a config that cannot be read, files that are missing, or
            parts of different exports. The message names the command that corrects it.
    """
    found = sorted(repository.glob("*/config.pbtxt"))
    if not found:
        raise BrokenRepository(f"there is no model repository at {repository.resolve()}: no */config.pbtxt in it")
    wanted = [config.parent for config in found if not models or config.parent.name in models]
    missing = [path for path in (_model_file(model, profile) for model in wanted) if not path.exists()]
    if graphs := [path for path in missing if path.suffix != ".plan"]:
        names = "\n".join(f"  {path}" for path in graphs)
        again = export_command(profile)
        raise BrokenRepository(f"the model repository is not complete: run `{again}`, which makes\n{names}")
    if any(repository.glob("*/1/attune-export*.json")):
        _check_record(repository, models, profile)
    if missing:
        scripts = "\n".join(f"  {path.parent / ENGINE_SCRIPT}" for path in missing)
        raise BrokenRepository(
            f"engines have to be built, in NVIDIA's image on the GPU that serves them: run\n{scripts}"
        )


def _model_file(model: Path, profile: Profile) -> Path:
    """Return the required file of the version folder; for an ensemble, which has none, the folder itself."""
    config = read_config(model, profile)
    name = config.default_model_filename or _DEFAULT_FILES.get(config.backend, "")
    return model / "1" / name


def _check_record(repository: Path, models: tuple[str, ...], profile: Profile) -> None:
    """Check that the version folders contain exactly the files of the profile's last export."""
    again = export_command(profile)
    record = _read(repository / exported_name(EXPORT_RECORD, profile))
    if not {"command", "unfinished", "labels", "parts"} <= record.keys():
        raise BrokenRepository(f"nothing has been exported for the {profile} profile: run `{again}`")
    command = record["command"]
    if reason := record["unfinished"]:
        raise BrokenRepository(
            f"the last export for the {profile} profile did not finish ({reason}): run `{command}` again"
        )
    if record["labels"] != [emotion.label for emotion in load_emotions()]:
        raise BrokenRepository(
            f"the models were exported for other emotions than the knowledge base has: run `{again}`"
        )
    for model, part in record["parts"].items():
        if not models or model in models:
            _check_part(repository, model, part, f"run `{command}` again")


def _check_part(repository: Path, model: str, part: dict[str, str], remedy: str) -> None:
    stamp = _read(repository / part["stamp"])
    if stamp.get("fingerprint") != part["fingerprint"]:
        raise BrokenRepository(f"{model} was replaced by another export since that of this profile: {remedy}")
    for name, size in stamp["files"].items():
        path = repository / model / "1" / name
        if not path.is_file():
            raise BrokenRepository(f"{path} is missing: {remedy}")
        # A database may change its files when it is opened.
        if path.stat().st_size != size and INDEX_DIR not in Path(name).parts:
            raise BrokenRepository(f"{path} is damaged: it has {path.stat().st_size} of {size} bytes: {remedy}")


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


if __name__ == "__main__":
    try:
        check_repository(Path(sys.argv[1]), profile=profile_named(sys.argv[2]))
    except AttuneError as error:
        sys.exit(f"refused: {error}")
