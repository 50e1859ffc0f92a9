"""Assembling the model repository: `attune export` places every model's files beside the committed configurations.

Each model defines its part in `attune_export.models`; placing.py builds one part and moves it into place. A
repeated run takes about a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from attune_client.protocol.models import MUSIC_GENERATOR
from attune_client.protocol.profiles import EMBEDDED, ENGINE_FILE, ENGINE_SCRIPT, Profile
from attune_export.configuring import configure, restore_encoder
from attune_export.models.registry import SERVED_MODELS
from attune_export.parts import NO_MUSICGEN, ExportOptions, Part
from attune_export.placing import Placed, is_at_hand, place, version_folder
from attune_export.record import ExportRecord
from attune_export.served_model import ServedModel
from attune_weights import WeightsError, fetch

__all__ = ["assemble", "plan"]

_LOCK = ".attune-export.lock"


def assemble(
    repository: Path,
    *,
    profile: Profile = EMBEDDED,
    artifacts: Path | None = None,
    emotion_map: Path | None = None,
    musicgen: str | None = None,
    bart: str | None = None,
    force: bool = False,
    command: str = "attune export",
    console: Console | None = None,
) -> list[Placed]:
    """Place every model's files for `profile` in `repository`, and print one line for each model on `console`.

    Args:
        repository: the folder of the committed configurations.
        profile: where the models will run.
        artifacts: a folder with saved regressors, `valence/` and `arousal_dominance/`; None: those that ship.
        emotion_map: a folder written by `attune train emotion-map`; None: the one that ships.
        musicgen: name of pinned weights, a folder in transformers' format, or "none"; None: the profile's default.
        bart: the same for the model that summarises.
        force: build every part again.
        command: the command that is recommended if this export is interrupted.
        console: None: standard error.

    A concurrent export of the same repository is waited for. All weights are fetched before anything is placed; if only
    MusicGen's are unavailable, everything else is placed before the error is raised. Without BART's the template
    summarises, and a line says so; the next export tries again.

    Raises:
        ExportError: an artifact is missing or invalid, or an export deviates too far.
        WeightsError: weights cannot be fetched.
    """
    console = console or Console(stderr=True)
    parts = plan(
        repository, profile=profile, artifacts=artifacts, emotion_map=emotion_map, musicgen=musicgen, bart=bart
    )
    restore_encoder(repository, parts)
    for part in parts:
        version_folder(repository, part)
    with _export_lock(repository, console):
        parts, no_music = _fetched(parts, lambda part: force or not is_at_hand(repository, part, profile), console)
        ready = [part for part in parts if no_music is None or part.model != MUSIC_GENERATOR.name]
        record = ExportRecord(repository, profile, parts, command)
        placed = [_report(repository, part, profile, force, record, console) for part in ready]
        configure(repository, profile, record)
        if no_music is not None:
            record.mark_unfinished(f"{MUSIC_GENERATOR.name} is missing; --musicgen {NO_MUSICGEN} does without")
            raise WeightsError(_without_music(no_music, profile, command)) from no_music
        record.finish()
    _report_missing_engines(repository, parts, console)
    return placed


def _fetched(
    parts: Iterable[Part], is_wanted: Callable[[Part], bool], console: Console
) -> tuple[tuple[Part, ...], WeightsError | None]:
    """Fetch the weights of the parts that are wanted.

    Returns the parts, some with their substitutes in their places, and the error for MusicGen's weights; raises that
    of any others.
    """
    obtained, no_music = [], None
    for part in parts:
        try:
            for name in part.weights if is_wanted(part) else ():
                fetch(name)
        except WeightsError as error:
            if part.instead is not None:
                console.print(f"{error}\n{part.instead.says}", highlight=False, soft_wrap=True)
                part = part.instead.part
            elif part.model == MUSIC_GENERATOR.name:
                no_music = error
            else:
                raise
        obtained.append(part)
    return tuple(obtained), no_music


def _without_music(error: WeightsError, profile: Profile, command: str) -> str:
    return (
        f"{error}\n"
        f"All other models were placed; music_generator is missing, and the {profile} profile is not served without "
        f"it. Run `{command}` again where the source can be reached, or name a folder that holds the checkpoint "
        f"with --musicgen DIR, or let the composer play with --musicgen {NO_MUSICGEN}"
    )


def _report(
    repository: Path, part: Part, profile: Profile, force: bool, record: ExportRecord, console: Console
) -> Placed:
    with console.status(f"{part.model}: exporting"):
        done = place(repository, part, profile=profile, force=force, before_change=record.mark_unfinished)
    console.print(_line(done), highlight=False)
    return done


def _line(placed: Placed) -> str:
    size = f"{placed.size_bytes / 1e6:8.1f} MB"
    took = "up to date" if placed.seconds is None else f"{placed.seconds:8.1f} s"
    checked = "" if placed.max_deviation is None else f"   within {placed.max_deviation:.1e} of PyTorch"
    return f"{placed.model:<20}{took:>12}{size}{checked}"


def _report_missing_engines(repository: Path, parts: Iterable[Part], console: Console) -> None:
    """Print the scripts of engines that have to be built."""
    for folder in (version_folder(repository, part) for part in parts if part.engine is not None):
        if not (folder / ENGINE_FILE).is_file():
            script = folder / ENGINE_SCRIPT
            console.print(f"to be run in NVIDIA's image, on the GPU: {script}", highlight=False, soft_wrap=True)


@contextmanager
def _export_lock(repository: Path, console: Console) -> Iterator[None]:
    """Lock the repository against concurrent exports."""
    lock = FileLock(repository / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print("another export is at work in this repository; waiting for it", highlight=False)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def plan(
    repository: Path,
    *,
    profile: Profile,
    artifacts: Path | None,
    emotion_map: Path | None = None,
    musicgen: str | None = None,
    bart: str | None = None,
) -> tuple[Part, ...]:
    """Return the parts to be placed for a profile, in the order of the pipeline.

    Raises:
        ExportError: an artifact is missing or invalid.
    """
    options = ExportOptions(repository, profile, artifacts, emotion_map, musicgen, bart)
    return tuple(_part(model, options) for model in SERVED_MODELS.values() if model.part is not None)


def _part(model: ServedModel, options: ExportOptions) -> Part:
    assert model.part is not None
    engine = model.spec if model.settings_in(options.profile).tensorrt else None
    return replace(model.part(options), engine=engine)
