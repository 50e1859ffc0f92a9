"""Placing one part in its model's version folder.

A part has a fingerprint of everything that determines it (weights, artifacts, code, versions), and is built only if the
fingerprint has changed. It is built in a temporary folder and moved into place when it is complete. A part that exists
for another profile with the same fingerprint is linked instead.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attune_client.protocol import ModelSpec
from attune_client.protocol.profiles import (
    CUT_FILE,
    EMBEDDED,
    ENGINE_FILE,
    ENGINE_SCRIPT,
    EXPORT_RECORD,
    INDEX_DIR,
    MODEL_FILE,
    PROFILES,
    Profile,
    exported_name,
    plain_name,
)
from attune_export.cut import read_states, specs_at
from attune_export.digests import files_below
from attune_export.errors import ExportError
from attune_export.parts import VERSION_DIR, Part
from attune_weights.files import sha256_of, write_json

__all__ = ["Placed", "is_at_hand", "place", "stamp_file", "version_folder"]

_BUILDING = ".building"


@dataclass(frozen=True, slots=True)
class Placed:
    """One finished part; `seconds` is None if it was up to date."""

    model: str
    size_bytes: int
    seconds: float | None
    max_deviation: float | None


def is_at_hand(repository: Path, part: Part, profile: Profile) -> bool:
    """Return whether the part exists already, for this profile or for another one."""
    return _is_placed(repository, part, profile) or _twin(repository, part, profile) is not None


def place(
    repository: Path,
    part: Part,
    *,
    profile: Profile = EMBEDDED,
    force: bool = False,
    before_change: Callable[[], None] = lambda: None,
) -> Placed:
    """Build one part unless it is up to date; an interrupted build changes nothing.

    `before_change` is called after the build, before existing files are replaced.

    Raises:
        ExportError: the repository has no such model, or the build failed.
    """
    folder = version_folder(repository, part)
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / _BUILDING, ignore_errors=True)  # left by an export that was killed
    if force or not _is_placed(repository, part, profile):
        done = _build(repository, part, profile, force, before_change)
    else:
        stamp = _read_stamp(stamp_file(repository, part, profile))
        done = Placed(part.model, sum(stamp["files"].values()), None, stamp["max_deviation"])
    if part.engine is not None:
        _renew_engine_script(folder, part.engine, profile)
    return done


def version_folder(repository: Path, part: Part) -> Path:
    """Return the version folder of the part's model.

    Raises:
        ExportError: the repository has no such model.
    """
    if not (repository / part.model / "config.pbtxt").is_file():
        raise ExportError(
            f"{repository} is not Attune's model repository: it has no {part.model}/config.pbtxt "
            f"(run this in the project's folder, or write one with `python -m attune_export.repository_config`)"
        )
    return repository / part.model / VERSION_DIR


def stamp_file(repository: Path, part: Part, profile: Profile) -> Path:
    """Return the path of the part's stamp, which lists what it was made from and its files."""
    return repository / part.model / VERSION_DIR / part.name(EXPORT_RECORD, profile)


def _read_stamp(file: Path) -> dict[str, Any]:
    """Return the content of a stamp; empty if there is no readable one."""
    try:
        stamp = json.loads(file.read_text(encoding="utf-8"))
        return stamp if {"fingerprint", "files", "max_deviation"} <= stamp.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_placed(repository: Path, part: Part, profile: Profile) -> bool:
    file = stamp_file(repository, part, profile)
    stamp = _read_stamp(file)
    return stamp.get("fingerprint") == part.fingerprint() and all(
        _is_whole(file.parent, name, size) for name, size in stamp["files"].items()
    )


def _is_whole(folder: Path, name: str, size: int) -> bool:
    file = folder / name
    # A database may change its files when it is opened, so only their presence is checked.
    return file.is_file() and (INDEX_DIR in Path(name).parts or file.stat().st_size == size)


def _build(repository: Path, part: Part, profile: Profile, force: bool, before_change: Callable[[], None]) -> Placed:
    started = time.monotonic()
    folder = version_folder(repository, part)
    building = folder / _BUILDING
    building.mkdir()
    try:
        twin = None if force else _twin(repository, part, profile)
        deviation = _link(repository, part, twin, building) if twin else part.build(building)
        before_change()
        sizes = _move(part, building, folder, profile)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    stamp = {"fingerprint": part.fingerprint(), "files": sizes, "max_deviation": deviation, "made_from": part.made_from}
    write_json(stamp_file(repository, part, profile), stamp)
    return Placed(part.model, sum(sizes.values()), time.monotonic() - started, deviation)


def _twin(repository: Path, part: Part, profile: Profile) -> Profile | None:
    """Return another profile that has the same part; None for a shared part."""
    others = (other for other in PROFILES.values() if other != profile and not part.shared)
    return next((other for other in others if _is_placed(repository, part, other)), None)


def _link(repository: Path, part: Part, twin: Profile, building: Path) -> float | None:
    """Link the files of another profile, or copy them if the file system has no links; returns the deviation."""
    stamp = _read_stamp(stamp_file(repository, part, twin))
    for name in stamp["files"]:
        first, *rest = Path(name).parts
        target = building.joinpath(plain_name(first, twin), *rest)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(version_folder(repository, part) / name, target)
        except OSError:
            shutil.copyfile(version_folder(repository, part) / name, target)
    deviation: float | None = stamp["max_deviation"]
    return deviation


def _move(part: Part, building: Path, folder: Path, profile: Profile) -> dict[str, int]:
    """Replace the existing files by the built ones; returns the files' sizes by name."""
    stamp = folder / part.name(EXPORT_RECORD, profile)
    before = _read_stamp(stamp).get("files", {})
    stamp.unlink(missing_ok=True)
    if part.engine is not None:
        (folder / ENGINE_FILE).unlink(missing_ok=True)  # it was built from the former graph
    sizes: dict[str, int] = {}
    for product in sorted(building.iterdir()):
        target = folder / part.name(product.name, profile)
        _replace(product, target)
        sizes |= {str(file.relative_to(folder)): file.stat().st_size for file in files_below(target)}
    for name in before.keys() - sizes.keys():
        (folder / name).unlink(missing_ok=True)
    return sizes


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


def _renew_engine_script(folder: Path, spec: ModelSpec, profile: Profile) -> None:
    """Write the script that builds the engine; an engine that was built by a different script is removed."""
    from attune_export.tensorrt import build_script

    graph = folder / exported_name(MODEL_FILE, profile)
    if not graph.is_file():  # an encoder of regressors that share nothing
        return
    states = read_states(folder / exported_name(CUT_FILE, profile))
    spec = spec if states is None else specs_at(states)[spec.name]
    script, text = folder / ENGINE_SCRIPT, build_script(spec, graph.name, sha256_of(graph))
    if script.is_file() and script.read_text(encoding="utf-8") == text:
        return
    (folder / ENGINE_FILE).unlink(missing_ok=True)
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
