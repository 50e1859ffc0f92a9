"""`attune bench music`."""

from __future__ import annotations

import sys

import click

from attune_ensemble.music.musicgen.benchmark.main import main

__all__ = ["music"]


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def music(options: tuple[str, ...]) -> None:
    """Time MusicGen: transformers' generate, this engine step by step, and the memory's speed."""
    sys.exit(main(options, program="attune bench music"))
