"""`attune train calibration`: fit the maps of a saved model on validation parts, and store them with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from attune_training.calibration.fitting import Labelled, Line, apply_line, fit_line, summary
from attune_training.calibration.picture import draw_reliability
from attune_training.config import Calibration, RegressorConfig
from attune_training.data.corpus import default_split, open_corpus
from attune_training.data.splits import parse_split_policy
from attune_training.edge import data_option, echo, named_paths, plain_errors
from attune_training.evaluation.predictions import Predictions, predict
from attune_training.models.checkpoints import CONFIG_FILE, read_config
from attune_training.pretrained import load

__all__ = ["calibrate", "calibration"]

RECORD_FILE, PICTURE_FILE = "calibration.json", "reliability.png"


@click.command()
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="A saved cross-modal model; its config.json is written anew.",
)
@data_option("a corpus with a validation part, by its kind")
@click.option("--split", help="How to split them.  [default: the corpus's own way, or stratified]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
def calibration(model: Path, data: tuple[str, ...], split: str | None, threads: int | None) -> None:
    """Fit a monotone map for each dimension on the validation parts of corpora."""
    with plain_errors(threads):
        click.echo(calibrate(model, named_paths(data), split))


def calibrate(folder: Path, paths: Mapping[str, Path], split: str | None = None) -> str:
    """Fit the maps of the model in `folder`, store them, and return a table of what they change.

    `split` is a policy, None for each corpus's own. The record of the fit and a picture of the reliability lie beside
    the model afterwards.

    Raises:
        ValueError: the model takes no calibration, or a corpus has no validation part.
    """
    config = read_config(folder)
    if not isinstance(config, RegressorConfig):
        raise ValueError(f"{folder} holds a {config.architecture} model; a cross-modal one was expected")
    _store(folder, replace(config, calibration=None))
    found = {name: _predict_validation(folder, name, path, split) for name, path in paths.items()}
    columns = {name: _column(found, name) for name in config.output_names}
    lines = {name: fit_line(corpora) for name, corpora in columns.items()}
    scales, offsets = zip(*((line.scale, line.offset) for line in lines.values()), strict=True)
    _store(folder, replace(config, calibration=Calibration(scales, offsets)))
    record = {name: _record(lines[name], corpora) for name, corpora in columns.items()}
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draw_reliability({name: (lines[name], corpora) for name, corpora in columns.items()}, folder / PICTURE_FILE)
    return _table(record)


def _store(folder: Path, config: RegressorConfig) -> None:
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")


def _predict_validation(folder: Path, name: str, path: Path, split: str | None) -> Predictions:
    corpus, ready = open_corpus(name, path), load(folder)
    policy = parse_split_policy(split or default_split(name))
    parts = policy.split(corpus.utterances, ready.model.config.target, seed=0)
    if not parts.validation:
        raise ValueError(f"{name} has no validation part")
    echo(f"{name}: {len(parts.validation)} utterances")
    return predict(ready.model, parts.validation, ready.collator())


def _column(found: Mapping[str, Predictions], dimension: str) -> dict[str, Labelled]:
    """Return predictions and labels of one dimension by corpus; corpora without labels of it are left out."""
    columns = {}
    for name, item in found.items():
        target = item.target[:, item.names.index(dimension)].astype(np.float64)
        if np.count_nonzero(~np.isnan(target)) > 1:
            columns[name] = Labelled(item.column(dimension).astype(np.float64), target)
    return columns


def _record(line: Line, corpora: Mapping[str, Labelled]) -> dict[str, object]:
    """Return the map, and each corpus's agreement and spread before and after it, with the deviation of the errors."""
    measured = {}
    for name, item in corpora.items():
        after = Labelled(apply_line(line, item.predicted), item.target)
        (old, old_spread), (new, new_spread) = summary(item), summary(after)
        measured[name] = {
            "count": new.count,
            "pcc": new.pcc,
            "ccc": [old.ccc, new.ccc],
            "rmse": [old.rmse, new.rmse],
            "spread": [old_spread, new_spread],
        }
    return {"scale": line.scale, "offset": line.offset, "corpora": measured}


def _table(record: Mapping[str, object]) -> str:
    rows = [
        "| dimension | corpus | n | PCC | CCC before, after | spread before, after |",
        "|---|---|---:|---:|---|---|",
    ]
    for dimension, fitted in record.items():
        for name, item in fitted["corpora"].items():  # type: ignore[index]
            ccc, spreads = ([f"{value:.3f}" for value in item[key]] for key in ("ccc", "spread"))
            cells = (dimension, name, f"{item['count']}", f"{item['pcc']:.3f}", ", ".join(ccc), ", ".join(spreads))
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
