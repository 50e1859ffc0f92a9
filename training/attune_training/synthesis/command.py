"""`attune synthesise`: a corpus's sentences, or texts to measure by, read aloud."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from attune_training.data.corpus import CorpusError, open_corpus
from attune_training.data.utterance import Utterance
from attune_training.emotion_map.anchors import read_anchors
from attune_training.evaluation.stories.reading import (
    NARRATIONS_FILE,
    STORIES_FILE,
    StoriesError,
    read_narrations,
    read_stories,
    shipped_file,
)
from attune_training.providers import ProviderError
from attune_training.synthesis.corpus import synthesise
from attune_training.synthesis.engines import PIPER, SynthesisError
from attune_training.synthesis.texts import (
    DEFAULT_VOICE,
    Reader,
    SpeechError,
    Text,
    espeak_reader,
    piper_reader,
    read_aloud,
    read_texts,
)

__all__ = ["synthesise_command"]

SHIPPED = "shipped"

_MOST_WORDS = 22  # 8 s of speech at 165 words a minute

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("synthesise")
@click.option("--emobank", type=_FILE, help="EmoBank's table, emobank.csv: speech to train on, by twelve voices.")
@click.option("--written", type=_FILE, help="Written texts, the short ones: speech to train on, by the same voices.")
@click.option("--stories", metavar="FILE|shipped", help="First-person stories: id, text, emotion.")
@click.option("--narrations", metavar="FILE|shipped", help="Narrations in parts: one recording of each.")
@click.option("--texts", type=_FILE, help="Any CSV file with the columns id and text.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the speech and its manifest.csv. A run that was stopped goes on there.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Speech to train on: draws voice, pitch, rate.  [default: 0]")
@click.option(
    "--voice",
    "voices",
    multiple=True,
    help=f"Texts: a voice of espeak-ng. May be repeated.  [default: {DEFAULT_VOICE}, unless piper reads]",
)
@click.option(
    "--piper-voice", "piper_voices", type=_FILE, multiple=True, help="Texts: a voice of piper, .onnx. May be repeated."
)
@click.option("--piper", default=PIPER, show_default=True, metavar="PROGRAM", help="Texts: piper, or the path of it.")
def synthesise_command(
    emobank: Path | None,
    written: Path | None,
    stories: str | None,
    narrations: str | None,
    texts: Path | None,
    output: Path,
    seed: int | None,
    voices: tuple[str, ...],
    piper_voices: tuple[Path, ...],
    piper: str,
) -> None:
    """Read aloud a corpus's sentences, stories, narrations or other texts, and write a manifest of the recordings.

    espeak-ng and piper are programs that you install. The voices carry no emotion.
    """
    if sum(source is not None for source in (emobank, written, stories, narrations, texts)) != 1:
        raise click.UsageError("give one of --emobank, --written, --stories, --narrations, --texts")
    is_corpus = emobank is not None or written is not None
    if is_corpus and (voices or piper_voices):
        raise click.UsageError("a corpus is read by twelve voices of espeak-ng: --voice, --piper-voice are for texts")
    if not is_corpus and seed is not None:
        raise click.UsageError("--seed is for a corpus: nothing is drawn for texts")
    try:
        if emobank is not None:
            manifest = _read_corpus(open_corpus("emobank", emobank, bad_rows="skip").utterances, output, seed or 0)
        elif written is not None:
            manifest = _read_corpus(_short(open_corpus("written", written).utterances), output, seed or 0)
        else:
            manifest = _read_texts(_texts(stories, narrations, texts), _readers(voices, piper_voices, piper), output)
    except (CorpusError, StoriesError, SpeechError, SynthesisError, ProviderError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(manifest)


def _short(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Return the texts that fit a segment of speech, and have all labels."""
    return [
        item
        for item in utterances
        if len(item.transcript.split()) <= _MOST_WORDS and not any(map(math.isnan, item.vad()))
    ]


def _read_corpus(sentences: Sequence[Utterance], output: Path, seed: int) -> Path:
    with click.progressbar(length=len(sentences), label="Reading aloud", file=sys.stderr) as bar:
        return synthesise(sentences, output, seed=seed, progress=bar.update)


def _read_texts(texts: Sequence[Text], readers: Sequence[Reader], output: Path) -> Path:
    with click.progressbar(length=len(texts) * len(readers), label="Reading aloud", file=sys.stderr) as bar:
        return read_aloud(texts, readers, output, bar.update)


def _texts(stories: str | None, narrations: str | None, texts: Path | None) -> list[Text]:
    if texts is not None:
        return read_texts(texts)
    labels = read_anchors().labels
    if stories is not None:
        return [Text(story.id, story.text) for story in read_stories(_path(stories, STORIES_FILE), labels)]
    told = read_narrations(_path(narrations or SHIPPED, NARRATIONS_FILE), labels)
    return [Text(narration.id, narration.text) for narration in told]


def _path(choice: str, shipped: str) -> Path:
    return shipped_file(shipped) if choice == SHIPPED else Path(choice)


def _readers(voices: Sequence[str], piper_voices: Sequence[Path], piper: str) -> list[Reader]:
    names = voices if voices or piper_voices else (DEFAULT_VOICE,)
    return [*map(espeak_reader, names), *(piper_reader(voice, piper) for voice in piper_voices)]
