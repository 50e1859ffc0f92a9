"""The knowledge index: built, opened, searched; each emotion finds itself.

Run: pytest tests/unit/test_retrieval.py
"""

import gc
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attune_client.protocol.errors import InvalidOption
from attune_ensemble.prompting.knowledge import KnowledgeError, load_emotions
from attune_ensemble.prompting.retrieval import KnowledgeIndex, document_text, query_text
from attune_export.errors import ExportError
from attune_export.knowledge_index import build_index

EMOTIONS = load_emotions()
REPOSITORY = Path(__file__).parents[2] / "model_repository"


def embed(texts: list[str]) -> np.ndarray:
    """A stand-in for MiniLM: counted words, each in a direction of its own."""
    return np.stack([_direction_of(text) for text in texts])


def _direction_of(text: str) -> np.ndarray:
    total = np.zeros(384, np.float32)
    for word in text.lower().replace(".", " ").split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
        total += np.random.default_rng(seed).normal(size=384).astype(np.float32)
    return total / np.linalg.norm(total)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "knowledge"
    build_index(EMOTIONS, embed, path)
    return path


@pytest.fixture(scope="module")
def index(directory):
    return KnowledgeIndex(directory, EMOTIONS)


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("emotion", EMOTIONS, ids=[emotion.label for emotion in EMOTIONS])
def test_each_document_finds_its_emotion(index, emotion):
    [query] = embed([document_text(emotion)])
    found = index.search(query, None)
    assert found.emotion is emotion
    assert found.similarity == pytest.approx(1.0, abs=1e-5)


def test_closing_removes_the_private_copy(directory, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    index = KnowledgeIndex(directory, EMOTIONS)
    assert list(tmp_path.iterdir())
    index.close()
    assert not list(tmp_path.iterdir())


def test_similarity_is_the_cosine_whatever_the_length(index):
    sad = next(emotion for emotion in EMOTIONS if emotion.label == "sad")
    query, document = embed([query_text("sad"), document_text(sad)])
    found = index.search(7 * query, "LLL")
    assert found.emotion is sad
    assert found.similarity == pytest.approx(float(query @ document), abs=1e-5)


def test_the_octant_limits_the_search(index):
    excited = EMOTIONS[0]
    [query] = embed([document_text(excited)])
    assert index.search(query, "HHH").emotion is excited
    elsewhere = index.search(query, "LLL")
    assert elsewhere.emotion.octant == "LLL"
    assert elsewhere.similarity < 0.9


@pytest.mark.parametrize(
    "embedding",
    [np.zeros(384), np.ones(383), np.ones((1, 384)), np.full(384, np.nan)],
    ids=["zero", "short", "2-d", "nan"],
)
def test_an_embedding_that_is_none_is_refused(index, embedding):
    with pytest.raises(InvalidOption, match="384 finite numbers"):
        index.search(embedding, None)


def test_labels_limit_the_search(index):
    excited, *others = EMOTIONS
    query = embed([document_text(excited)])[0]
    labels = [emotion.label for emotion in others]
    assert index.search(query, None, [excited.label, *labels]).emotion is excited
    assert index.search(query, None, labels[7:]).emotion in others[7:]
    assert index.search(query, None, labels[-1:]).emotion is others[-1]


def test_an_unknown_octant_is_refused(index):
    with pytest.raises(InvalidOption, match=r"octant must be one of HHH, .*'hhh'"):
        index.search(np.ones(384), "hhh")


def test_searching_leaves_the_index_as_it_was(directory):
    before = state_of(directory)
    KnowledgeIndex(directory, EMOTIONS).search(np.ones(384), "LLL")
    assert state_of(directory) == before


def test_a_missing_index_says_what_builds_it(tmp_path):
    with pytest.raises(KnowledgeError, match=r"there is no knowledge index in .*`attune export` builds it"):
        KnowledgeIndex(tmp_path / "knowledge", EMOTIONS)
    assert not list(tmp_path.iterdir()), "nothing is created by looking"


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_damaged_index_says_what_rebuilds_it(tmp_path, content):
    (tmp_path / "chroma.sqlite3").write_bytes(content)
    with pytest.raises(KnowledgeError, match=r"incomplete or damaged.*`attune export` rebuilds it"):
        KnowledgeIndex(tmp_path, EMOTIONS)


def test_an_index_of_another_knowledge_base_is_refused(directory):
    edited = (replace(EMOTIONS[0], description="Silence."), *EMOTIONS[1:])
    with pytest.raises(KnowledgeError, match="another knowledge base; `attune export` rebuilds it"):
        KnowledgeIndex(directory, edited)


def test_building_again_replaces_the_index(tmp_path):
    path = tmp_path / "deep" / "knowledge"
    build_index(EMOTIONS, embed, path)
    edited = (replace(EMOTIONS[0], description="Silence."), *EMOTIONS[1:])
    build_index(edited, embed, path)
    assert KnowledgeIndex(path, edited).search(embed([document_text(edited[0])])[0], None).emotion is edited[0]
    assert [child.name for child in path.parent.iterdir()] == ["knowledge"]


@pytest.mark.parametrize("bad", [np.ones((40, 768)), np.ones((39, 384)), np.full((40, 384), np.inf)])
def test_bad_embeddings_leave_the_old_index(tmp_path, bad):
    path = tmp_path / "knowledge"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(ExportError, match=r"finite embeddings \[40, 384\]"):
        build_index(EMOTIONS, lambda _: bad, path)
    assert (path / "old").exists()


@pytest.fixture(scope="module")
def minilm():
    """The exported encoder that the server embeds with."""
    from attune_export.embedding import SentenceEmbedder

    model, tokenizer = (
        REPOSITORY / "sentence_encoder/1/model.onnx",
        REPOSITORY / "text_tokenizer/1/tokenizers/sentences.json",
    )
    if not model.is_file() or not tokenizer.is_file():
        pytest.skip("run `attune export` first")
    return SentenceEmbedder(model, tokenizer)


@pytest.fixture(scope="module")
def minilm_index(minilm, tmp_path_factory):
    path = tmp_path_factory.mktemp("minilm") / "knowledge"
    build_index(EMOTIONS, minilm, path)
    return KnowledgeIndex(path, EMOTIONS)


def test_every_emotion_retrieves_itself(minilm, minilm_index):
    queries = minilm([query_text(emotion.label) for emotion in EMOTIONS])
    found = [minilm_index.search(query, emotion.octant) for query, emotion in zip(queries, EMOTIONS, strict=True)]
    assert [hit.emotion.label for hit in found] == [emotion.label for emotion in EMOTIONS]
    assert min(hit.similarity for hit in found) == pytest.approx(0.654, abs=0.01)
    assert max(hit.similarity for hit in found) == pytest.approx(0.856, abs=0.01)
    everywhere = [minilm_index.search(query, None).emotion.label for query in queries]
    assert everywhere == [emotion.label for emotion in EMOTIONS], "even without the octant"


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("I feel so alone since she left", "lonely"),
        ("I'm so mad at my boss I could scream", "angry"),
        ("I lost my father last month", "grieving"),
        ("I have an exam tomorrow and I can't stop worrying", "anxious"),
        ("we won the championship!", "triumphant"),
        ("everything is too much right now", "overwhelmed"),
        ("music to fall asleep", "sleepy"),
    ],
)
def test_free_words_find_a_fitting_emotion(minilm, minilm_index, words, label):
    assert minilm_index.search(minilm([words])[0], None).emotion.label == label


def test_copies_of_the_index_go_when_they_are_not_used(directory, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "attune-index-of-a-killed-process"
    left.mkdir()
    os.utime(left, (0, 0))
    index = KnowledgeIndex(directory, EMOTIONS)
    assert not left.exists()
    [copy] = tmp_path.iterdir()
    assert copy.stat().st_mode & 0o777 == 0o700
    del index
    gc.collect()
    assert not copy.exists()
