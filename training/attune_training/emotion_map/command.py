"""The command that trains the map from a lexicon."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import click

from attune_training.emotion_map.fitting import MapConfig, train_emotion_map
from attune_training.emotion_map.lexicon import LexiconError, read_anchors, read_lexicon
from attune_training.emotion_map.storage import save_emotion_map

__all__ = ["emotion_map_command"]


@click.command()
@click.option("--lexicon", "lexicon_path", type=click.Path(path_type=Path), required=True, help="VAD lexicon.")
@click.option("--anchors", "anchors_path", type=click.Path(path_type=Path), required=True, help="emotions.yaml.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the trained map.")
@click.option("--anchor-weight", default=MapConfig().anchor_weight, show_default=True, help="0 is plain K-means.")
@click.option("--seed", default=MapConfig().seed, show_default=True)
def emotion_map_command(lexicon_path: Path, anchors_path: Path, output: Path, anchor_weight: float, seed: int) -> None:
    """Cluster a VAD lexicon into the emotions, train the classifier, and save both."""
    try:
        lexicon, anchors = read_lexicon(lexicon_path), read_anchors(anchors_path)
    except LexiconError as error:
        raise click.ClickException(str(error)) from error
    trained = train_emotion_map(lexicon, anchors, MapConfig(anchor_weight=anchor_weight, seed=seed))
    source = {"lexicon": lexicon_path.name, "lexicon_sha256": hashlib.sha256(lexicon_path.read_bytes()).hexdigest()}
    trained.metrics.update(source)
    save_emotion_map(trained, output)
    click.echo(json.dumps(trained.metrics, indent=1))
