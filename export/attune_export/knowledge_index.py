"""Building the knowledge index: every emotion's description, embedded and summarised, in ChromaDB (paper, III-E, F).

`attune export` calls it with the exported sentence encoder, so that index and server use the same embeddings, and with
what summarises in that profile: a summary depends on its description alone, so it is made here, once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.models import EMBEDDING_DIM
from attune_ensemble.prompting.knowledge import Emotion
from attune_ensemble.prompting.retrieval import COLLECTION, SUMMARY, SUMMARY_WRITER, document_text
from attune_ensemble.prompting.writers import template
from attune_ensemble.prompting.writers.writer import Summary
from attune_export.errors import ExportError

__all__ = ["build_index"]

Embed = Callable[[list[str]], npt.NDArray[np.float32]]
Summarise = Callable[[str], Summary]


def build_index(
    emotions: Sequence[Emotion], embed: Embed, directory: Path, summarise: Summarise = template.summarise
) -> None:
    """Build the index of `emotions` in `directory`, replacing an existing one.

    `embed` maps N texts to [N, 384]; `summarise` makes the summary that is stored with a description. The index is
    built beside `directory` and moved into place when it is complete.

    Raises:
        ExportError: the embeddings have another shape or are not finite.
    """
    documents = [document_text(emotion) for emotion in emotions]
    embeddings = np.asarray(embed(documents), np.float32)
    if embeddings.shape != (len(documents), EMBEDDING_DIM) or not np.isfinite(embeddings).all():
        raise ExportError(
            f"the knowledge index needs finite embeddings [{len(documents)}, {EMBEDDING_DIM}], "
            f"got {list(embeddings.shape)}"
        )
    summaries = [summarise(emotion.description) for emotion in emotions]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as workshop:
        fresh = Path(workshop) / "new"
        _write_collection(emotions, summaries, documents, embeddings, fresh)
        if directory.exists():
            directory.replace(Path(workshop) / "old")
        fresh.replace(directory)


def _write_collection(
    emotions: Sequence[Emotion],
    summaries: Sequence[Summary],
    documents: list[str],
    embeddings: npt.NDArray[np.float32],
    folder: Path,
) -> None:
    import chromadb

    client: Any = chromadb.PersistentClient(str(folder), settings=chromadb.Settings(anonymized_telemetry=False))
    try:
        # Embeddings are given, so no embedding function is set: chromadb's default would be downloaded.
        collection = client.create_collection(
            COLLECTION, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )
        collection.add(
            ids=[emotion.label for emotion in emotions],
            embeddings=embeddings,
            documents=documents,
            metadatas=[_note(emotion, summary) for emotion, summary in zip(emotions, summaries, strict=True)],
        )
    finally:
        client.close()


def _note(emotion: Emotion, summary: Summary) -> dict[str, str]:
    return {
        "label": emotion.label,
        "octant": emotion.octant,
        SUMMARY: summary.text,
        SUMMARY_WRITER: summary.writer,
    }
