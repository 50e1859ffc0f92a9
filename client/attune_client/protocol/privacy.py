"""Nothing calls home: what the libraries' own switches are called, in one place.

Every process that Attune starts has `NO_TELEMETRY` in its environment before a library is imported: the `attune`
command and what it starts, the server and its models, the container. The server's processes have `OFFLINE` too,
because all that they read was placed by `attune export`.
"""

from __future__ import annotations

__all__ = ["NO_TELEMETRY", "OFFLINE"]

NO_TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: usage events, and an id in the temporary folder
    "ANONYMIZED_TELEMETRY": "False",  # ChromaDB
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and through it transformers and datasets
    "DISABLE_TELEMETRY": "1",  # older transformers
    "DO_NOT_TRACK": "1",  # whoever keeps to the common switch: huggingface_hub, Lightning, Gradio
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray
    "WANDB_MODE": "disabled",  # Weights & Biases, which transformers' trainer uses where it is installed
}
"""Environment variables that switch telemetry off."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Environment variables that keep the hub's clients from asking for files."""
