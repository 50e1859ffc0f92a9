"""`sentence_encoder`: all-MiniLM-L6-v2 with its pooling, as a graph."""

from __future__ import annotations

from pathlib import Path

from attune_client.protocol.models import SENTENCE_ENCODER
from attune_client.protocol.profiles import EMBEDDED, GPU
from attune_export.digests import digests_of_exporter, digests_of_weights
from attune_export.parts import SENTENCE_MODEL, ExportOptions, Part, export_graph
from attune_export.served_model import ONE_THREAD, Kind, ServedModel, Settings
from attune_weights import fetch

__all__ = ["MODEL", "sentence_encoder_part"]


def sentence_encoder_part(options: ExportOptions) -> Part:
    """Return the sentence encoder's graph; the knowledge index depends on it too."""

    def build(target: Path) -> float:
        from attune_export.onnx_export import SentenceEncoder
        from attune_training.config import TextTowerConfig

        return export_graph(SentenceEncoder(TextTowerConfig(), fetch(SENTENCE_MODEL)), SENTENCE_ENCODER, target)

    made_from = digests_of_exporter() | digests_of_weights(SENTENCE_MODEL)
    return Part(SENTENCE_ENCODER.name, made_from, (SENTENCE_MODEL,), build)


# A request of long sentences takes half a gigabyte, which ONNX Runtime would keep; to give it back costs nothing.
_GIVES_BACK = {"memory.enable_memory_arena_shrinkage": "cpu:0"}

MODEL = ServedModel(
    SENTENCE_ENCODER,
    Kind.ONNX,
    settings={EMBEDDED: Settings(parameters=ONE_THREAD | _GIVES_BACK), GPU: Settings(on_gpu=True)},
    max_queue_delay_us=0,
    part=sentence_encoder_part,
)
