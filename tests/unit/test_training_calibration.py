"""Calibration: lines that can be worked out, a saved model that keeps its own, and the command on a miniature.

.venv/bin/pytest tests/unit/test_training_calibration.py
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from attune_training.calibration.fitting import Labelled, Line, apply_line, fit_line, reliability, spread
from attune_training.commands import train
from attune_training.config import Calibration, RegressorConfig, tiny_config
from attune_training.data.corpus import CORPUS_KINDS
from attune_training.metrics import agreement
from attune_training.models.checkpoints import load_regressor, read_config, save_model
from attune_training.models.regressor import build_regressor
from tests.miniature import write_manifest


def test_a_line_acts_before_the_sigmoid():
    """3 is raw 0, so an offset of ln 3 makes it 1 + 4 * .75 = 4; 4 is raw ln 3, and half of that sqrt(3) to one."""
    assert apply_line(Line(1.0, np.log(3.0)), [3.0]) == pytest.approx([4.0])
    assert apply_line(Line(0.5, 0.0), [4.0]) == pytest.approx([1 + 4 * 3**0.5 / (1 + 3**0.5)])


def test_the_ends_of_the_scale_stay_finite_and_in_order():
    mapped = apply_line(Line(2.0, 0.5), [1.0, 2.0, 3.0, 4.0, 5.0])
    assert np.isfinite(mapped).all()
    assert (np.diff(mapped) > 0).all()
    assert mapped[0] >= 1.0
    assert mapped[-1] <= 5.0


def shrunk(random, count=400):
    """Labels, and predictions of them that lie too close to 2.6 and are noisy."""
    target = random.uniform(1.2, 4.8, count)
    predicted = apply_line(Line(0.4, -0.3), target) + random.normal(0.0, 0.05, count)
    return Labelled(predicted, target)


def test_a_fit_undoes_shrinking_and_keeps_the_order():
    item = shrunk(np.random.default_rng(0))
    line = fit_line({"a": item})
    mapped = apply_line(line, item.predicted)
    assert line.scale == pytest.approx(1 / 0.4, rel=0.15)
    assert agreement(mapped, item.target).ccc > agreement(item.predicted, item.target).ccc + 0.2
    assert spread(Labelled(mapped, item.target)) == pytest.approx(1.0, abs=0.05)
    assert (np.argsort(mapped) == np.argsort(item.predicted)).all()


def test_a_fit_leaves_out_what_has_no_label():
    item = shrunk(np.random.default_rng(0))
    predicted, target = np.append(item.predicted, 4.9), np.append(item.target, np.nan)
    assert fit_line({"a": Labelled(predicted, target)}) == fit_line({"a": item})
    assert fit_line({"none": Labelled(np.array([3.0]), np.array([np.nan]))}) == Line()


def test_reliability_is_of_equal_parts_in_order():
    item = Labelled(np.arange(1.0, 5.0, 0.5), np.arange(8.0))
    means, labels, errors = reliability(item, bins=2)
    assert means.tolist() == [1.75, 3.75]
    assert labels.tolist() == [1.5, 5.5]
    assert errors == pytest.approx([np.std([0, 1, 2, 3]) / 2] * 2)


@pytest.mark.parametrize(("scale", "offset"), [((0.0,), (0.0,)), ((1.0,), (0.0, 1.0))])
def test_a_calibration_that_is_none_is_refused(scale, offset):
    with pytest.raises(ValueError, match="a scale above 0 and an offset for each output"):
        Calibration(scale, offset)


def test_a_configuration_keeps_its_calibration_and_one_without_the_field_has_none():
    config = replace(tiny_config("arousal_dominance"), calibration=Calibration((1.5, 0.5), (0.1, -0.2)))
    assert RegressorConfig.from_json(config.to_json()) == config
    raw = json.loads(config.to_json())
    raw["calibration"]["scale"], raw["calibration"]["offset"] = [1.0], [0.0]
    with pytest.raises(ValueError, match="2 outputs, arousal, dominance, and 1 scales"):
        RegressorConfig.from_json(json.dumps(raw))
    del raw["calibration"]
    assert RegressorConfig.from_json(json.dumps(raw)).calibration is None


def test_a_saved_model_answers_with_its_calibration(tmp_path):
    torch.manual_seed(0)
    plain = build_regressor(tiny_config("arousal_dominance"), None).eval()
    save_model(plain, tmp_path / "plain")
    config = replace(plain.config, calibration=Calibration((2.0, 0.5), (0.3, -0.1)))
    save_model(plain, tmp_path / "set")
    (tmp_path / "set" / "config.json").write_text(config.to_json())
    inputs = (torch.randn(3, 8000), torch.full((3, 1), 8000), torch.randint(5, 90, (3, 6)), torch.ones(3, 6).long())
    torch.manual_seed(1)
    before = load_regressor(tmp_path / "plain", None)
    torch.manual_seed(1)
    after = load_regressor(tmp_path / "set", None)
    with torch.no_grad():
        raw, mapped = before(*inputs).numpy(), after(*inputs).numpy()
    for column, line in enumerate((Line(2.0, 0.3), Line(0.5, -0.1))):
        assert mapped[:, column] == pytest.approx(apply_line(line, raw[:, column]), abs=1e-4)


def test_the_command_fits_on_validation_and_stores_the_map(tmp_path):
    manifest = write_manifest(tmp_path / "mini")
    recipe = {
        "model": {"towers": "tiny"},
        "corpora": {"manifest": {"kind": "manifest", "split": "given"}},
        "optimisation": {"epochs": 2, "learning_rate": 3e-3, "batch_size": 4},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["valence", "--recipe", str(tmp_path / "recipe.yaml"), "--data", f"manifest={manifest}"]
    run = CliRunner().invoke(train, [*arguments, "--output", str(tmp_path / "run"), "--skip-test", "--json"])
    assert run.exit_code == 0, run.output
    model = tmp_path / "run" / "model"
    command = ["calibration", "--model", str(model), "--data", f"manifest={manifest}", "--split", "given"]
    result = CliRunner().invoke(train, command)
    assert result.exit_code == 0, result.output
    record = json.loads((model / "calibration.json").read_text())["valence"]
    before, after = record["corpora"]["manifest"]["ccc"]
    assert after >= before
    assert read_config(model).calibration == Calibration((record["scale"],), (record["offset"],))
    assert (model / "reliability.png").stat().st_size > 1000
    assert record["corpora"]["manifest"]["count"] == 10
    again = CliRunner().invoke(train, command)
    assert again.exit_code == 0, again.output
    assert json.loads((model / "calibration.json").read_text())["valence"] == record


def test_a_run_that_skips_the_test_part_says_so(tmp_path):
    manifest = write_manifest(tmp_path / "mini")
    recipe = {
        "model": {"towers": "tiny", "architecture": "cross-modal-joint"},
        "corpora": {"mini": {"kind": "manifest", "split": "given"}},
        "loss": "agreement",
        "optimisation": {"epochs": 1, "batch_size": 8},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["joint", "--recipe", str(tmp_path / "recipe.yaml"), "--data", f"mini={manifest}", "--skip-test"]
    run = CliRunner().invoke(train, [*arguments, "--output", str(tmp_path / "run")])
    assert run.exit_code == 0, run.output
    assert "mini, validation part" in run.output
    assert list(json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]["mini"]) == ["validation"]


def test_every_kind_of_corpus_is_offered():
    assert "written" in CORPUS_KINDS
