"""Assembling the model repository: what `attune export` places beside the committed configurations.

Each model's part carries a fingerprint of everything that decides it (weights, artifacts, code, versions). A part whose
fingerprint still holds is left alone, so a second run takes about a second. A part is built in a folder of its own and
moved into place when it is complete; what another profile has of the same fingerprint is linked, not built again.

A record for each profile, in the repository's root, says which parts belong together. It is marked unfinished for as
long as parts are replaced, so that `attune_ensemble.serving.launcher.repository` can refuse what a broken-off export
left.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console

from attune_client.protocol import ModelSpec
from attune_client.protocol.models import (
    AROUSAL_DOMINANCE_MODEL,
    EMOTION_CLASSIFIER,
    MUSIC_GENERATOR,
    MUSIC_PROMPT,
    SENTENCE_ENCODER,
    SPEECH_TO_TEXT,
    TEXT_TOKENIZER,
    VALENCE_MODEL,
)
from attune_client.protocol.profiles import (
    ENGINE_FILE,
    ENGINE_SCRIPT,
    KNOWLEDGE_DIR,
    LABELS_FILE,
    MODEL_FILE,
    MUSICGEN_DIR,
    TOKENIZER_FILE,
    WHISPER_DIR,
    Profile,
    exported_name,
    plain_name,
)
from attune_export.errors import ExportError
from attune_weights import WeightsError, fetch, manifest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NO_MUSICGEN", "Part", "Placed", "assemble", "place", "plan", "record_file", "shipped_artifacts"]

WHISPER = "whisper-base-ct2"
SENTENCE_MODEL = "all-minilm-l6-v2"
DEFAULT_MUSICGEN = "musicgen-small"
NO_MUSICGEN = "none"
"""In place of MusicGen's weights: the composer plays."""

TOWERS = {
    "whisper": (WHISPER, SENTENCE_MODEL),
    "hubert": ("hubert-base-ls960", "bert-base-uncased"),
}
"""By the kind of a regressor's audio tower: its weights, and those of the text tower."""

_STAMP = "attune-export.json"
_LOCK = ".attune-export.lock"
_BUILDING = ".building"
_VERSION_DIR = "1"

Digests = dict[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """What one model of the repository needs.

    `build` writes files into an empty folder, under the names that they have in `embedded`, and returns the largest
    deviation of its check (None where nothing is checked); `weights` are fetched before it; `made_from` is everything
    that decides the result. A `shared` part serves every profile; `engine` is the model of which TensorRT makes one.
    """

    model: str
    made_from: Digests
    weights: tuple[str, ...]
    build: Callable[[Path], float | None]
    shared: bool = False
    engine: ModelSpec | None = None

    def fingerprint(self) -> str:
        """Changes when anything that decides the result changes."""
        return _digest(json.dumps(self.made_from, sort_keys=True).encode())

    def name(self, file: str, profile: Profile) -> str:
        """The name in the version folder of what `build` calls `file`."""
        return file if self.shared else exported_name(file, profile)


@dataclass(frozen=True, slots=True)
class Placed:
    """One finished part: `seconds` is None where it was there already."""

    model: str
    size_bytes: int
    seconds: float | None
    max_deviation: float | None


def shipped_artifacts() -> Path:
    """The folder of the trained artifacts that ship with Attune."""
    return _package_dir("attune_training") / "artifacts"


def assemble(
    repository: Path,
    *,
    profile: Profile = Profile.EMBEDDED,
    artifacts: Path | None = None,
    emotion_map: Path | None = None,
    musicgen: str | None = None,
    force: bool = False,
    command: str = "attune export",
    console: Console | None = None,
) -> list[Placed]:
    """Place every model's files for `profile` in `repository`, beside its configurations; one line each on `console`.

    `artifacts` is a folder with `valence/` and `arousal_dominance/`, saved regressors, in place of those that ship.
    `emotion_map` is what `attune train emotion-map` wrote, in place of the one that ships. `musicgen` is the name of
    pinned weights, a folder of transformers' MusicGen, or "none"; left out, it is MusicGen small in the profiles with a
    GPU, and none in `embedded`. With `force` everything is built again. `command` is what a refusal to serve a
    broken-off export tells to run. A second export of the same repository waits for the first.

    Raises ExportError or WeightsError. All weights are fetched before anything is placed; where MusicGen's alone cannot
    be had, everything else is placed before that is raised.
    """
    console = console or Console(stderr=True)
    parts = plan(repository, profile=profile, artifacts=artifacts, emotion_map=emotion_map, musicgen=musicgen)
    for part in parts:
        _folder(repository, part)
    with _alone(repository, console):
        no_music = _fetch(part for part in parts if force or not _at_hand(repository, part, profile))
        ready = [part for part in parts if no_music is None or part.model != MUSIC_GENERATOR.name]
        record = _Record(repository, profile, parts, command)
        placed = [_report(repository, part, profile, force, record, console) for part in ready]
        if no_music is not None:
            record.mark_unfinished(f"{MUSIC_GENERATOR.name} is missing; --musicgen {NO_MUSICGEN} does without")
            raise WeightsError(_without_music(no_music, profile, command)) from no_music
        record.finish()
    _say_what_is_left(repository, profile, parts, console)
    return placed


def _at_hand(repository: Path, part: Part, profile: Profile) -> bool:
    """Whether nothing has to be built."""
    return _is_placed(repository, part, profile) or _twin(repository, part, profile) is not None


def _fetch(parts: Iterable[Part]) -> WeightsError | None:
    """Fetch what the parts need; returns why MusicGen's weights cannot be had. Raises WeightsError for any others."""
    no_music = None
    for part in parts:
        for name in part.weights:
            try:
                fetch(name)
            except WeightsError as error:
                if part.model != MUSIC_GENERATOR.name:
                    raise
                no_music = error
    return no_music


def _without_music(error: WeightsError, profile: Profile, command: str) -> str:
    return (
        f"{error}\n"
        f"All other models were placed; music_generator is missing, and the {profile} profile is not served without "
        f"it. Run `{command}` again where the source can be reached, or name a folder that holds the checkpoint "
        f"with --musicgen DIR, or let the composer play with --musicgen {NO_MUSICGEN}"
    )


def _report(repository: Path, part: Part, profile: Profile, force: bool, record: _Record, console: Console) -> Placed:
    with console.status(f"{part.model}: exporting"):
        done = place(repository, part, profile=profile, force=force, before_change=record.mark_unfinished)
    console.print(_line(done), highlight=False)
    return done


def _line(placed: Placed) -> str:
    size = f"{placed.size_bytes / 1e6:8.1f} MB"
    took = "up to date" if placed.seconds is None else f"{placed.seconds:8.1f} s"
    checked = "" if placed.max_deviation is None else f"   within {placed.max_deviation:.1e} of PyTorch"
    return f"{placed.model:<20}{took:>12}{size}{checked}"


def _say_what_is_left(repository: Path, profile: Profile, parts: Iterable[Part], console: Console) -> None:
    """Name the scripts whose engines have still to be built."""
    if profile is not Profile.TENSORRT:
        return
    for folder in (_folder(repository, part) for part in parts if part.engine):
        if not (folder / ENGINE_FILE).is_file():
            script = folder / ENGINE_SCRIPT
            console.print(f"to be run in NVIDIA's image, on the GPU: {script}", highlight=False, soft_wrap=True)


@contextmanager
def _alone(repository: Path, console: Console) -> Iterator[None]:
    """Hold the repository, so that two exports at once leave no mixture."""
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


def record_file(repository: Path, profile: Profile) -> Path:
    """Where the record of a profile's export lies; a server that looks for models reads folders only."""
    return repository / exported_name(_STAMP, profile)


class _Record:
    """What belongs together in one profile: stamps by model, and the labels that the served code has to agree with."""

    def __init__(self, repository: Path, profile: Profile, parts: Sequence[Part], command: str) -> None:
        from attune_ensemble.prompting.knowledge import load_emotions

        self._labels = [emotion.label for emotion in load_emotions()]
        self._path = record_file(repository, profile)
        self._parts = {
            part.model: {
                "stamp": str(_stamp_file(repository, part, profile).relative_to(repository)),
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
        _write_json(self._path, content)


def place(
    repository: Path,
    part: Part,
    *,
    profile: Profile = Profile.EMBEDDED,
    force: bool = False,
    before_change: Callable[[], None] = lambda: None,
) -> Placed:
    """Build one part if it is not there yet; an interrupted build leaves what was there before.

    `before_change` is called once the part is built, before what was there is touched.
    """
    folder = _folder(repository, part)
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / _BUILDING, ignore_errors=True)  # of an export that was killed
    if force or not _is_placed(repository, part, profile):
        done = _build(repository, part, profile, force, before_change)
    else:
        stamp = _read_stamp(_stamp_file(repository, part, profile))
        done = Placed(part.model, sum(stamp["files"].values()), None, stamp["max_deviation"])
    if part.engine and profile is Profile.TENSORRT:
        _renew_engine_script(folder, part.engine)
    return done


def _folder(repository: Path, part: Part) -> Path:
    """The version folder of the part's model. Raises ExportError where the repository has no such model."""
    if not (repository / part.model / "config.pbtxt").is_file():
        raise ExportError(
            f"{repository} is not Attune's model repository: it has no {part.model}/config.pbtxt "
            f"(run this in the project's folder, or write one with `python -m attune_export.repository_config`)"
        )
    return repository / part.model / _VERSION_DIR


def _stamp_file(repository: Path, part: Part, profile: Profile) -> Path:
    return repository / part.model / _VERSION_DIR / part.name(_STAMP, profile)


def _read_stamp(file: Path) -> dict[str, Any]:
    """What a finished part left; nothing where there is no readable stamp."""
    try:
        stamp = json.loads(file.read_text(encoding="utf-8"))
        return stamp if {"fingerprint", "files", "max_deviation"} <= stamp.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_placed(repository: Path, part: Part, profile: Profile) -> bool:
    stamp_file = _stamp_file(repository, part, profile)
    stamp = _read_stamp(stamp_file)
    return stamp.get("fingerprint") == part.fingerprint() and all(
        _is_whole(stamp_file.parent / name, size) for name, size in stamp["files"].items()
    )


def _is_whole(file: Path, size: int) -> bool:
    # A database may change its files when it is opened, so only their presence counts.
    return file.is_file() and (KNOWLEDGE_DIR in file.parts or file.stat().st_size == size)


def _build(repository: Path, part: Part, profile: Profile, force: bool, before_change: Callable[[], None]) -> Placed:
    started = time.monotonic()
    folder = _folder(repository, part)
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
    _write_json(_stamp_file(repository, part, profile), stamp)
    return Placed(part.model, sum(sizes.values()), time.monotonic() - started, deviation)


def _twin(repository: Path, part: Part, profile: Profile) -> Profile | None:
    """Another profile that has this very part; what is shared has no second."""
    others = (other for other in Profile if other is not profile and not part.shared)
    return next((other for other in others if _is_placed(repository, part, other)), None)


def _link(repository: Path, part: Part, twin: Profile, building: Path) -> float | None:
    """Give the files of another profile a second name, or copy them where the file system has no links."""
    stamp = _read_stamp(_stamp_file(repository, part, twin))
    for name in stamp["files"]:
        first, *rest = Path(name).parts
        target = building.joinpath(plain_name(first, twin), *rest)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(_folder(repository, part) / name, target)
        except OSError:
            shutil.copyfile(_folder(repository, part) / name, target)
    deviation: float | None = stamp["max_deviation"]
    return deviation


def _move(part: Part, building: Path, folder: Path, profile: Profile) -> dict[str, int]:
    """Put what was built in the place of what was there; returns the files' sizes by name."""
    stamp_file = folder / part.name(_STAMP, profile)
    before = _read_stamp(stamp_file).get("files", {})
    stamp_file.unlink(missing_ok=True)
    if part.engine and profile is Profile.TENSORRT:
        (folder / ENGINE_FILE).unlink(missing_ok=True)  # it is the former graph's
    sizes: dict[str, int] = {}
    for product in sorted(building.iterdir()):
        target = folder / part.name(product.name, profile)
        _replace(product, target)
        sizes |= {str(file.relative_to(folder)): file.stat().st_size for file in _files(target)}
    for name in before.keys() - sizes.keys():
        (folder / name).unlink(missing_ok=True)
    return sizes


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


def _renew_engine_script(folder: Path, spec: ModelSpec) -> None:
    """Write the script that builds the graph's engine; an engine that another script built is removed."""
    from attune_export.tensorrt import build_script

    graph = folder / exported_name(MODEL_FILE, Profile.TENSORRT)
    script, text = folder / ENGINE_SCRIPT, build_script(spec, graph.name, _digest_of(graph))
    if script.is_file() and script.read_text(encoding="utf-8") == text:
        return
    (folder / ENGINE_FILE).unlink(missing_ok=True)
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)


def _write_json(path: Path, value: Any) -> None:
    """Write beside and move, so that a kill never leaves half a file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    partial.replace(path)


def plan(
    repository: Path,
    *,
    profile: Profile,
    artifacts: Path | None,
    emotion_map: Path | None = None,
    musicgen: str | None = None,
) -> tuple[Part, ...]:
    """What has to be placed for a profile, in the order of the pipeline.

    Raises ExportError for artifacts that are missing, and says what would be right.
    """
    regressors = artifacts or shipped_artifacts() / "embedded"
    encoder = _sentence_encoder()
    whisper_files = {name: f"{WHISPER_DIR}/{name}" for name in manifest()[WHISPER].files}
    return (
        _copied(SPEECH_TO_TEXT, WHISPER, whisper_files),
        _copied(TEXT_TOKENIZER, SENTENCE_MODEL, {TOKENIZER_FILE: TOKENIZER_FILE}),
        _regressor(VALENCE_MODEL, regressors),
        _regressor(AROUSAL_DOMINANCE_MODEL, regressors),
        _emotion_classifier(emotion_map or shipped_artifacts() / "emotion_map"),
        encoder,
        _knowledge(repository, encoder, profile),
        _musicgen(musicgen or (NO_MUSICGEN if profile is Profile.EMBEDDED else DEFAULT_MUSICGEN)),
    )


def _copied(spec: ModelSpec, weights: str, places: dict[str, str]) -> Part:
    """A part that is pretrained files as they are; `places` says where each goes, inside the version folder."""

    def build(folder: Path) -> None:
        source = fetch(weights)
        for name, target in places.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / target)

    return Part(spec.name, _weights_digests(weights) | places, (weights,), build, shared=True)


def _musicgen(source: str) -> Part:
    """MusicGen's checkpoint, as it is: pinned weights by name, or a folder; "none" leaves a note in its place."""
    if source == NO_MUSICGEN:
        return Part(MUSIC_GENERATOR.name, {"musicgen": NO_MUSICGEN}, (), _note_that_there_is_none)
    weights: tuple[str, ...] = ()
    if source in manifest():
        made_from, weights = _weights_digests(source), (source,)
    elif (Path(source) / "config.json").is_file():
        made_from = _digests_of(Path(source))
    else:
        known = [name for name in manifest() if name.startswith(MUSICGEN_DIR)]
        raise ExportError(
            f"{source} is neither a folder with a MusicGen checkpoint nor one of {', '.join(known)}, {NO_MUSICGEN}"
        )

    def build(folder: Path) -> None:
        shutil.copytree(fetch(source) if weights else Path(source), folder / MUSICGEN_DIR)

    return Part(MUSIC_GENERATOR.name, made_from, weights, build)


def _note_that_there_is_none(folder: Path) -> None:
    (folder / MUSICGEN_DIR).mkdir()
    (folder / MUSICGEN_DIR / NO_MUSICGEN).write_text("exported without a checkpoint: the composer plays\n")


def _regressor(spec: ModelSpec, artifacts: Path) -> Part:
    folder = artifacts / spec.name
    audio, text = TOWERS[_tower_kind(folder)]

    def build(target: Path) -> float:
        from attune_training.config import PretrainedSources
        from attune_training.models.checkpoints import load_regressor
        from attune_training.models.regressor import merge_adapters

        try:
            model = load_regressor(folder, PretrainedSources(audio=fetch(audio), text=fetch(text)))
        except (OSError, ValueError) as error:
            raise ExportError(f"{spec.name}: the saved regressor cannot be loaded: {error}") from error
        return _export(merge_adapters(model), spec, target)

    made_from = _digests_of(folder) | _exporter_digests() | _weights_digests(audio, text)
    return Part(spec.name, made_from, (audio, text), build, engine=spec)


def _tower_kind(folder: Path) -> str:
    """The kind of a saved regressor's audio tower. Raises ExportError where there is no saved regressor."""
    try:
        kind: str = json.loads((folder / "config.json").read_text(encoding="utf-8"))["audio"]["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{folder} holds no saved regressor ({error}); it should hold config.json, adapter.safetensors and "
            f"head.safetensors, as attune_training writes them"
        ) from error
    if kind not in TOWERS:
        raise ExportError(f"{folder}: no weights are known for the audio tower '{kind}'")
    return kind


def _emotion_classifier(folder: Path) -> Part:
    if not (folder / "labels.json").is_file():
        raise ExportError(f"{folder} holds no emotion map; `attune train emotion-map` trains one")

    def build(target: Path) -> float:
        from attune_ensemble.prompting.knowledge import load_emotions
        from attune_training.emotion_map import load_emotion_classifier

        labels = [emotion.label for emotion in load_emotions()]
        if json.loads((folder / "labels.json").read_text(encoding="utf-8")) != labels:
            raise ExportError(f"{folder}: its labels are not those of the knowledge base; train the emotion map again")
        deviation = _export(load_emotion_classifier(folder), EMOTION_CLASSIFIER, target)
        (target / LABELS_FILE).write_text("\n".join(labels) + "\n", encoding="utf-8")
        return deviation

    code = _code("attune_training.emotion_map", "attune_ensemble.prompting.knowledge")
    made_from = _digests_of(folder) | _exporter_digests() | code
    return Part(EMOTION_CLASSIFIER.name, made_from, (), build, engine=EMOTION_CLASSIFIER)


def _sentence_encoder() -> Part:
    def build(target: Path) -> float:
        from attune_export.onnx_export import SentenceEncoder
        from attune_training.config import TextTowerConfig

        return _export(SentenceEncoder(TextTowerConfig(), fetch(SENTENCE_MODEL)), SENTENCE_ENCODER, target)

    made_from = _exporter_digests() | _weights_digests(SENTENCE_MODEL)
    return Part(SENTENCE_ENCODER.name, made_from, (SENTENCE_MODEL,), build)


def _knowledge(repository: Path, encoder: Part, profile: Profile) -> Part:
    def build(target: Path) -> None:
        from attune_ensemble.prompting.knowledge import load_emotions
        from attune_export.embedding import SentenceEmbedder
        from attune_export.knowledge_index import build_index

        tokenizer = repository / TEXT_TOKENIZER.name / _VERSION_DIR / TOKENIZER_FILE
        embedder = SentenceEmbedder(_folder(repository, encoder) / encoder.name(MODEL_FILE, profile), tokenizer)
        build_index(load_emotions(), embedder, target / KNOWLEDGE_DIR)

    made_from = {"sentence_encoder": encoder.fingerprint(), "chromadb": version("chromadb")}
    made_from |= _code("attune_export.knowledge_index", "attune_export.embedding")
    made_from |= _code("attune_ensemble.prompting.knowledge", "attune_ensemble.prompting.retrieval")
    made_from |= _digests_of(_package_dir("attune_ensemble.prompting.knowledge"), "*.yaml")
    return Part(MUSIC_PROMPT.name, made_from, (), build, shared=True)


def _export(module: nn.Module, spec: ModelSpec, target: Path) -> float:
    from attune_export.onnx_export import export_model

    return export_model(module, spec, target / MODEL_FILE).max_deviation


def _exporter_digests() -> Digests:
    """The code and the packages that decide an exported graph; read from disk, for importing them takes seconds."""
    layers = ("models.regressor", "models.towers", "models.layers", "config", "models.checkpoints")
    modules = ["attune_export.onnx_export", *(f"attune_training.{name}" for name in layers)]
    packages = {name: version(name) for name in ("onnx", "onnxscript", "peft", "torch", "transformers")}
    return _code(*modules) | packages


def _weights_digests(*names: str) -> Digests:
    return {f"weights {name}": manifest()[name].fingerprint() for name in names}


def _code(*modules: str) -> Digests:
    return {module: _digest(b"".join(path.read_bytes() for path in _sources(module))) for module in modules}


def _sources(module: str) -> list[Path]:
    """The source of a module, or of every module of a package."""
    file = _source_file(module)
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def _source_file(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ExportError(f"the module {module} is not installed")
    return Path(spec.origin)


def _package_dir(package: str) -> Path:
    return _source_file(package).parent


def _digests_of(folder: Path, pattern: str = "*") -> Digests:
    """Digests of a folder's data files; what is written (*.md) and drawn (*.png) about them decides nothing."""
    files = (path for path in _files(folder) if path.match(pattern) and path.suffix not in (".md", ".png"))
    return {f"{folder.name}/{path.relative_to(folder)}": _digest_of(path) for path in files}


def _digest_of(file: Path) -> str:
    """A file's digest, read in pieces: a checkpoint may be larger than the memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(root: Path) -> Iterator[Path]:
    """The file itself, or all files below the folder."""
    return (path for path in sorted([root, *root.rglob("*")]) if path.is_file())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
