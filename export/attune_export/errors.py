"""What can go wrong while models are exported.

AttuneError
└── ExportError      a model could not be exported, or its export differs from the original

Weights that cannot be fetched are an `attune_weights.WeightsError`.
"""

from __future__ import annotations

from attune_client.protocol.errors import AttuneError

__all__ = ["ExportError"]


class ExportError(AttuneError):
    """A model could not be exported, or the exported model does not answer as the original does."""

    code = "export"
