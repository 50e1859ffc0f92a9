"""The names by which the export leaves a checkpoint, or a note that there is none, and the engine finds it."""

from __future__ import annotations

__all__ = ["CONFIG_FILE", "FOLDER", "NONE"]

FOLDER = "musicgen"
"""The folder of the checkpoint in the version folder, before a profile's own name for it."""

CONFIG_FILE = "config.json"
"""A file that every checkpoint has; the weights lie beside it."""

NONE = "none"
"""Instead of a checkpoint's name: export none. A file of this name in the folder says that there shall be none."""
