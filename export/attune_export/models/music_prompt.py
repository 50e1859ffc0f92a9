"""`music_prompt`: retrieval and the prompt; its part is the knowledge index."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from attune_client.protocol.models import MUSIC_PROMPT, TEXT_TOKENIZER
from attune_client.protocol.profiles import EMBEDDED, KNOWLEDGE_DIR, MODEL_FILE, TOKENIZER_FILE
from attune_export.digests import digests_of, digests_of_code, package_dir
from attune_export.models.sentence_encoder import sentence_encoder_part
from attune_export.parts import VERSION_DIR, ExportOptions, Part
from attune_export.served_model import Kind, Places, ServedModel, Settings

__all__ = ["MODEL"]


def _part(options: ExportOptions) -> Part:
    encoder = sentence_encoder_part(options)

    def build(target: Path) -> None:
        from attune_ensemble.prompting.knowledge import load_emotions
        from attune_export.embedding import SentenceEmbedder
        from attune_export.knowledge_index import build_index

        graph = options.repository / encoder.model / VERSION_DIR / encoder.name(MODEL_FILE, options.profile)
        tokenizer = options.repository / TEXT_TOKENIZER.name / VERSION_DIR / TOKENIZER_FILE
        build_index(load_emotions(), SentenceEmbedder(graph, tokenizer), target / KNOWLEDGE_DIR)

    made_from = {"sentence_encoder": encoder.fingerprint(), "chromadb": version("chromadb")}
    made_from |= digests_of_code("attune_export.knowledge_index", "attune_export.embedding")
    made_from |= digests_of_code("attune_ensemble.prompting.knowledge", "attune_ensemble.prompting.retrieval")
    made_from |= digests_of(package_dir("attune_ensemble.prompting.knowledge"), "*.yaml")
    return Part(MUSIC_PROMPT.name, made_from, (), build, shared=True)


MODEL = ServedModel(
    MUSIC_PROMPT,
    Kind.PYTHON,
    # A description takes milliseconds, so more requests may wait than for speech or music.
    settings={EMBEDDED: Settings(parameters={"prompt_writer": "template"}, places=Places(16, 64))},
    weights=KNOWLEDGE_DIR,
    part=_part,
)
