"""Errors of the export.

AttuneError
└── ExportError      a model could not be exported, or its export differs from the original

Weights that cannot be fetched are an `attune_weights.WeightsError`.
"""

from __future__ import annotations

from attune_client.protocol.errors import AttuneError

__all__ = ["ExportError"]


class ExportError(AttuneError):
    """A model could not be exported, or the exported model's outputs differ from the original's."""

    code = "export"
