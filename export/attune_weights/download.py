"""Downloads that can be taken up again, and where a wheel lies on the user's own package index.

The index is the one that pip is configured for: pip resolves the wheel's address, so that mirrors, extra indexes,
`--find-links` and credentials work as they do for an installation. The wheel is then taken as a file; it is never
installed.
"""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import certifi
import httpx

from attune_weights.files import sha256_of

__all__ = ["DownloadError", "download_url", "download_wheel"]

_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 3
_TIMEOUT_S = 60.0

Advance = Callable[[int], None]
"""Called with the number of bytes that have arrived since the last call."""


class DownloadError(Exception):
    """One attempt to get one file failed; the text says why."""


def download_wheel(name: str, version: str, sha256: str, target: Path, advance: Advance) -> None:
    """Download the wheel `name==version` from the user's package index to `target`.

    An earlier attempt's `target.part` is continued. Raises DownloadError when the index cannot be reached, does not
    have the wheel, or gives a file of another sha256.
    """
    if target.exists() and sha256_of(target) == sha256:
        return
    if url := _locate(name, version):
        try:
            return download_url(url, sha256, target, advance)
        except httpx.HTTPError:
            pass  # pip knows ways that a plain download does not: client certificates, keyrings, credentials
    _pip_download(f"{name}=={version}", sha256, target)


def download_url(url: str, sha256: str, target: Path, advance: Advance) -> None:
    """Download `url` (http, https or file) to `target`, continuing `target.part` where there is one.

    Raises DownloadError if the sha256 differs (the partial file is then thrown away), httpx.HTTPError if the
    network fails (the partial file is kept for the next attempt).
    """
    part = target.with_name(target.name + ".part")
    if urlparse(url).scheme == "file":
        shutil.copyfile(url2pathname(urlparse(url).path), part)
        advance(part.stat().st_size)
    else:
        advance(part.stat().st_size if part.exists() else 0)
        _download_http(url, part, advance)
    _accept(part, sha256, target)


def _accept(part: Path, sha256: str, target: Path) -> None:
    got = sha256_of(part)
    if got != sha256:
        part.unlink()
        raise DownloadError(f"{target.name} has the wrong digest: expected sha256 {sha256}, got {got}")
    part.replace(target)


def _download_http(url: str, part: Path, advance: Advance) -> None:
    with httpx.Client(verify=_tls(), follow_redirects=True, timeout=_TIMEOUT_S) as client:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return _continue(client, url, part, advance)
            except httpx.TransportError:
                if attempt == _ATTEMPTS:
                    raise


def _continue(client: httpx.Client, url: str, part: Path, advance: Advance) -> None:
    """Fetch what `part` still lacks; a server that knows no ranges sends all of it again."""
    have = part.stat().st_size if part.exists() else 0
    # Wheels and weights are compressed already; any further encoding would make ranges meaningless.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # `part` is complete already, or longer than the file: its digest decides
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        if have and not resumed:
            advance(-have)
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                file.write(chunk)
                advance(len(chunk))


def _tls() -> ssl.SSLContext:
    """The system's certificates (or SSL_CERT_FILE), certifi's, and the one that pip was told of."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    if extra := os.environ.get("PIP_CERT"):
        context.load_verify_locations(extra)
    return context


def _locate(name: str, version: str) -> str | None:
    """The address of the wheel, as pip's own configuration finds it; None where pip does not tell.

    pip's report on a dry run would say it too, but older versions of pip download the whole wheel to make it.
    """
    listing = _pip("index", "versions", name, "-vv")
    wanted = f"{name.replace('-', '_')}-{version}-"
    links = re.findall(r"Found link (\S+)", listing)
    wheels = [link for link in links if _file_name(link).endswith(".whl") and _file_name(link).startswith(wanted)]
    return wheels[0] if wheels else None


def _file_name(url: str) -> str:
    return Path(urlparse(url).path).name


def _pip_download(requirement: str, sha256: str, target: Path) -> None:
    folder = target.with_name(target.name + ".pip")
    try:
        _pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement)
        [wheel] = folder.glob("*.whl")
        _accept(wheel, sha256, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pip(*arguments: str) -> str:
    """pip's standard output; DownloadError with the reason that it gives."""
    command = [sys.executable, "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DownloadError(_reason(done.stdout + done.stderr))
    return done.stdout


def _reason(output: str) -> str:
    """The telling line of pip's complaints: a broken connection first, for it makes pip report an unknown version."""
    if "connection broken by" in output or "connection error" in output:
        return "the package index cannot be reached (is there a network?)"
    if "No module named pip" in output:
        return f"this environment has no pip to ask: {sys.executable} -m ensurepip"
    lines = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    return f"pip says: {lines[-1]}" if lines else "pip failed without a word"
