"""The emotion map: lexicons, clusters, the classifier, and the shipped artifacts.

Run: pytest tests/unit/test_emotion_map.py
"""

import hashlib
import json
import os
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

import attune_training
from attune_client.protocol.models import EMOTION_CLASSIFIER
from attune_ensemble.prompting.knowledge import EMOTIONS_FILE, load_emotions
from attune_training.emotion_map import (
    Anchors,
    AnchorsError,
    EmotionClassifier,
    EmotionMap,
    Lexicon,
    LexiconError,
    MapConfig,
    OctantAgreement,
    Scale,
    command,
    fit_emotion_map,
    load_emotion_classifier,
    load_emotion_map,
    octant_agreement,
    octants_of,
    read_anchors,
    read_lexicon,
    report_clusters,
    split_terms,
    train_emotion_map,
)
from attune_training.emotion_map.command import emotion_map_command
from attune_training.emotion_map.fitting import memberships
from attune_training.emotion_map.synthetic import write_lexicon as write_made_up_lexicon

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
    "Warriner norms": (1, 9, "Word,V.Mean.Sum,A.Mean.Sum,D.Mean.Sum", ",", (0, 1, 2)),
    "CSV": (1, 5, "term,valence,arousal,dominance", ",", (0, 1, 2)),
    "semicolons": (1, 5, "lemma;V;A;D", ";", (0, 1, 2)),
}


@pytest.mark.parametrize(("low", "high", "header", "separator", "order"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read_onto_one_scale(tmp_path, low, high, header, separator, order):
    values = ratings()
    path = write_lexicon(tmp_path / "lexicon", low + (high - low) * values, header, separator, order)
    lexicon = read_lexicon(path)
    assert (lexicon.scale.low, lexicon.scale.high) == (low, high)
    assert f"near both ends of {low}..{high}" in lexicon.scale.evidence
    assert lexicon.terms[:2] == ("word0", "word1")
    assert lexicon.vad == pytest.approx(1 + 4 * values, abs=1e-3)


def test_columns_that_are_not_needed_are_not_read(tmp_path):
    rows = [f"{i},x,{v:.3f},,word{i},{a:.3f},{d:.3f}" for i, (v, a, d) in enumerate(ratings())]
    (tmp_path / "wide.csv").write_text("\n".join([",note,Valence,ValenceSD,Word,Arousal,Dominance", *rows]))
    lexicon = read_lexicon(tmp_path / "wide.csv")
    assert lexicon.terms[5] == "word5"
    assert lexicon.vad == pytest.approx(1 + 4 * ratings(), abs=1e-3)


def test_a_term_that_comes_again_counts_once_with_its_mean(tmp_path):
    values = ratings()
    path = write_lexicon(tmp_path / "lexicon", values)
    path.write_text(path.read_text() + "word3\t0.5\t0.5\t0.5\n" + "word4\t0.1\t0.1\t0.1\n")
    lexicon = read_lexicon(path)
    assert (len(lexicon.terms), lexicon.repeated) == (600, 2)
    assert lexicon.vad[3] == pytest.approx(1 + 4 * (values[3] + 0.5) / 2, abs=1e-3)
    assert lexicon.vad[5] == pytest.approx(1 + 4 * values[5], abs=1e-3)


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


# Where the ratings lie: outside every known scale, or within one but not to its ends.
UNDECIDED = {
    "0..100": (0, 100),
    "-3..3": (-3, 3),
    "a third of 0..1": (0.0, 0.3),
    "the middle of 1..5 or 1..9": (2.0, 4.0),
    "1..7": (1, 7),
    "three quarters of -1..1": (-0.5, 1.0),
}


@pytest.mark.parametrize(("low", "high"), UNDECIDED.values(), ids=UNDECIDED)
def test_an_undecided_scale_is_asked_for(tmp_path, low, high):
    path = write_lexicon(tmp_path / "lexicon", low + (high - low) * ratings())
    seen = rf"valence {low:g}\.\.{high:g}, arousal {low:g}\.\.{high:g}, dominance {low:g}\.\.{high:g}; this fits none"
    asks = r" of 0\.\.1, -1\.\.1, 1\.\.5, 1\.\.9\. Give it with --scale LOW HIGH"
    with pytest.raises(LexiconError, match=seen + asks):
        read_lexicon(path)
    lexicon = read_lexicon(path, (low, high))
    assert lexicon.scale == Scale(low, high, "given")
    assert lexicon.vad == pytest.approx(1 + 4 * ratings(), abs=1e-3)


def test_one_dimension_that_stops_short_leaves_the_scale_undecided(tmp_path):
    values = 1 + 8 * ratings()
    values[:, 2] = values[:, 2].clip(1, 6)
    with pytest.raises(LexiconError, match=r"valence 1\.\.9, arousal 1\.\.9, dominance 1\.\.6; this fits none"):
        read_lexicon(write_lexicon(tmp_path / "lexicon", values))


def test_nrc_vad_v2_without_a_negative_rating_is_asked_about(tmp_path):
    path = write_lexicon(tmp_path / "lexicon", ratings(), "term\tvalence\tarousal\tdominance")
    with pytest.raises(LexiconError, match=r"the layout is that of NRC VAD v2\.1 on -1\.\.1, the ratings fit 0\.\.1"):
        read_lexicon(path)
    assert read_lexicon(path, (-1, 1)).vad.min() == pytest.approx(3.0)


def test_a_rating_outside_the_given_scale_is_named(tmp_path):
    values = 1 + 4 * ratings()
    values[6] = (3.0, 5.5, 2.0)
    path = write_lexicon(tmp_path / "lexicon", values, "term\tvalence\tarousal\tdominance")
    with pytest.raises(LexiconError, match=r"line 8: 'word6' is rated \(3\.0, 5\.5, 2\.0\), outside the scale 1\.\.5"):
        read_lexicon(path, (1, 5))
    with pytest.raises(LexiconError, match="low end must be below its high end, got 5 and 1"):
        read_lexicon(path, (5, 1))


def test_a_missing_lexicon_is_named(tmp_path):
    with pytest.raises(LexiconError, match=r"cannot read the lexicon .*nowhere"):
        read_lexicon(tmp_path / "nowhere")


def test_anchors_come_from_the_knowledge_base():
    anchors = read_anchors()
    assert list(anchors.labels) == LABELS
    assert anchors.vad.tolist() == [list(emotion.anchor) for emotion in EMOTIONS]


def test_a_file_without_anchors_is_refused(tmp_path):
    for text, told in {
        "emotions: [{label: joy}]": "emotions.yaml, entry 1 .joy.: anchor must be numbers for valence",
        "emotions: [{anchor: {valence: 3, arousal: 3, dominance: 3}}]": "entry 1: needs a label of its own",
        "emotions: 3": "emotions.yaml must hold a list named 'emotions'",
    }.items():
        (tmp_path / "emotions.yaml").write_text(text)
        with pytest.raises(AnchorsError, match=told):
            read_anchors(tmp_path / "emotions.yaml")
    with pytest.raises(AnchorsError, match=r"cannot read the emotions of .*nowhere\.yaml"):
        read_anchors(tmp_path / "nowhere.yaml")


def test_other_emotions_than_the_knowledge_base_s_may_be_given(tmp_path):
    here = "{valence: 3, arousal: 3, dominance: 4.5}"
    entries = ", ".join(f"{{label: {label}, anchor: {here}}}" for label in ("calm", "at ease"))
    (tmp_path / "two.yaml").write_text(f"emotions: [{entries}]")
    anchors = read_anchors(tmp_path / "two.yaml")
    assert anchors.labels == ("calm", "at ease")
    assert anchors.vad.tolist() == [[3.0, 3.0, 4.5]] * 2


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


def test_octant_agreement_on_a_worked_example():
    """Two emotions; the scaling is the identity but for the shift from 1..5 to -1..1."""
    worked = EmotionMap(
        ("glad", "sad", "nowhere"),
        np.full(3, 1.0),
        np.full(3, 5.0),
        np.array([[0.5, 0.5, 0.5], [-0.5, 0.1, -0.5], [-1, 1, 1]]),
    )
    anchors = Anchors(worked.labels, np.array([[4.0, 4.0, 4.0], [2.0, 2.0, 2.0], [1.0, 5.0, 5.0]]))
    vad = np.array([[4, 4, 4], [4, 4, 3.5], [4, 4, 2.9], [3.5, 2.5, 4], [2, 2, 2], [2, 3.1, 2], [2.5, 3, 2.5]])
    lexicon = Lexicon(tuple("abcdefg"), vad, Scale(1, 5, "given"))
    assert octant_agreement(worked, lexicon, anchors) == [
        OctantAgreement("glad", "HHH", "HHH", terms=4, share_in_octant=0.5),
        OctantAgreement("sad", "LLL", "LHL", terms=3, share_in_octant=pytest.approx(2 / 3)),
        OctantAgreement("nowhere", "LHH", "LHH", terms=0, share_in_octant=None),
    ]
    report = report_clusters(worked, lexicon, anchors)
    assert (report.centroids_in_octant, report.anchors_in_cluster, report.without_terms) == (2, 3, ["nowhere"])
    assert report.terms_in_octant == pytest.approx(4 / 7)


# The classifier and its training


def test_the_classifier_is_the_papers(classifier):
    """Section III-D: two blocks of convolution, normalisation and pooling, a fully connected layer, softmax."""
    kinds = [[type(layer).__name__ for layer in block] for block in classifier.blocks]
    assert kinds == [["Conv1d", "BatchNorm1d", "AvgPool1d", "SiLU"]] * 2
    assert (classifier.blocks[0][0].in_channels, classifier.output.out_features) == (1, 40)
    shapes = []
    for block in classifier.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    _, probabilities, _ = classifier(torch.tensor([[3.0]]), torch.tensor([[2.0, 4.0]]))
    points = len(classifier.offsets)  # about VAD, beside VAD itself
    assert shapes == [(points, 32, 2), (points, 32, 1), (1, 32, 2), (1, 32, 1)]
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-6)


def test_memberships_on_a_worked_example():
    """At distances 0.1 and 0.3 and temperature 0.02: exp(-0.5) to exp(-4.5)."""
    centroids = torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.0, 0.0]])
    soft = memberships(torch.tensor([[0.1, 0.0, 0.0], [0.2, 1.0, 0.0]]), centroids, 0.02)
    assert soft[0, 0].item() == pytest.approx(1 / (1 + np.exp(-4.0)), rel=1e-5)
    assert soft[1].tolist() == pytest.approx([0.5, 0.5])
    assert memberships(torch.tensor([[0.19, 0.0, 0.0]]), centroids, 1e-5).tolist()[0] == pytest.approx([1.0, 0.0])


def test_a_small_problem_is_learnt_nearly_without_error():
    """Eight emotions, one an octant; chance is 1/8."""
    corners = np.array([[v, a, d] for v in (2.0, 4.0) for a in (2.0, 4.0) for d in (2.0, 4.0)])
    anchors = Anchors(tuple("abcdefgh"), corners)
    lexicon = Lexicon(tuple(f"word{i}" for i in range(2000)), 1 + 4 * ratings(2000), Scale(1, 5, "given"))
    config = MapConfig(channels=16, epochs=4, steps=50)
    metrics = train_emotion_map(lexicon, anchors, config, Console(file=StringIO())).metrics
    assert metrics["test"]["accuracy"] >= 0.97
    assert metrics["split"] == {"train": 1600, "validation": 200, "test": 200}


def test_a_made_up_lexicon_is_in_the_layout_of_nrc_vad_v2(tmp_path):
    write_made_up_lexicon(tmp_path / "lexicon.txt", 3000)
    assert (tmp_path / "lexicon.txt").read_text().startswith("term\tvalence\tarousal\tdominance\nterm0\t")
    lexicon = read_lexicon(tmp_path / "lexicon.txt")
    assert (len(lexicon.terms), lexicon.scale.low, lexicon.scale.high) == (3000, -1, 1)
    valence_to_dominance = np.corrcoef(lexicon.vad.T)[0, 2]
    assert 0.3 < valence_to_dominance < 0.6


# The command


def run_command(tmp_path: Path, *options: str, anchors: Path = EMOTIONS_FILE) -> Result:
    arguments = ["--lexicon", f"{tmp_path}/lexicon.txt", "--anchors", str(anchors), "--output", f"{tmp_path}/map"]
    return CliRunner().invoke(emotion_map_command, [*arguments, *options])


@pytest.mark.parametrize("options", [["--scale", "0", "nan"], ["--anchor-weight", "inf"]])
def test_numbers_that_are_none_are_refused(tmp_path, options):
    outcome = run_command(tmp_path, *options)
    assert outcome.exit_code == 2
    assert "is not a finite number" in outcome.output


@pytest.fixture
def briefly(monkeypatch):
    monkeypatch.setattr(command, "MapConfig", lambda **given: MapConfig(channels=16, epochs=2, steps=30, **given))


def test_the_command_trains_saves_and_loads(tmp_path, briefly):
    """A short training on 2,000 made-up terms: far above chance (1/40) at once."""
    write_made_up_lexicon(tmp_path / "lexicon.txt", 2000)
    outcome = run_command(tmp_path, "--json", "--seed", "3")
    assert outcome.exit_code == 0, outcome.output
    metrics = json.loads(outcome.stdout)
    assert metrics["test"]["accuracy"] > 0.5
    assert set(metrics["test"]) == set(metrics["paper"]) == {"accuracy", "precision", "recall", "f1"}
    assert metrics["split"] == {"train": 1600, "validation": 200, "test": 200}
    assert (metrics["scale"]["low"], metrics["scale"]["high"], metrics["config"]["seed"]) == (-1.0, 1.0, 3)
    assert [one["label"] for one in metrics["octants"]] == LABELS
    assert [one["octant"] for one in metrics["octants"]] == [emotion.octant for emotion in EMOTIONS]
    assert sum(one["terms"] for one in metrics["octants"]) == metrics["terms"] == 2000
    assert metrics["lexicon_sha256"] == hashlib.sha256((tmp_path / "lexicon.txt").read_bytes()).hexdigest()
    assert metrics == json.loads((tmp_path / "map" / "metrics.json").read_text())
    classifier = load_emotion_classifier(tmp_path / "map")
    assert not classifier.training
    assert classifier(torch.tensor([[3.0]]), torch.tensor([[2.0, 4.0]]))[0].tolist() == [[3.0, 2.0, 4.0]]
    picture = (tmp_path / "map" / "emotion_map.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 500_000
    assert "scale -1..1 (recognised" in outcome.stderr


def test_the_command_prints_tables_and_takes_a_scale(tmp_path, briefly):
    write_lexicon(tmp_path / "lexicon.txt", 7 * ratings(800))
    outcome = run_command(tmp_path, "--scale", "0", "7")
    assert outcome.exit_code == 0, outcome.output
    for words in ("held-out terms", "0.9220", "0.9253", "furious", "centroid in", "emotion_map.png"):
        assert words in outcome.stdout
    assert "scale 0..7 (given)" in outcome.stderr


def test_the_command_reports_bad_input_in_one_line(tmp_path):
    outcome = run_command(tmp_path)
    assert outcome.exit_code == 1
    assert outcome.output.startswith("Error: cannot read the lexicon")
    write_lexicon(tmp_path / "lexicon.txt", 7 * ratings())
    assert "Give it with --scale LOW HIGH" in run_command(tmp_path).output
    outcome = run_command(tmp_path, anchors=tmp_path / "lexicon.txt")
    assert outcome.exit_code == 1
    assert outcome.output.startswith("Error: cannot read the emotions of")
    assert outcome.output.count("\n") == 1


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
    assert agreement >= 0.99


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
    assert accuracy >= 0.99
