"""The bill of materials of an image, as CycloneDX: what pip installed, Debian's packages, the packaged server, weights.

    bill.py PYTHON.json DPKG_STATUS MODELS > sbom.cdx.json

PYTHON.json is what cyclonedx-py says of the environment, to which the rest is added. It is run in the build of the
image, in the environment of the server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attune_weights import manifest
from attune_weights.weights import Weights

SERVER = "tritonserver"


def debian_components(status: str) -> Iterator[dict[str, Any]]:
    """Each installed package of dpkg's status file."""
    for stanza in status.strip().split("\n\n"):
        package = Parser().parsestr(stanza)
        if package["Status"] == "install ok installed":
            name, version, architecture = (package[field] for field in ("Package", "Version", "Architecture"))
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}"
            yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def weights_component(weights: Weights) -> dict[str, Any]:
    """A pinned download, with the digest of each of its files."""
    files = [
        {
            "type": "file",
            "bom-ref": f"weights/{weights.name}/{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": pin.sha256}],
        }
        for name, pin in weights.files.items()
    ]
    return {
        "type": "application" if weights.name == SERVER else "machine-learning-model",
        "bom-ref": f"weights/{weights.name}",
        "name": weights.name,
        "description": weights.purpose,
        "licenses": [{"license": {"name": weights.licence}}],
        "components": files,
    }


def in_the_image(models: Path) -> Iterator[Weights]:
    """The server, and where models are baked in what those of the embedded profile were made of."""
    with_models = any(models.glob("*/config.pbtxt"))
    for weights in manifest().values():
        if weights.name == SERVER or (with_models and "embedded" in weights.profiles):
            yield weights


def main() -> None:
    """Print the bill."""
    python, status, models = (Path(argument) for argument in sys.argv[1:])
    bill = json.loads(python.read_text(encoding="utf-8"))
    bill["components"] += debian_components(status.read_text(encoding="utf-8"))
    bill["components"] += [weights_component(weights) for weights in in_the_image(models)]
    json.dump(bill, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
