"""`attune train emotion-map`: clusters, classifier and picture from a lexicon."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from attune_training.emotion_map.anchors import AnchorsError, read_anchors
from attune_training.emotion_map.fitting import MapConfig, train_emotion_map
from attune_training.emotion_map.lexicon import LexiconError, read_lexicon
from attune_training.emotion_map.picture import draw_emotion_map
from attune_training.emotion_map.storage import METRICS_FILE, PICTURE_FILE, save_emotion_map
from attune_training.machine import git_revision, hardware_line
from attune_training.providers import ProviderError, anchors_file
from attune_weights.files import sha256_of

__all__ = ["emotion_map_command"]

_FILE = click.Path(path_type=Path, dir_okay=False)


class _Number(click.types.FloatParamType):
    """A float, but not nan or infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return number


@click.command("emotion-map")
@click.option("--lexicon", "lexicon_path", type=_FILE, required=True, help="Words with VAD ratings, a table.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the map.")
@click.option("--anchors", "anchors_path", type=_FILE, help="The emotions (YAML). Default: the knowledge base's.")
@click.option(
    "--scale",
    type=(_Number(), _Number()),
    metavar="LOW HIGH",
    help="Ends of the rating scale. Default: seen from the data.",
)
@click.option(
    "--anchor-weight",
    type=_Number(),
    default=MapConfig().anchor_weight,
    show_default=True,
    help="0 is plain K-means.",
)
@click.option("--seed", default=MapConfig().seed, show_default=True, help="Of the split and of the training.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def emotion_map_command(
    lexicon_path: Path,
    output: Path,
    anchors_path: Path | None,
    scale: tuple[float, float] | None,
    anchor_weight: float,
    seed: int,
    as_json: bool,
) -> None:
    """Cluster a VAD lexicon into the emotions, train the classifier, and draw the map."""
    console = Console(stderr=True)
    try:
        anchors = read_anchors(anchors_path or anchors_file())
        lexicon = read_lexicon(lexicon_path, scale)
    except (LexiconError, AnchorsError, ProviderError) as error:
        raise click.ClickException(str(error)) from error
    console.print(f"scale {lexicon.scale} ({lexicon.scale.evidence})", highlight=False)
    trained = train_emotion_map(lexicon, anchors, MapConfig(anchor_weight=anchor_weight, seed=seed), console)
    source = {"lexicon": lexicon_path.name, "lexicon_sha256": sha256_of(lexicon_path)}
    trained.metrics.update(source, git=git_revision(), hardware=hardware_line("cpu"))
    save_emotion_map(trained, output)
    draw_emotion_map(trained.emotion_map, lexicon, output / PICTURE_FILE)
    if as_json:
        click.echo(json.dumps(trained.metrics))
    else:
        _print_tables(trained.metrics, Console())
        click.echo(f"saved in {output}: {METRICS_FILE} has everything, {PICTURE_FILE} is the picture")


def _print_tables(metrics: dict[str, Any], console: Console) -> None:
    scores = Table("", "held-out terms", "paper", title=f"{metrics['terms']} terms, {metrics['seconds']} s")
    for name, value in metrics["test"].items():
        scores.add_row(name, f"{value:.4f}", f"{metrics['paper'][name]:.4f}")
    console.print(scores)
    octants = Table("emotion", "octant", "centroid in", "terms", "of them in the octant", title="Octants")
    for one in metrics["octants"]:
        share = one["share_in_octant"]
        row = (one["label"], one["octant"], one["centroid_octant"], str(one["terms"]))
        octants.add_row(*row, "-" if share is None else f"{share:.0%}")
    clusters = metrics["clusters"]
    total = f"{clusters['centroids_in_octant']} of {len(metrics['octants'])}"
    octants.add_row("all", "", total, str(metrics["terms"]), f"{clusters['terms_in_octant']:.0%}")
    console.print(octants)
