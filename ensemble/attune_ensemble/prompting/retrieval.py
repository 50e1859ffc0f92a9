"""Retrieval: the music description nearest to a query (paper, section III-E).

The index is a ChromaDB collection (HNSW, cosine) of the knowledge base's descriptions, with the summary of each and the
name of its writer; `attune export` builds it.
Importing chromadb takes about a second and 75 MB, so it happens when an index is opened.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import InvalidOption
from attune_client.protocol.models import EMBEDDING_DIM
from attune_ensemble.prompting.knowledge import OCTANTS, Emotion, KnowledgeError
from attune_ensemble.prompting.writers.writer import Summary
from attune_ensemble.serving.scratch import Scratch, clear_abandoned, new_name

__all__ = [
    "COLLECTION",
    "SUMMARY",
    "SUMMARY_WRITER",
    "KnowledgeIndex",
    "Retrieved",
    "document_text",
    "query_text",
]

COLLECTION = "emotions"
"""Name of the collection inside the index."""

SUMMARY, SUMMARY_WRITER = "summary", "summary_writer"
"""Names, in an entry's metadata, of the description's summary and of its writer."""

_COPY_PREFIX = "attune-index-"
_DATABASE_FILE = "chroma.sqlite3"


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The entry nearest to a query, their cosine similarity, -1..1 (equation 23), and its description's summary."""

    emotion: Emotion
    similarity: float
    summary: Summary


def query_text(label: str) -> str:
    """Return the query text of a predicted emotion."""
    return f"{label} music for a {label} mood"


def document_text(emotion: Emotion) -> str:
    """Return the text that is indexed for an emotion: its query, therapeutic objective and description.

    The label is repeated at the end: with it only in front, similar emotions are confused.
    """
    return f"{query_text(emotion.label)}. {emotion.objective} {emotion.description} {emotion.label}."


class KnowledgeIndex:
    """An open knowledge index.

    The database writes to its files even for queries. So a private copy is opened (under half a megabyte): the model
    repository may be read-only, and several processes may share it.
    """

    def __init__(self, directory: Path, emotions: Sequence[Emotion]) -> None:
        """Open the index in `directory` for the knowledge base that it was built from.

        Raises:
            KnowledgeError: there is no index, or it was built from other emotions.
        """
        if not (directory / _DATABASE_FILE).is_file():
            raise KnowledgeError(f"there is no knowledge index in {directory}; `attune export` builds it")
        self._by_label = {emotion.label: emotion for emotion in emotions}
        for _ in clear_abandoned(_COPY_PREFIX):
            pass
        copy = Scratch(new_name(_COPY_PREFIX))
        self._remove_copy = weakref.finalize(self, copy.remove)
        shutil.copytree(directory, copy.path, dirs_exist_ok=True)
        for path in (copy.path, *copy.path.rglob("*")):  # the original may be read-only
            path.chmod(0o700 if path.is_dir() else 0o600)
        self._client, self._collection = _open(copy.path, directory)
        self._summaries = self._check_content(directory)

    def search(
        self, query_embedding: npt.NDArray[np.float32], octant: str | None, among: Collection[str] | None = None
    ) -> Retrieved:
        """Return the entry nearest to `query_embedding` [384], within `octant` or, for None, in all of them.

        `among` are labels, not none, of which it must be one.

        Raises:
            InvalidOption: the embedding has another shape, is zero or not finite, or the octant is unknown.
        """
        query = np.asarray(query_embedding, np.float32)
        if query.shape != (EMBEDDING_DIM,) or not np.isfinite(query).all() or not query.any():
            raise InvalidOption(f"the query embedding must be {EMBEDDING_DIM} finite numbers, not all 0")
        if octant is not None and octant not in OCTANTS:
            raise InvalidOption(f"octant must be one of {', '.join(OCTANTS)}; got {octant!r}")
        found = self._collection.query(
            query_embeddings=query[None],  # [1, 384]
            ids=None if among is None else list(among),
            n_results=1,
            where=None if octant is None else {"octant": octant},
            include=["distances"],
        )
        label, distance = found["ids"][0][0], found["distances"][0][0]
        return Retrieved(self._by_label[label], float(np.clip(1.0 - distance, -1.0, 1.0)), self._summaries[label])

    def close(self) -> None:
        """Close the database and remove the private copy; nothing can be searched for afterwards."""
        self._client.close()
        self._remove_copy()

    def _check_content(self, directory: Path) -> dict[str, Summary]:
        """Return the stored summaries by label."""
        stored = self._collection.get(include=["documents", "metadatas"])
        indexed = dict(zip(stored["ids"], stored["documents"], strict=True))
        notes = dict(zip(stored["ids"], stored["metadatas"], strict=True))
        expected = {label: document_text(emotion) for label, emotion in self._by_label.items()}
        if indexed != expected or not all({SUMMARY, SUMMARY_WRITER} <= note.keys() for note in notes.values()):
            raise KnowledgeError(
                f"the knowledge index in {directory} was built from another knowledge base; `attune export` rebuilds it"
            )
        return {label: Summary(note[SUMMARY], note[SUMMARY_WRITER]) for label, note in notes.items()}


def _open(copy: Path, directory: Path) -> tuple[Any, Any]:
    """Return the database's client and its collection."""
    import chromadb

    try:
        client = chromadb.PersistentClient(str(copy), settings=chromadb.Settings(anonymized_telemetry=False))
        return client, client.get_collection(COLLECTION, embedding_function=None)
    except Exception as error:  # chromadb raises unrelated types of exceptions for a damaged database
        raise KnowledgeError(
            f"the knowledge index in {directory} is incomplete or damaged ({error}); `attune export` rebuilds it"
        ) from error
