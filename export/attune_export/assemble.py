"""Assembling the model repository: what `attune export` places beside the committed configurations.

Each model's part carries a fingerprint of everything that decides it (weights, artifacts, code, versions). A part whose
fingerprint still holds is left alone, so a second run takes about a second. A part is built in a folder of its own and
moved into place when it is complete.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
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
from attune_export.errors import ExportError
from attune_weights import fetch, manifest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PROFILES", "Part", "Placed", "assemble", "place", "plan", "shipped_artifacts"]

PROFILES = ("embedded", "gpu", "tensorrt")

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
LABELS_FILE = "labels.txt"
ENGINE_SCRIPT = "build_engine.sh"
WHISPER_DIR = "whisper"
KNOWLEDGE_DIR = "knowledge"
MUSICGEN_DIR = "musicgen"

WHISPER = "whisper-base-ct2"
SENTENCE_MODEL = "all-minilm-l6-v2"
DEFAULT_MUSICGEN = "musicgen-small"
TOWERS = {
    "whisper": (WHISPER, SENTENCE_MODEL),
    "hubert": ("hubert-base-ls960", "bert-base-uncased"),
}
"""By the kind of a regressor's audio tower: its weights, and those of the text tower."""

_STAMP = "attune-export.json"
_VERSION_DIR = "1"

Digests = dict[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """What one model of the repository needs.

    `build` writes files into an empty folder and returns the largest deviation of its check (None where nothing is
    checked); `weights` are fetched before it; `made_from` is everything that decides the result.
    """

    model: str
    made_from: Digests
    weights: tuple[str, ...]
    build: Callable[[Path], float | None]

    def fingerprint(self) -> str:
        """Changes when anything that decides the result changes."""
        return _digest(json.dumps(self.made_from, sort_keys=True).encode())


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
    profile: str = "embedded",
    artifacts: Path | None = None,
    emotion_map: Path | None = None,
    musicgen: str | None = None,
    force: bool = False,
    console: Console | None = None,
) -> list[Placed]:
    """Place every model's files in `repository`, beside its configurations; one line a model on `console`.

    `artifacts` is a folder with `valence/` and `arousal_dominance/`, saved regressors; the `embedded` profile has its
    own. `emotion_map` is what `attune train emotion-map` wrote, in place of the one that ships. `musicgen` is the name
    of pinned weights or a folder of transformers' MusicGen; the profiles with a GPU have MusicGen small of their own
    accord, `embedded` none. With `force` everything is built again. Raises ExportError or WeightsError; parts that were
    finished stay.
    """
    console = console or Console(stderr=True)
    placed = []
    parts = plan(repository, profile=profile, artifacts=artifacts, emotion_map=emotion_map, musicgen=musicgen)
    for part in parts:
        if force or not _is_placed(_folder(repository, part), part):
            for name in part.weights:  # here, because a fetch draws a progress bar of its own
                fetch(name)
        with console.status(f"{part.model}: exporting"):
            done = place(repository, part, force=force)
        console.print(_line(done), highlight=False)
        placed.append(done)
    return placed


def _line(placed: Placed) -> str:
    size = f"{placed.size_bytes / 1e6:8.1f} MB"
    took = "up to date" if placed.seconds is None else f"{placed.seconds:8.1f} s"
    checked = "" if placed.max_deviation is None else f"   within {placed.max_deviation:.1e} of PyTorch"
    return f"{placed.model:<20}{took:>12}{size}{checked}"


def place(repository: Path, part: Part, *, force: bool = False) -> Placed:
    """Build one part if it is not there yet; an interrupted build leaves what was there before."""
    folder = _folder(repository, part)
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".attune-export.lock"):
        if force or not _is_placed(folder, part):
            return _build(folder, part)
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        return Placed(part.model, sum(stamp["files"].values()), None, stamp["max_deviation"])


def _folder(repository: Path, part: Part) -> Path:
    """The version folder of the part's model. Raises ExportError where the repository has no such model."""
    if not (repository / part.model / "config.pbtxt").is_file():
        raise ExportError(
            f"{repository} is not Attune's model repository: it has no {part.model}/config.pbtxt "
            f"(run this in the project's folder, or write one with `python -m attune_export.repository_config`)"
        )
    return repository / part.model / _VERSION_DIR


def _is_placed(folder: Path, part: Part) -> bool:
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        # A database changes its files' sizes when it is opened, so only their presence counts.
        return stamp["fingerprint"] == part.fingerprint() and all((folder / name).is_file() for name in stamp["files"])
    except (OSError, ValueError, KeyError):
        return False


def _build(folder: Path, part: Part) -> Placed:
    started = time.monotonic()
    building = folder / ".building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        deviation = part.build(building)
        sizes = {str(path.relative_to(building)): path.stat().st_size for path in _files(building)}
        (folder / _STAMP).unlink(missing_ok=True)
        for product in building.iterdir():
            _replace(product, folder / product.name)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    stamp = {"fingerprint": part.fingerprint(), "files": sizes, "max_deviation": deviation, "made_from": part.made_from}
    (folder / _STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    return Placed(part.model, sum(sizes.values()), time.monotonic() - started, deviation)


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


def plan(
    repository: Path,
    *,
    profile: str,
    artifacts: Path | None,
    emotion_map: Path | None = None,
    musicgen: str | None = None,
) -> tuple[Part, ...]:
    """What has to be placed for a profile, in the order of the pipeline.

    Raises ExportError for artifacts that are missing, and says what would be right.
    """
    regressors = _regressor_folders(profile, artifacts)
    engines = profile == "tensorrt"
    encoder = _sentence_encoder()
    whisper_files = {name: f"{WHISPER_DIR}/{name}" for name in manifest()[WHISPER].files}
    return (
        _copied(SPEECH_TO_TEXT, WHISPER, whisper_files),
        _copied(TEXT_TOKENIZER, SENTENCE_MODEL, {TOKENIZER_FILE: TOKENIZER_FILE}),
        _regressor(VALENCE_MODEL, regressors, engines),
        _regressor(AROUSAL_DOMINANCE_MODEL, regressors, engines),
        _emotion_classifier(emotion_map or shipped_artifacts() / "emotion_map", engines),
        encoder,
        _knowledge(repository, encoder),
        *_musicgen(musicgen or ("" if profile == "embedded" else DEFAULT_MUSICGEN)),
    )


def _regressor_folders(profile: str, artifacts: Path | None) -> Path:
    if profile not in PROFILES:
        raise ExportError(f"no profile named '{profile}'; choose from {', '.join(PROFILES)}")
    if artifacts is None and profile != "embedded":
        raise ExportError(
            f"the {profile} profile serves regressors with the paper's towers (HuBERT-base and BERT-base), and no "
            f"trained ones ship with Attune: train them with `attune train`, then pass their folder with --artifacts"
        )
    return artifacts or shipped_artifacts() / "embedded"


def _copied(spec: ModelSpec, weights: str, places: dict[str, str]) -> Part:
    """A part that is pretrained files as they are; `places` says where each goes, inside the version folder."""

    def build(folder: Path) -> None:
        source = fetch(weights)
        for name, target in places.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / target)

    return Part(spec.name, _weights_digests(weights) | places, (weights,), build)


def _musicgen(source: str) -> tuple[Part, ...]:
    """The part of MusicGen's checkpoint, as it is: pinned weights by name, or a folder; none for an empty source."""
    if not source:
        return ()
    weights: tuple[str, ...] = ()
    if source in manifest():
        made_from, weights = _weights_digests(source), (source,)
    elif (Path(source) / "config.json").is_file():
        made_from = _digests_of(Path(source))
    else:
        known = [name for name in manifest() if name.startswith(MUSICGEN_DIR)]
        raise ExportError(f"{source} is neither a folder with a MusicGen checkpoint nor one of {', '.join(known)}")

    def build(folder: Path) -> None:
        shutil.copytree(fetch(source) if weights else Path(source), folder / MUSICGEN_DIR)

    return (Part(MUSIC_GENERATOR.name, made_from, weights, build),)


def _regressor(spec: ModelSpec, artifacts: Path, engine: bool) -> Part:
    folder = artifacts / spec.name
    audio, text = TOWERS[_tower_kind(folder)]

    def build(target: Path) -> float:
        from attune_training.checkpoints import load_regressor
        from attune_training.config import PretrainedSources
        from attune_training.regressor import merge_adapters

        try:
            model = load_regressor(folder, PretrainedSources(audio=fetch(audio), text=fetch(text)))
        except (OSError, ValueError) as error:
            raise ExportError(f"{spec.name}: the saved regressor cannot be loaded: {error}") from error
        return _export(merge_adapters(model), spec, target, engine)

    made_from = _digests_of(folder) | _exporter_digests(engine) | _weights_digests(audio, text)
    return Part(spec.name, made_from, (audio, text), build)


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


def _emotion_classifier(folder: Path, engine: bool) -> Part:
    if not (folder / "labels.json").is_file():
        raise ExportError(f"{folder} holds no emotion map; `attune train emotion-map` trains one")

    def build(target: Path) -> float:
        from attune_ensemble.knowledge import load_emotions
        from attune_training.emotion_map import load_emotion_classifier

        labels = [emotion.label for emotion in load_emotions()]
        if json.loads((folder / "labels.json").read_text(encoding="utf-8")) != labels:
            raise ExportError(f"{folder}: its labels are not those of the knowledge base; train the emotion map again")
        deviation = _export(load_emotion_classifier(folder), EMOTION_CLASSIFIER, target, engine)
        (target / LABELS_FILE).write_text("\n".join(labels) + "\n", encoding="utf-8")
        return deviation

    code = _code("attune_training.emotion_map", "attune_ensemble.knowledge")
    return Part(EMOTION_CLASSIFIER.name, _digests_of(folder) | _exporter_digests(engine) | code, (), build)


def _sentence_encoder() -> Part:
    def build(target: Path) -> float:
        from attune_export.onnx_export import SentenceEncoder
        from attune_training.config import TextTowerConfig

        return _export(SentenceEncoder(TextTowerConfig(), fetch(SENTENCE_MODEL)), SENTENCE_ENCODER, target, False)

    made_from = _exporter_digests(False) | _weights_digests(SENTENCE_MODEL)
    return Part(SENTENCE_ENCODER.name, made_from, (SENTENCE_MODEL,), build)


def _knowledge(repository: Path, encoder: Part) -> Part:
    def build(target: Path) -> None:
        from attune_ensemble.knowledge import load_emotions
        from attune_export.embedding import SentenceEmbedder
        from attune_export.knowledge_index import build_index

        tokenizer = repository / TEXT_TOKENIZER.name / _VERSION_DIR / TOKENIZER_FILE
        embedder = SentenceEmbedder(_folder(repository, encoder) / MODEL_FILE, tokenizer)
        build_index(load_emotions(), embedder, target / KNOWLEDGE_DIR)

    made_from = {"sentence_encoder": encoder.fingerprint(), "chromadb": version("chromadb")}
    made_from |= _code("attune_export.knowledge_index", "attune_export.embedding")
    made_from |= _code("attune_ensemble.knowledge", "attune_ensemble.retrieval")
    made_from |= _digests_of(_package_dir("attune_ensemble.knowledge"), "*.yaml")
    return Part(MUSIC_PROMPT.name, made_from, (), build)


def _export(module: nn.Module, spec: ModelSpec, target: Path, engine: bool) -> float:
    from attune_export.onnx_export import export_model
    from attune_export.tensorrt import build_script

    report = export_model(module, spec, target / MODEL_FILE)
    if engine:
        (target / ENGINE_SCRIPT).write_text(build_script(spec), encoding="utf-8")
        (target / ENGINE_SCRIPT).chmod(0o755)
    return report.max_deviation


def _exporter_digests(engine: bool) -> Digests:
    """The code and the packages that decide an exported graph; read from disk, for importing them takes seconds."""
    code = ("onnx_export", "tensorrt") if engine else ("onnx_export",)
    layers = ("regressor", "towers", "layers", "config", "checkpoints")
    modules = [f"attune_export.{name}" for name in code] + [f"attune_training.{name}" for name in layers]
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
    return {f"{folder.name}/{path.relative_to(folder)}": _digest(path.read_bytes()) for path in files}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
