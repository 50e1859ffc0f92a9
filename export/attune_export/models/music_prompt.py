"""`music_prompt`: retrieval and the prompt; its part is the knowledge index, and BART where it summarises."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from attune_client.protocol.models import MUSIC_PROMPT, TEXT_TOKENIZER
from attune_client.protocol.profiles import (
    EMBEDDED,
    GPU,
    INDEX_DIR,
    KNOWLEDGE_DIR,
    MODEL_FILE,
    SENTENCES_TOKENIZER,
    TOKENIZERS_DIR,
    exported_name,
)
from attune_ensemble.prompting.writers.bart import MODEL_DIR
from attune_ensemble.prompting.writers.writer import BART, TEMPLATE, Summary
from attune_export.digests import Digests, digests_of, digests_of_code, digests_of_weights, package_dir
from attune_export.errors import ExportError
from attune_export.models.sentence_encoder import sentence_encoder_part
from attune_export.parts import NO_BART, VERSION_DIR, ExportOptions, Part, Substitute
from attune_export.served_model import Kind, Places, ServedModel, Settings
from attune_weights import fetch

__all__ = ["MODEL"]

BART_LARGE_CNN = "bart-large-cnn"
_USUAL_BART = {EMBEDDED: NO_BART, GPU: BART_LARGE_CNN}


def _part(options: ExportOptions) -> Part:
    """Return the index, with the template's summaries or BART's, by the name of pinned weights or a folder."""
    source = options.bart or options.profile.choose(_USUAL_BART) or NO_BART
    template = _part_with_template(options)
    if source == NO_BART:
        return template
    if source == BART_LARGE_CNN:
        says = (
            f"{MUSIC_PROMPT.name}: the template summarises instead. Export again where the weights can be fetched, or "
            "name a folder that holds them with --bart DIR"
        )
        substitute = Substitute(template, says)
        return _part_with_bart(options, digests_of_weights(source), lambda: fetch(source), (source,), substitute)
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise ExportError(f"{source} is neither a folder with a BART checkpoint nor one of {BART_LARGE_CNN}, {NO_BART}")
    return _part_with_bart(options, digests_of(folder), lambda: folder)


def _part_with_template(options: ExportOptions) -> Part:
    def build(target: Path) -> None:
        _build_index(options, target / KNOWLEDGE_DIR / INDEX_DIR)

    return Part(MUSIC_PROMPT.name, _digests(options) | {"summaries": TEMPLATE}, (), build)


def _part_with_bart(
    options: ExportOptions,
    checkpoint: Digests,
    locate: Callable[[], Path],
    weights: tuple[str, ...] = (),
    instead: Substitute | None = None,
) -> Part:
    def build(target: Path) -> float:
        from attune_ensemble.call import UNLIMITED
        from attune_ensemble.prompting.knowledge import load_emotions
        from attune_ensemble.prompting.summarising import BartSummariser
        from attune_export.summariser import convert_bart, measure_deviation

        converted = target / KNOWLEDGE_DIR / MODEL_DIR
        converted.parent.mkdir()
        convert_bart(locate(), converted)
        deviation = measure_deviation(locate(), converted, [load_emotions()[0].description])
        # float32: the summaries that are stored are as good as the weights, whatever the server computes with.
        summariser = BartSummariser(converted, "cpu", "float32", threads=0)
        try:
            _build_index(
                options,
                target / KNOWLEDGE_DIR / INDEX_DIR,
                lambda text: Summary(summariser.summarise(text, context=UNLIMITED), BART),
            )
        finally:
            summariser.close()
        return deviation

    code = digests_of_code("attune_export.summariser", "attune_ensemble.prompting.summarising")
    packages = {name: version(name) for name in ("ctranslate2", "tokenizers", "transformers")}
    made_from = _digests(options) | {"summaries": BART} | checkpoint | code | packages
    return Part(MUSIC_PROMPT.name, made_from, weights, build, instead=instead)


def _build_index(options: ExportOptions, directory: Path, summarise: Callable[[str], Summary] | None = None) -> None:
    from attune_ensemble.prompting.knowledge import load_emotions
    from attune_ensemble.prompting.writers import template
    from attune_export.embedding import SentenceEmbedder
    from attune_export.knowledge_index import build_index

    encoder = sentence_encoder_part(options)
    graph = options.repository / encoder.model / VERSION_DIR / encoder.name(MODEL_FILE, options.profile)
    tokenizers = options.repository / TEXT_TOKENIZER.name / VERSION_DIR / exported_name(TOKENIZERS_DIR, options.profile)
    embedder = SentenceEmbedder(graph, tokenizers / SENTENCES_TOKENIZER)
    build_index(load_emotions(), embedder, directory, summarise or template.summarise)


def _digests(options: ExportOptions) -> Digests:
    made_from = {"sentence_encoder": sentence_encoder_part(options).fingerprint(), "chromadb": version("chromadb")}
    made_from |= digests_of_code("attune_export.knowledge_index", "attune_export.embedding")
    made_from |= digests_of_code("attune_ensemble.prompting.knowledge", "attune_ensemble.prompting.retrieval")
    made_from |= digests_of_code("attune_ensemble.prompting.writers.template")
    return made_from | digests_of(package_dir("attune_ensemble.prompting.knowledge"), "*.yaml")


MODEL = ServedModel(
    MUSIC_PROMPT,
    Kind.PYTHON,
    settings={
        # A description takes milliseconds, so more requests may wait than for speech or music.
        EMBEDDED: Settings(parameters={"prompt_writer": TEMPLATE}, places=Places(16, 64)),
        # One summary of free text at a time; those of the 40 descriptions are read from the index.
        GPU: Settings(
            on_gpu=True,
            parameters={"prompt_writer": BART, "compute_type": "float16", "threads": "4"},
            places=Places(16, 64),
        ),
    },
    weights=KNOWLEDGE_DIR,
    part=_part,
)
