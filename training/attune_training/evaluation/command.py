"""`attune evaluate corpus`: agreement of a saved model with a corpus, and checks of pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from attune_training.config import Target
from attune_training.data.corpus import BadRows, open_corpus
from attune_training.data.splits import parse_split_policy
from attune_training.data.utterance import Utterance
from attune_training.edge import bad_rows_option, data_option, named_paths, plain_errors
from attune_training.evaluation.categories import CategoryResult, tell_categories
from attune_training.evaluation.pairs import PairCheck, PairResult, check_pairs, parse_pair_check
from attune_training.evaluation.predictions import Inputs, Predictions, SegmentPredictions, join, predict_segments
from attune_training.evaluation.report import Scores, markdown, score, to_json
from attune_training.evaluation.segments import Segments, given_segments, recognised_segments
from attune_training.models.checkpoints import CONFIG_FILE
from attune_training.pretrained import load
from attune_training.providers import transcriber

__all__ = ["corpus", "predict_all", "predict_all_segments", "progress_bar", "shipped_model"]

_SPLIT_TARGET: Target = "valence_arousal_dominance"


def shipped_model() -> Path:
    """Return the folder of the packaged models of the `embedded` profile."""
    return Path(__file__).parents[1] / "artifacts" / "embedded"


@click.command("corpus")
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=shipped_model,
    help="A saved model, or a folder with valence/ and arousal_dominance/.  [default: the one that ships]",
)
@data_option("a corpus, by its kind; a path alone is a manifest")
@click.option("--split", help="A split policy, to measure one part of the corpus.")
@click.option("--part", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of a random split.")
@click.option(
    "--inputs",
    type=click.Choice(["both", "voice", "words"]),
    multiple=True,
    default=["both"],
    show_default=True,
    help="The inputs that the model gets. May be repeated.",
)
@click.option(
    "--transcripts",
    type=click.Choice(["given", "recognised"]),
    default="given",
    show_default=True,
    help="The corpus's words, or those of speech recognition.",
)
@click.option("--pairs", multiple=True, metavar="CHECK", help="arousal:angry/calm, valence:quintiles. May be repeated.")
@click.option("--categories", is_flag=True, help="Also tell the acted category, by the nearest anchor.")
@bad_rows_option
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def corpus(
    model: Path,
    data: tuple[str, ...],
    split: str | None,
    part: str,
    seed: int,
    inputs: tuple[Inputs, ...],
    transcripts: str,
    pairs: tuple[str, ...],
    categories: bool,
    bad_rows: BadRows,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure a model: PCC, CCC and RMSE with 95 % intervals, overall and per speaker."""
    with plain_errors(threads):
        checks = [parse_pair_check(text) for text in pairs]
        measured = [
            item
            for name, path in named_paths(data, default_name="manifest").items()
            for item in _measure(
                model, _open(name, path, bad_rows, split, part, seed), inputs, transcripts, checks, categories
            )
        ]
    click.echo(json.dumps([_record(item) for item in measured]) if as_json else "\n\n".join(map(_as_text, measured)))


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is evaluated: a corpus, or one part of it."""

    title: str
    note: str
    utterances: tuple[Utterance, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """One subject with one choice of inputs."""

    title: str
    note: str
    inputs: str
    transcripts: str
    scores: Scores
    pairs: tuple[PairResult, ...]
    categories: CategoryResult | None


def _open(name: str, path: Path, bad_rows: BadRows, split: str | None, part: str, seed: int) -> _Subject:
    opened = open_corpus(name, path, bad_rows)
    if split is None:
        return _Subject(opened.name, opened.note, opened.utterances)
    policy = parse_split_policy(split)
    parts = policy.split(opened.utterances, _SPLIT_TARGET, seed)
    return _Subject(f"{opened.name}, {part} part ({policy.label})", opened.note, getattr(parts, part))


def _measure(
    model: Path,
    subject: _Subject,
    inputs: Sequence[Inputs],
    transcripts: str,
    checks: Sequence[PairCheck],
    categories: bool,
) -> Iterator[_Measured]:
    segments = _segments(subject.utterances, transcripts)
    for choice in inputs:
        predictions = predict_all(model, subject.utterances, choice, segments)
        results = tuple(check_pairs(predictions, check) for check in checks)
        told = tell_categories(predictions) if categories else None
        yield _Measured(subject.title, subject.note, choice, transcripts, score(predictions), results, told)


def predict_all(
    model: Path, utterances: Sequence[Utterance], inputs: Inputs, segments: Sequence[Segments] | None = None
) -> Predictions:
    """Return what `predict_all_segments` does, as a whole for each utterance, by the served rule."""
    return predict_all_segments(model, utterances, inputs, segments).whole()


def predict_all_segments(
    model: Path, utterances: Sequence[Utterance], inputs: Inputs, segments: Sequence[Segments] | None = None
) -> SegmentPredictions:
    """Return the predictions for `utterances` of a saved model, or of a folder's valence and arousal_dominance models.

    `segments`: see `predict_segments`.

    Raises:
        ProviderError: segments have to be found, and no segmenter is installed.
        ValueError: the folder holds no model that this project saved.
    """
    segments = _segments(utterances, "given") if segments is None else segments
    folders = [model] if (model / CONFIG_FILE).is_file() else [model / "valence", model / "arousal_dominance"]
    parts = []
    for folder in folders:
        loaded = load(folder)
        with progress_bar(f"{folder.name}, {inputs}", len(utterances)) as advance:
            predicted = predict_segments(
                loaded.model, utterances, loaded.collator(), inputs=inputs, segments=segments, progress=advance
            )
            parts.append(predicted)
    return join(parts)


def _segments(utterances: Sequence[Utterance], transcripts: str) -> list[Segments]:
    """Return the segments of each utterance, with the corpus's words or recognised ones."""
    if transcripts == "recognised":
        transcribe = transcriber()
        with progress_bar("recognising speech", len(utterances)) as advance:
            return recognised_segments(utterances, transcribe, advance)
    with progress_bar("finding speech", len(utterances)) as advance:
        return given_segments(utterances, advance)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


_HEARD = {"both": "voice and words", "voice": "voice alone", "words": "words alone"}


def _as_text(measured: _Measured) -> str:
    words = "" if measured.inputs == "voice" else f", {measured.transcripts} words"
    lines = [f"## {measured.title}: {_HEARD[measured.inputs]}{words}", ""]
    if measured.note:
        lines += [f"({measured.note})", ""]
    lines.append(markdown(measured.scores))
    for result in measured.pairs:
        lines += ["", f"{result.check}: {result.right} of {result.pairs} pairs right ({result.share:.1%})"]
    if measured.categories is not None:
        lines += ["", _told(measured.categories)]
    return "\n".join(lines)


def _told(result: CategoryResult) -> str:
    recall = ", ".join(f"{name} {share:.0%}" for name, share in result.recall.items())
    listeners = "" if result.listeners is None else f"; listeners heard it in {result.listeners:.1%}"
    return f"nearest anchor is the category asked for in {result.share:.1%} of {result.count} ({recall}){listeners}"


def _record(measured: _Measured) -> dict[str, Any]:
    return {
        "corpus": measured.title,
        "note": measured.note,
        "inputs": measured.inputs,
        "transcripts": measured.transcripts,
        **to_json(measured.scores),
        "categories": asdict(measured.categories) if measured.categories else None,
        "pairs": [asdict(result) | {"share": result.share} for result in measured.pairs],
    }
