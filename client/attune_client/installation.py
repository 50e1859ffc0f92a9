"""The origin of this installation, and the command that adds an extra to it.

On the package index the name `attune` belongs to another project, and Attune is not published there: it is installed
from a clone or from a wheel (`make wheel`), which pip records (PEP 610).
"""

from __future__ import annotations

import json
from importlib.metadata import distributions
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

__all__ = ["DISTRIBUTION", "install_command"]

DISTRIBUTION = "attune-music"
"""The distribution's name; the packages and the command are called attune."""


def install_command(extra: str) -> str:
    """Return the pip command that installs `extra` from the origin of this installation."""
    origin = _origin()
    url = str(origin.get("url", ""))
    if origin.get("dir_info", {}).get("editable"):
        return f"pip install -e '{url2pathname(urlparse(url).path)}[{extra}]'"
    if url:
        return f"pip install '{DISTRIBUTION}[{extra}] @ {url}'"
    return f"pip install '{DISTRIBUTION}[{extra}] @ file:///path/to/attune'  (a clone, or a wheel of `make wheel`)"


def _origin() -> dict[str, Any]:
    """Return pip's record of the origin; empty if another installer wrote none."""
    # The metadata of a clone that is itself on the path has no such file.
    for found in distributions(name=DISTRIBUTION):
        if written := found.read_text("direct_url.json"):
            return dict(json.loads(written))
    return {}
