"""Every `attune` command in the documents is one that the program takes: `pytest tests/unit/test_documents.py`.

The README's blocks of plain commands are also run, on the real server (tests/integration/test_readme.py). Those that
need a corpus, a GPU or hours are parsed here: sub-command, options, arguments and choices, but not whether files exist.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from attune_client.cli import main
from attune_training.edge import DefaultGroup
from tests.conftest import ROOT

ROOMS = ("client", "deploy", "docker", "ensemble", "export", "samples", "tools", "training")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("", *ROOMS)
    for path in (ROOT / folder).glob("**/*.md" if folder else "*.md")
)


def commands_in(document: str) -> list[str]:
    """Lines of code, fenced or indented, that begin with `attune`; continued ones joined, remarks left out."""
    joined = (ROOT / document).read_text().replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in joined.splitlines() if re.match(r"\s*attune [a-z]", line)]


COMMANDS = [(document, command) for document in DOCUMENTS for command in commands_in(document)]


def parse(words: list[str]) -> click.Context:
    """The context of the innermost sub-command; raises click's own errors for what it does not take."""
    command, name = main, "attune"
    context = click.Context(command, info_name=name)
    while isinstance(command, click.Group):
        name, *words = command.named(words) if isinstance(command, DefaultGroup) else words
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"there is no sub-command {name!r}")
        command, context = found, click.Context(found, parent=context, info_name=name)
    return command.make_context(name, words, parent=context.parent)


@pytest.fixture
def any_path_exists(monkeypatch):
    """Documents name folders that a reader has and this machine has not."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, *_: Path(value))


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_the_program_takes_it(any_path_exists, document, command):
    before_pipe = re.split(r"\s[|>]\s", command)[0]
    parse(shlex.split(before_pipe)[1:])


@pytest.mark.parametrize(
    "command", ["attune learn", "attune analyse", "attune play a.wav --engin musicgen", "attune export --profile tpu"]
)
def test_what_the_program_does_not_take_would_be_found(any_path_exists, command):
    with pytest.raises(click.UsageError):
        parse(shlex.split(command)[1:])


def test_the_documents_are_found():
    assert {"README.md", "training/README.md", "ensemble/benchmarks/README.md"} <= {name for name, _ in COMMANDS}


def paths_named_in(document: str) -> list[str]:
    """What stands in code spans and is a path below one of the rooms; `<model>` stands for any."""
    spans = re.findall(r"`([^`\s]+)`", (ROOT / document).read_text())
    return sorted({span for span in spans if span.partition("/")[0] in {*ROOMS, "model_repository", "tests"}})


@pytest.mark.parametrize("path", paths_named_in("README.md"))
def test_a_path_that_the_readme_names_is_there(path):
    assert list(ROOT.glob(re.sub(r"<\w+>", "*", path.rstrip("/")))), path
