"""The emotion map: lexicons, clusters, the classifier, and the shipped artifacts.

Run: pytest tests/unit/test_emotion_map.py
"""

import json
import os
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import attune_training
from attune_client.protocol.models import EMOTION_CLASSIFIER
from attune_ensemble.knowledge import EMOTIONS_FILE, load_emotions
from attune_training.emotion_map import (
    EmotionClassifier,
    LexiconError,
    MapConfig,
    fit_emotion_map,
    load_emotion_classifier,
    load_emotion_map,
    octants_of,
    read_anchors,
    read_lexicon,
    report_clusters,
    split_terms,
    train_emotion_map,
)
from attune_training.emotion_map import command as mapping

ARTIFACTS = Path(attune_training.__file__).parent / "artifacts" / "emotion_map"
EMOTIONS = load_emotions()
LABELS = [emotion.label for emotion in EMOTIONS]


def ratings(count: int = 600) -> np.ndarray:
    """Random ratings on 0..1 that reach both ends."""
    points = np.random.default_rng(0).beta(1.5, 1.5, (count, 3))
    points = (points - points.min(0)) / (points.max(0) - points.min(0))
    return points.round(3)


def write_lexicon(path: Path, values: np.ndarray, header: str = "", separator: str = "\t", order=(0, 1, 2)) -> Path:
    rows = [separator.join([f"word{i}", *(f"{row[k]:.4f}" for k in order)]) for i, row in enumerate(values)]
    path.write_text("\n".join([*([header] if header else []), *rows]) + "\n", encoding="utf-8")
    return path


LAYOUTS = {
    "NRC VAD v1": (0, 1, "", "\t", (0, 1, 2)),
    "NRC VAD v1 with header": (0, 1, "Word\tValence\tArousal\tDominance", "\t", (0, 1, 2)),
    "NRC VAD v2.1": (-1, 1, "term\tvalence\tarousal\tdominance", "\t", (0, 1, 2)),
    "Glasgow Norms": (1, 9, "Word,Arousal,Valence,Dominance", ",", (1, 0, 2)),
    "CSV": (1, 5, "term,valence,arousal,dominance", ",", (0, 1, 2)),
}


@pytest.mark.parametrize(("low", "high", "header", "separator", "order"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read_onto_one_scale(tmp_path, low, high, header, separator, order):
    values = ratings()
    path = write_lexicon(tmp_path / "lexicon", low + (high - low) * values, header, separator, order)
    lexicon = read_lexicon(path)
    assert lexicon.scale == (low, high)
    assert lexicon.terms[:2] == ("word0", "word1")
    assert lexicon.vad == pytest.approx(1 + 4 * values, abs=1e-3)


def test_quotation_marks_are_part_of_a_term_or_around_it(tmp_path):
    values = ratings()
    tabs = write_lexicon(tmp_path / "tabs", values)
    tabs.write_text(tabs.read_text().replace("word0", '"quote', 1))
    assert read_lexicon(tabs).terms[0] == '"quote'
    commas = write_lexicon(tmp_path / "commas", values, "term,valence,arousal,dominance", ",")
    commas.write_text(commas.read_text().replace("word0", '"well, well"', 1))
    assert read_lexicon(commas).terms[0] == "well, well"


BAD_LEXICONS = {
    "empty": ("", "the lexicon is empty"),
    "no columns": ("term,valence\njoy,1\n", "header must name term"),
    "no term": ("valence,arousal,dominance\n1,2,3\n", "header must name term"),
    "columns without header": ("joy\t1\t2\n", "without a header"),
    "too few": ("joy\t1\t.5\t.5\n", "1 terms are too few"),
    "not a number": ("joy\t1\t.5\t.5\nwoe\t0\thigh\t.5\n", r"line 2: needs a term and three numbers, got .*'high'"),
    "NaN": ("joy\t1\t.5\t.5\nwoe\t0\tnan\t.5\n", "line 2"),
    "short row": ("term,valence,arousal,dominance\njoy,1,2\n", "line 2"),
}


@pytest.mark.parametrize(("text", "message"), BAD_LEXICONS.values(), ids=BAD_LEXICONS)
def test_a_bad_lexicon_is_refused(tmp_path, text, message):
    path = tmp_path / "lexicon"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LexiconError, match=message):
        read_lexicon(path)


@pytest.mark.parametrize(("low", "high"), [(0, 100), (-3, 3), (0.0, 0.3), (2.0, 3.0)])
def test_an_unknown_scale_is_never_guessed(tmp_path, low, high):
    path = write_lexicon(tmp_path / "lexicon", low + (high - low) * ratings())
    with pytest.raises(LexiconError, match=r"none of the known scales 0\.\.1, -1\.\.1, 1\.\.5, 1\.\.9"):
        read_lexicon(path)


def test_a_missing_lexicon_is_named(tmp_path):
    with pytest.raises(LexiconError, match=r"cannot read the lexicon .*nowhere"):
        read_lexicon(tmp_path / "nowhere")


def test_anchors_come_from_the_knowledge_base():
    anchors = read_anchors(EMOTIONS_FILE)
    assert list(anchors.labels) == LABELS
    assert anchors.vad.tolist() == [list(emotion.anchor) for emotion in EMOTIONS]


def test_a_file_without_anchors_is_refused(tmp_path):
    (tmp_path / "emotions.yaml").write_text("emotions: [{label: joy}]")
    with pytest.raises(LexiconError, match="needs a list 'emotions' with label and anchor"):
        read_anchors(tmp_path / "emotions.yaml")


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory):
    return read_lexicon(write_lexicon(tmp_path_factory.mktemp("lexicon") / "lexicon.txt", ratings(2000)))


def test_equation_20(lexicon):
    fitted = fit_emotion_map(lexicon, read_anchors(EMOTIONS_FILE), 1.0)
    scaled = fitted.normalise(lexicon.vad)
    assert scaled.min(0) == pytest.approx([-1, -1, -1])
    assert scaled.max(0) == pytest.approx([1, 1, 1])
    assert fitted.normalise(np.array([[3.0, 2.0, 4.0]])) == pytest.approx(np.array([[0.0, -0.5, 0.5]]))
    assert fitted.denormalise(scaled) == pytest.approx(lexicon.vad)


def test_plain_kmeans_is_a_fixed_point_of_equation_21(lexicon):
    fitted = fit_emotion_map(lexicon, read_anchors(EMOTIONS_FILE), 0.0)
    points, clusters = fitted.normalise(lexicon.vad), fitted.assign(lexicon.vad)
    means = np.stack([points[clusters == cluster].mean(0) for cluster in range(40)])
    assert fitted.centroids == pytest.approx(means, abs=1e-6)


def test_the_weight_of_the_anchors_keeps_clusters_at_their_emotions(lexicon):
    anchors = read_anchors(EMOTIONS_FILE)
    held = report_clusters(fit_emotion_map(lexicon, anchors, 1.0), lexicon, anchors)
    plain = report_clusters(fit_emotion_map(lexicon, anchors, 0.0), lexicon, anchors)
    assert (held.centroids_in_octant, held.anchors_in_cluster) == (40, 40)
    assert plain.centroids_in_octant < 40
    assert plain.inertia < held.inertia


def test_every_cluster_gives_its_share_to_each_part():
    clusters = np.repeat([0, 1, 2], [500, 100, 20])
    split = split_terms(clusters, held_out=0.1, seed=1)
    parts = (split.train, split.validation, split.test)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(620))
    assert [np.bincount(clusters[part]).tolist() for part in parts] == [[400, 80, 16], [50, 10, 2], [50, 10, 2]]
    assert not np.array_equal(split.test, split_terms(clusters, held_out=0.1, seed=2).test)


def test_the_command_trains_saves_and_loads(tmp_path, monkeypatch):
    """A short training on 2,000 made-up terms: far above chance (1/40) at once."""
    monkeypatch.setattr(mapping, "MapConfig", lambda **given: MapConfig(channels=32, epochs=3, steps=60, **given))
    write_lexicon(tmp_path / "lexicon.txt", ratings(2000))
    arguments = ["--lexicon", f"{tmp_path}/lexicon.txt", "--anchors", str(EMOTIONS_FILE), "--output", f"{tmp_path}/map"]
    outcome = CliRunner().invoke(mapping.emotion_map_command, arguments, catch_exceptions=False)
    metrics = json.loads(outcome.stdout)
    assert metrics["test"]["accuracy"] > 0.6
    assert set(metrics["test"]) == {"accuracy", "precision", "recall", "f1"}
    assert metrics["split"] == {"train": 1600, "validation": 200, "test": 200}
    assert metrics == json.loads((tmp_path / "map" / "metrics.json").read_text())
    classifier = load_emotion_classifier(tmp_path / "map")
    assert not classifier.training
    vad, probabilities = classifier(torch.tensor([[3.0]]), torch.tensor([[2.0, 4.0]]))
    assert vad.tolist() == [[3.0, 2.0, 4.0]]
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-6)


def test_the_command_reports_a_bad_lexicon_in_one_line(tmp_path):
    arguments = ["--lexicon", f"{tmp_path}/none", "--anchors", str(EMOTIONS_FILE), "--output", f"{tmp_path}/map"]
    outcome = CliRunner().invoke(mapping.emotion_map_command, arguments)
    assert outcome.exit_code == 1
    assert outcome.output.startswith("Error: cannot read the lexicon")


def test_training_repeats_itself(lexicon):
    config = MapConfig(channels=8, epochs=1, steps=5)
    console = Console(file=StringIO())
    first, second = (train_emotion_map(lexicon, read_anchors(EMOTIONS_FILE), config, console) for _ in range(2))
    assert first.metrics["test"] == second.metrics["test"]
    for one, other in zip(first.classifier.parameters(), second.classifier.parameters(), strict=True):
        assert torch.equal(one, other)


# What ships


@pytest.fixture(scope="module")
def classifier() -> EmotionClassifier:
    return load_emotion_classifier(ARTIFACTS)


def classify(classifier: EmotionClassifier, vad: np.ndarray) -> np.ndarray:
    rows = torch.tensor(vad, dtype=torch.float32)
    with torch.inference_mode():
        return classifier(rows[:, :1], rows[:, 1:])[1].numpy()


def test_the_shipped_map_is_of_the_shipped_knowledge_base():
    assert json.loads((ARTIFACTS / "labels.json").read_text()) == LABELS
    shipped = load_emotion_map(ARTIFACTS)
    anchors = np.array([emotion.anchor for emotion in EMOTIONS])
    assert shipped.assign(anchors).tolist() == list(range(40))
    assert octants_of(shipped.denormalise(shipped.centroids)) == [emotion.octant for emotion in EMOTIONS]


def test_the_shipped_classifier_knows_every_anchor(classifier):
    probabilities = classify(classifier, np.array([emotion.anchor for emotion in EMOTIONS]))
    assert probabilities.argmax(1).tolist() == list(range(40))


def test_the_shipped_classifier_is_the_nearest_centroid_in_the_whole_space(classifier):
    anywhere = np.random.default_rng(7).uniform(1, 5, (5000, 3))
    agreement = (classify(classifier, anywhere).argmax(1) == load_emotion_map(ARTIFACTS).assign(anywhere)).mean()
    assert agreement >= 0.975


GOLDEN = {
    "neutral": ((3.0, 2.5, 3.0), "composed"),
    "calm": ((3.75, 1.75, 3.25), "calm"),
    "happy": ((4.3, 3.7, 3.5), "happy"),
    "sad": ((1.9, 2.2, 2.2), "sad"),
    "angry": ((1.9, 4.0, 3.85), "angry"),
    "very angry": ((1.4, 4.5, 4.25), "furious"),
    "fearful": ((1.9, 3.8, 2.1), "fearful"),
    "disgust": ((2.0, 3.1, 3.2), "disgusted"),
}


@pytest.mark.parametrize(("vad", "label"), GOLDEN.values(), ids=GOLDEN)
def test_golden_emotions(classifier, vad, label):
    assert LABELS[int(classify(classifier, np.array([vad])).argmax())] == label


def test_the_shipped_classifier_exports(classifier, tmp_path):
    from attune_export.onnx_export import export_model

    assert export_model(classifier, EMOTION_CLASSIFIER, tmp_path / "model.onnx").max_deviation < 1e-5


def test_held_out_terms_of_the_glasgow_norms(classifier):
    """The accuracy that the model card gives; ATTUNE_DATA names the folder that holds glasgow/."""
    path = Path(os.environ.get("ATTUNE_DATA", "")) / "glasgow" / "glasgow_norms.csv"
    if not path.is_file():
        pytest.skip("needs the Glasgow Norms: set ATTUNE_DATA")
    vad = read_lexicon(path).vad
    clusters = load_emotion_map(ARTIFACTS).assign(vad)
    test = split_terms(clusters, MapConfig().held_out, MapConfig().seed).test
    accuracy = (classify(classifier, vad[test]).argmax(1) == clusters[test]).mean()
    assert accuracy == pytest.approx(json.loads((ARTIFACTS / "metrics.json").read_text())["test"]["accuracy"], abs=2e-3)
    assert accuracy >= 0.97
