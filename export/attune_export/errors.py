"""What can go wrong while weights are fetched and models are exported.

AttuneError
├── WeightsError     a pretrained model could not be fetched
└── ExportError      a model could not be exported, or its export differs from the original
"""

from __future__ import annotations

from attune_client.protocol.errors import AttuneError

__all__ = ["ExportError", "WeightsError"]


class WeightsError(AttuneError):
    """No source gave the weights of a model, or what it gave has the wrong digest."""

    code = "weights"


class ExportError(AttuneError):
    """A model could not be exported, or the exported model does not answer as the original does."""

    code = "export"
