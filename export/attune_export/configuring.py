"""The configurations that depend on where the exported regressors are cut.

The committed ones are for the regressors that ship. An export of others writes those of the models at the cut again,
for its profile alone. A repository has an encoder for all its profiles or for none, since a server loads every folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from attune_client.protocol.models import EMOTION_ENCODER, VALENCE_MODEL
from attune_client.protocol.profiles import CUT_FILE, PROFILES, Profile, config_path, exported_name
from attune_export.cut import States, read_states, specs_at
from attune_export.errors import ExportError
from attune_export.parts import VERSION_DIR, Part
from attune_export.record import ExportRecord
from attune_export.repository_config import model_config, render
from attune_weights.files import whole_file

__all__ = ["configure", "restore_encoder"]


def restore_encoder(repository: Path, parts: Iterable[Part]) -> None:
    """Write the encoder's configurations again, where an export of regressors that share nothing removed them."""
    is_part = any(part.model == EMOTION_ENCODER.name for part in parts)
    if is_part and (repository / VALENCE_MODEL.name).is_dir() and not (repository / EMOTION_ENCODER.name).is_dir():
        for profile in PROFILES.values():
            _write(repository / config_path(EMOTION_ENCODER.name, profile), EMOTION_ENCODER.name, profile)


def configure(repository: Path, profile: Profile, record: ExportRecord) -> None:
    """Write the configurations of the models at the cut, for the regressors that were placed for `profile`.

    Raises:
        ExportError: they share nothing and another profile's have an encoder, or the other way round.
    """
    states = _states_of(repository, profile)
    if states is None:  # no regressors are among the parts
        return
    encoder = repository / EMOTION_ENCODER.name
    others = (other for other in PROFILES.values() if other != profile)
    for other, theirs in ((other, _states_of(repository, other)) for other in others):
        if theirs is not None and bool(theirs) != bool(states):
            if not theirs:
                shutil.rmtree(encoder)
            raise ExportError(_conflict(profile, states, other))
    for name in specs_at(states):
        _write(repository / config_path(name, profile), name, profile, states)
    if not states:
        record.leave_out(EMOTION_ENCODER.name)
        shutil.rmtree(encoder)


def _states_of(repository: Path, profile: Profile) -> States | None:
    return read_states(repository / VALENCE_MODEL.name / VERSION_DIR / exported_name(CUT_FILE, profile))


def _write(path: Path, name: str, profile: Profile, *states: States) -> None:
    text = render(model_config(name, profile, *states))
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _conflict(profile: Profile, states: States, other: Profile) -> str:
    ours, its = ("have an encoder in common", "share nothing") if states else ("share nothing", "have an encoder")
    return (
        f"the regressors of the {profile} profile {ours}, those of {other} in this repository {its}: "
        "export one of them to a repository of its own, which `python -m attune_export.repository_config` writes "
        "(--repository)"
    )
