"""Tables I and II on a miniature, end to end: both splits, resuming, failing rows, and the paper's arithmetic.

.venv/bin/pytest tests/unit/test_experiments.py
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from attune_training.data.corpus import open_corpus
from attune_training.data.splits import SplitError
from attune_training.data.utterance import Utterance
from attune_training.evaluation import report
from attune_training.experiments import runs
from attune_training.experiments.command import experiments
from attune_training.experiments.paper import checks, paper
from attune_training.experiments.plan import choose_splits, plan_runs, table_rows
from attune_training.experiments.runs import Measured, Subject, measure
from attune_training.fitting import run as fitting
from attune_training.fitting.settings import CorpusSettings, load_recipe
from tests.miniature import write_manifest

ARCHITECTURES = [
    "gru-shared",
    "gru-separate",
    "transformer-shared",
    "transformer-separate",
    "cross-modal-joint",
    "cross-modal-separate",
]
ADAPTERS = ["lora-4-8", "lora-8-16", "lora-16-32"]
SPLITS = ["stratified", "leave-one-session-out:5"]


class CountedFits:
    """Stands for ``fit``: counts its calls, and breaks off at the one numbered ``interrupt_at``."""

    def __init__(self, interrupt_at=None):
        self.folders, self.interrupt_at = [], interrupt_at

    def __call__(self, recipe, target, paths, folder, **more):
        if len(self.folders) == self.interrupt_at:
            raise KeyboardInterrupt
        self.folders.append(folder)
        return fitting.fit(recipe, target, paths, folder, **more)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """A bootstrap of few samples, and no pictures of single runs: both have their own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_RESAMPLES", 30)
        patch.setattr(fitting, "draw_curves", lambda *_: None)
        patch.setattr(fitting, "draw_predictions", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    write_manifest(folder / "mini")
    recipe = {
        "model": {"towers": "tiny"},
        "optimisation": {"epochs": 1, "batch_size": 4, "words_batch_size": 4, "learning_rate": 3e-3},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def invoke(folder, table, *more, output=None, fits=None):
    fits = fits or CountedFits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "fit", fits)
        result = CliRunner().invoke(
            experiments,
            [
                table,
                *("--data", f"manifest={folder / 'mini' / 'manifest.csv'}"),
                *("--recipe", str(folder / "recipe.yaml")),
                *("--output", str(output or folder / table)),
                *("--json", *more),
            ],
        )
    return result, fits


@pytest.fixture(scope="module")
def table1(folder):
    """Table I, broken off after three of its fourteen runs and started again."""
    broken, before = invoke(folder, "table1", fits=CountedFits(interrupt_at=3))
    assert broken.exit_code == 1
    assert not (folder / "table1" / "results.json").exists()
    result, after = invoke(folder, "table1")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), before.folders, after.folders


@pytest.fixture(scope="module")
def table2(folder):
    result, fits = invoke(folder, "table2")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), fits.folders


def recipe_of(folder, corpus="manifest"):
    recipe = load_recipe(str(folder / "recipe.yaml"))
    return replace(recipe, corpora={corpus: CorpusSettings("manifest")})


def subject_of(folder, name="manifest"):
    path = folder / "mini" / "manifest.csv"
    return Subject(name, path, open_corpus("manifest", path))


def test_a_broken_off_table_goes_on_where_it_stopped(folder, table1):
    _, before, after = table1
    assert len(before) == 3
    assert len(before + after) == len(set(before + after)) == 14
    again, fits = invoke(folder, "table1")
    assert again.exit_code == 0
    assert fits.folders == []


def test_table1_measures_every_architecture_on_both_kinds_of_split(table1):
    record, _, _ = table1
    assert [row["row"] for row in record["rows"]] == ARCHITECTURES
    assert [(split["split"], split["speaker_independent"]) for split in record["splits"]] == list(
        zip(SPLITS, (False, True), strict=True)
    )
    for row in record["rows"]:
        for result in row["results"].values():
            losses = [result["dimensions"][name]["loss"] for name in ("valence", "arousal", "dominance")]
            assert result["mean_loss"] == pytest.approx(sum(losses) / 3)
            assert result["trained_parameters"] < result["total_parameters"]
            assert result["checkpoint_bytes"] < result["full_checkpoint_bytes"] >= 4 * result["total_parameters"]
            assert len(result["folders"]) == (2 if row["row"] == "cross-modal-separate" else 1)


def test_each_run_has_its_row_s_architecture_and_no_adapters(folder, table1):
    for row in table1[0]["rows"]:
        for split, result in row["results"].items():
            for run in result["folders"]:
                recipe = load_recipe(f"{run}/recipe.yaml")
                assert recipe.model.architecture == row["row"]
                assert recipe.model.lora is None
                assert recipe.corpora["manifest"].split == split


def test_table2_measures_every_adapter(table2):
    record, folders = table2
    assert len(folders) == 12
    assert [row["row"] for row in record["rows"]] == ADAPTERS
    sizes = [row["results"]["stratified"]["trained_parameters"] for row in record["rows"]]
    assert sizes == sorted(set(sizes))
    ranks = {
        (recipe.model.lora.rank, recipe.model.lora.alpha)
        for recipe in (load_recipe(str(folder / "recipe.yaml")) for folder in folders)
    }
    assert ranks == {(4, 8), (8, 16), (16, 32)}


def test_the_report_sets_the_splits_and_the_paper_side_by_side(folder, table2):
    record, _ = table2
    text = (folder / "table2" / "results.md").read_text()
    assert json.loads((folder / "table2" / "results.json").read_text()) == record
    average = next(line for line in text.splitlines() if line.startswith("| LoRA (16, 32) |"))
    cells = [cell.strip() for cell in average.strip("|").split("|")]
    ours = [f"{record['rows'][2]['results'][split]['mean_loss']:.4f}" for split in SPLITS]
    assert cells == ["LoRA (16, 32)", "0.1461", "0.1794", *ours]
    valence = text.partition("## Valence")[2].partition("##")[0]
    header, row = (line for line in valence.splitlines() if re.match(r"\| (model|LoRA \(4, 8\)) \|", line))
    for label in ("random, stratified", "session 5 left out"):
        assert all(f"{measure}: {label}" in header for measure in ("loss", "PCC", "CCC", "RMSE", "n"))
    assert "| 0.2947 |" in row
    assert "| 0.7478 |" in row
    scored = record["rows"][0]["results"]["stratified"]["dimensions"]["valence"]
    interval = scored["ccc_interval"]
    assert f"{scored['ccc']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]" in row
    for said in (
        "voices it never heard",
        "~50 | ~2000",
        "does not follow: 0.1794 instead",
        "Hardware: ",
        "Seeds: one, 0",
    ):
        assert said in text


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_the_picture_shows_something(folder, table, request):
    request.getfixturevalue(table)
    pixels = matplotlib.image.imread(folder / table / "results.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    for colour in ("C0", "C1"):  # the marks of the two splits
        assert np.isclose(pixels[..., :3], matplotlib.colors.to_rgb(colour), atol=0.01).all(axis=-1).sum() > 500


def test_a_failing_row_leaves_the_others_alone(folder, table1, tmp_path):
    shutil.copytree(folder / "table1" / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs" / "gru-separate").rglob("metrics.json"):
        path.unlink()

    def fail(*_, **__):
        raise RuntimeError("out of memory: tried to allocate\nmore than there is")

    result, _ = invoke(folder, "table1", output=tmp_path, fits=fail)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    rows = {row["row"]: row["results"] for row in json.loads(result.stdout.splitlines()[-1])["rows"]}
    reason = "RuntimeError: out of memory: tried to allocate"
    assert rows["gru-separate"] == {split: {"failed": reason} for split in SPLITS}
    assert rows["gru-shared"]["stratified"]["mean_loss"] == table1[0]["rows"][0]["results"]["stratified"]["mean_loss"]
    text = (tmp_path / "results.md").read_text()
    assert "| GRU (separate) | 0.4313 | – | failed | failed |" in text
    assert f"- GRU (separate), session 5 left out: {reason}" in text
    assert "more than there is" in next((tmp_path / "runs" / "gru-separate").rglob("failure.txt")).read_text()


def test_every_session_in_turn_is_pooled(folder, table1):
    recipe, subject = recipe_of(folder), subject_of(folder)
    (choice,) = choose_splits(["leave-one-session-out"], subject.corpus.utterances)
    row = table_rows("table1", recipe)[0]
    planned = plan_runs(row, choice, recipe, subject.name, folder / "table1")
    options = fitting.RunOptions(accelerator="cpu", progress_bar=False)
    lines = []
    cell = measure(planned, subject, options, lines.append)
    assert isinstance(cell, Measured), cell
    assert sum(line.startswith("finished before") for line in lines) == 1  # session 5 is Table I's own
    assert len(cell.folds) == 5
    total = len(subject.corpus.utterances)
    for name, pooled in cell.dimensions.items():
        assert pooled.count == sum(fold[name].count for fold in cell.folds.values()) == total
        squared = sum(fold[name].count * fold[name].rmse ** 2 for fold in cell.folds.values())
        assert pooled.rmse == pytest.approx((squared / total) ** 0.5, rel=1e-4)
    (planned[0].folder / "model" / "head.safetensors").unlink()  # predictions are read back, not recomputed
    assert measure(planned, subject, options, lines.append).dimensions == cell.dimensions


def test_another_recipe_in_the_folder_is_refused_before_anything_runs(folder, table1):
    result, fits = invoke(folder, "table1", "--epochs", "2")
    assert result.exit_code == 1
    assert "holds a run with other recipe" in result.stderr
    assert fits.folders == []


def test_two_tables_do_not_share_a_folder(folder, table1):
    result, fits = invoke(folder, "table2", output=folder / "table1")
    assert result.exit_code == 1
    assert "holds the results of table1" in result.stderr
    assert fits.folders == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--data", "x"], 2, "write NAME=PATH"),
        (["--data", "nothing=x"], 2, "the kinds are iemocap"),
        (["--data", "manifest=missing.csv"], 1, "is not a manifest"),
    ],
)
def test_an_error_is_reported_in_one_line(arguments, status, message, tmp_path):
    result = CliRunner().invoke(experiments, ["table1", *arguments, "--output", str(tmp_path)])
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.output


# Which splits


def utterances(speakers=4, sessions=(), count=40):
    return [
        Utterance(
            None,
            "word",
            *(1.0 + (index % 5),) * 3,
            speaker=f"s{index % speakers}" if speakers else "",
            session=str(sessions[index % len(sessions)]) if sessions else "",
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        (utterances(sessions=(8, 9, 10, 11)), "leave-one-session-out:11"),
        (utterances(sessions=(1, 2)), "held-out-speakers"),  # too few sessions
        (utterances(speakers=4, sessions=(1, 2, 3)), "held-out-speakers"),  # a speaker in several sessions
        (utterances(), "held-out-speakers"),
    ],
)
def test_by_default_both_kinds_of_split(corpus, expected):
    random, independent = choose_splits((), corpus)
    assert (random.text, random.is_speaker_independent) == ("stratified", False)
    assert (independent.text, independent.is_speaker_independent) == (expected, True)


def test_a_corpus_without_speakers_asks_for_an_explicit_choice():
    with pytest.raises(SplitError, match="give --split stratified"):
        choose_splits((), utterances(speakers=0))
    assert [choice.text for choice in choose_splits(("stratified",), utterances(speakers=0))] == ["stratified"]


def test_splits_that_do_not_fit_are_refused_at_once():
    with pytest.raises(SplitError, match="no utterance of this corpus has a session"):
        choose_splits(("leave-one-session-out",), utterances())
    with pytest.raises(SplitError, match="no split policy"):
        choose_splits(("random",), utterances())
    with pytest.raises(SplitError, match="the sessions of this corpus are 1, 2, 3, 4"):
        choose_splits(("leave-one-session-out:7",), utterances(sessions=(1, 2, 3, 4)))


# The paper's own figures


def test_the_paper_s_averages_and_reductions_are_computed_again():
    found = {check.what.partition(" (")[0]: check for check in checks(paper())}
    assert {what: check.follows for what, check in found.items()} == {
        "average loss of Cross-modal": True,
        "average loss of LoRA": False,
        "section IV-B, separate networks on the GRU": True,
        "section IV-B, transformer in place of the GRU": False,
        "section IV-B, separate networks on the transformer": True,
        "section IV-C, both modalities": True,
        "section IV-E, from the first row to the best one": False,
    }
    assert str(found["average loss of LoRA"]).endswith("0.1461 does not follow: 0.1794 instead")
    assert str(found["average loss of Cross-modal"]).endswith("0.20034 follows")
    transformer = found["section IV-B, transformer in place of the GRU"]
    assert str(transformer).endswith("40.4 % does not follow: 40.3 % instead")
    best = str(found["section IV-E, from the first row to the best one"])
    assert "75.8 % does not follow: 70.3 % instead" in best
    assert "the reduction to the stated average, 0.1461" in best


def test_the_paper_s_rows_are_those_that_run(folder):
    recipe = recipe_of(folder)
    for table, rows in paper().tables.items():
        assert list(rows.rows) == [row.name for row in table_rows(table, recipe)]
