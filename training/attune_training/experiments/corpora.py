"""`attune experiments corpora`: what the corpora hold, as a table for a model card."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from attune_training.config import Target
from attune_training.data.corpus import BadRows, default_split, open_corpus
from attune_training.data.splits import parse_split_policy
from attune_training.data.statistics import describe, markdown
from attune_training.edge import bad_rows_option, data_option, named_paths, plain_errors

__all__ = ["corpora"]

_SPLIT_TARGET: Target = "valence_arousal_dominance"


@click.command()
@data_option("a corpus, by its kind")
@click.option("--split", help="How to cut all of them.  [default: the corpus's own way, or stratified]")
@click.option("--seed", default=0, show_default=True, help="Of a random split.")
@bad_rows_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def corpora(data: tuple[str, ...], split: str | None, seed: int, bad_rows: BadRows, as_json: bool) -> None:
    """Count each part of corpora, and give mean and deviation of its targets; of a test part, counts alone."""
    described = []
    with plain_errors():
        for kind, path in named_paths(data).items():
            corpus = open_corpus(kind, path, bad_rows)
            policy = parse_split_policy(split or default_split(kind))
            described.append((corpus.name, describe(policy.split(corpus.utterances, _SPLIT_TARGET, seed))))
    record = {name: [asdict(part) for part in parts] for name, parts in described}
    click.echo(json.dumps(record) if as_json else markdown(described))
