"""`attune export`: fetch the weights, export the models, assemble the model repository."""

from __future__ import annotations

from pathlib import Path

import click

from attune_client.protocol.errors import AttuneError
from attune_ensemble.serving.layout import find_package, runs_here
from attune_export.assemble import PROFILES, assemble
from attune_weights import WeightsError

__all__ = ["export"]


@click.command()
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository: a folder of committed configurations, in which the models are placed.",
)
@click.option("--profile", type=click.Choice(PROFILES), default=PROFILES[0], show_default=True)
@click.option(
    "--artifacts",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with valence/ and arousal_dominance/, saved by attune_training; embedded has its own.",
)
@click.option(
    "--emotion-map",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder written by `attune train emotion-map`, in place of the one that ships.",
)
@click.option(
    "--musicgen",
    metavar="NAME|DIR",
    help="MusicGen's weights by name (such as musicgen-medium), or a folder; the gpu profiles have musicgen-small.",
)
@click.option("--force", is_flag=True, help="Build everything again.")
def export(
    repository: Path,
    profile: str,
    artifacts: Path | None,
    emotion_map: Path | None,
    musicgen: str | None,
    force: bool,
) -> None:
    """Fetch the pinned weights and the server, and place every model in the repository."""
    try:
        assemble(
            repository,
            profile=profile,
            artifacts=artifacts,
            emotion_map=emotion_map,
            musicgen=musicgen,
            force=force,
        )
        if profile == PROFILES[0] and runs_here():
            find_package()  # what `attune serve` runs, so that serving needs no network
    except (AttuneError, WeightsError) as error:
        raise click.ClickException(str(error)) from error
