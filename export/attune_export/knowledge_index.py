"""Building the knowledge index: every emotion's description, embedded, in ChromaDB (paper, section III-E).

`attune export` calls it with the exported sentence encoder, so that index and server use the same embeddings.
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
from attune_ensemble.prompting.retrieval import COLLECTION, document_text
from attune_export.errors import ExportError

__all__ = ["build_index"]

Embed = Callable[[list[str]], npt.NDArray[np.float32]]


def build_index(emotions: Sequence[Emotion], embed: Embed, directory: Path) -> None:
    """Build the index of `emotions` in `directory`, replacing an existing one.

    `embed` maps N texts to [N, 384]. The index is built beside `directory` and moved into place when it is complete.

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
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as workshop:
        fresh = Path(workshop) / "new"
        _write_collection(emotions, documents, embeddings, fresh)
        if directory.exists():
            directory.replace(Path(workshop) / "old")
        fresh.replace(directory)


def _write_collection(
    emotions: Sequence[Emotion], documents: list[str], embeddings: npt.NDArray[np.float32], folder: Path
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
            metadatas=[{"label": emotion.label, "octant": emotion.octant} for emotion in emotions],
        )
    finally:
        client.close()
