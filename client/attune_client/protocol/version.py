"""The version of Attune that is installed here."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

__all__ = ["version"]


@cache
def version() -> str:
    """The version of the distribution that brings the `attune` command; "unknown" where none is installed."""
    # Not by the distribution's name: packages of other people bear the same name.
    for point in entry_points(group="attune.commands"):
        if point.dist is not None:
            return point.dist.version
    return "unknown"
