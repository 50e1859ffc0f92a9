"""BART's summaries: CTranslate2 held to transformers' `generate`, deadlines, and what is exported.

Run: pytest tests/unit/test_summarising.py
"""

from __future__ import annotations

import json
import threading
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import BartForConditionalGeneration

from attune_client.protocol.errors import RequestCancelled, RequestTimeout
from attune_client.protocol.models import EMBEDDING_DIM
from attune_client.protocol.profiles import EMBEDDED, GPU, PROFILES
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.prompting.retrieval import KnowledgeIndex
from attune_ensemble.prompting.specification import music_spec
from attune_ensemble.prompting.summarising import BartSummariser
from attune_ensemble.prompting.writers.bart import BartPromptWriter
from attune_ensemble.prompting.writers.registry import create_writer
from attune_ensemble.prompting.writers.template import structured_prompt, summarise
from attune_ensemble.prompting.writers.writer import Material, Summary, WriterOptions
from attune_export import assemble as assembling
from attune_export.assemble import plan
from attune_export.errors import ExportError
from attune_export.models.registry import SERVED_MODELS
from attune_export.parts import Part
from attune_export.placing import place
from attune_export.repository_config import write_repository
from attune_export.summariser import convert_bart, measure_deviation
from attune_weights import WeightsError
from tests.tiny_bart import GENERATION, save_tiny_bart

EMOTIONS = load_emotions()
DESCRIPTIONS = [emotion.description for emotion in EMOTIONS]
LONG = " ".join(DESCRIPTIONS)  # more than the encoder reads
INPUTS = [*DESCRIPTIONS[:5], "Rain.", LONG]


@pytest.fixture(scope="module", params=[(0.3, 0.0), (0.3, 4.0)], ids=["never ends", "ends early"])
def checkpoint(request, tmp_path_factory) -> Path:
    spread, end_bias = request.param
    folder = tmp_path_factory.mktemp("bart") / "checkpoint"
    save_tiny_bart(folder, DESCRIPTIONS, spread=spread, end_bias=end_bias, seed=4)
    return folder


@pytest.fixture(scope="module")
def one_checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bart") / "checkpoint"
    save_tiny_bart(folder, DESCRIPTIONS, spread=0.3, end_bias=6.0, seed=4)
    return folder


@pytest.fixture(scope="module")
def converted(one_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "bart"
    convert_bart(one_checkpoint, folder)
    return folder


def summariser_of(folder: Path, compute_type: str = "float32") -> BartSummariser:
    return BartSummariser(folder, "cpu", compute_type, threads=1)


@pytest.fixture
def summariser(converted):
    made = summariser_of(converted)
    yield made
    made.close()


# Parity


def generated(model: BartForConditionalGeneration, ids: list[int], **options) -> list[int]:
    with torch.inference_mode():
        return model.generate(torch.tensor([ids]), **GENERATION, **options)[0].tolist()


def test_the_tokens_are_those_of_transformers_generate(checkpoint, tmp_path, request):
    """Where transformers shares out the probability of tokens that are not allowed, as CTranslate2 does."""
    convert_bart(checkpoint, tmp_path / "bart", stored_as="float32")
    summariser = summariser_of(tmp_path / "bart")
    model = BartForConditionalGeneration.from_pretrained(checkpoint).eval()
    lengths = set()
    for text in INPUTS:
        encoding = summariser._tokenizer.encode(text)
        tokens = summariser.generate(encoding.tokens, context=UNLIMITED)
        found = [summariser._tokenizer.token_to_id(token) for token in tokens]
        assert found == generated(model, encoding.ids, renormalize_logits=True), text[:40]
        lengths.add(len(found))
    if "early" in request.node.name:
        assert min(lengths) < 100, "some end by themselves"
    else:
        assert max(lengths) == 150, "the longest is cut off at the end that transformers forces"


def test_a_long_text_is_cut_where_the_encoder_ends(summariser):
    assert len(summariser._tokenizer.encode(LONG).ids) == 1024
    assert summariser._tokenizer.encode(LONG).tokens[-1] == "</s>"


def test_no_summary_is_shorter_than_asked_for(tmp_path):
    """A model that would end at once: 20 tokens stand in front of the first end that is allowed."""
    save_tiny_bart(tmp_path / "eager", DESCRIPTIONS, spread=0.3, end_bias=100.0, seed=4)
    model = BartForConditionalGeneration.from_pretrained(tmp_path / "eager")
    convert_bart(tmp_path / "eager", tmp_path / "bart", stored_as="float32")
    summariser = summariser_of(tmp_path / "bart")
    encoding = summariser._tokenizer.encode(DESCRIPTIONS[0])
    tokens = summariser.generate(encoding.tokens, context=UNLIMITED)
    assert (len(tokens), tokens[:2], tokens[-1]) == (21, ["</s>", "<s>"], "</s>")
    assert len(generated(model.eval(), encoding.ids, renormalize_logits=True)) == 21


def test_what_is_stored_in_half_precision_stays_the_same_model(one_checkpoint, converted):
    assert 0 < measure_deviation(one_checkpoint, converted, DESCRIPTIONS[:2]) < 0.05


def test_another_model_in_its_place_is_found(one_checkpoint, tmp_path):
    save_tiny_bart(tmp_path / "other", DESCRIPTIONS, spread=0.3, end_bias=6.0, seed=5)
    convert_bart(tmp_path / "other", tmp_path / "bart")
    with pytest.raises(ExportError, match="it differs from PyTorch by"):
        measure_deviation(one_checkpoint, tmp_path / "bart", DESCRIPTIONS[:1])


def test_int8_summarises_too(converted):
    summary = summariser_of(converted, "int8").summarise(DESCRIPTIONS[0], context=UNLIMITED)
    assert summary.strip() == summary != ""
    assert "<s>" not in summary
    assert "</s>" not in summary


# Deadlines and cancellation


class Search:
    """A search of CTranslate2's that ends when the test says so."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def done(self) -> bool:
        return self.ended.is_set()


@pytest.fixture
def searches(summariser, monkeypatch) -> list[Search]:
    begun: list[Search] = []

    def begin(source):
        begun.append(Search())
        return begun[-1]

    monkeypatch.setattr(summariser, "_begin", begin)
    yield begun
    for search in begun:
        search.ended.set()


def test_a_caller_whose_time_is_up_gets_its_error_while_the_search_goes_on(summariser, searches):
    started = time.monotonic()
    with pytest.raises(RequestTimeout, match="before a summary was done"):
        summariser.summarise("Rain.", context=CallContext.within(0.05))
    assert time.monotonic() - started < 5
    assert len(searches) == 1
    assert not searches[0].done()
    cancelled = threading.Event()
    threading.Timer(0.05, cancelled.set).start()
    with pytest.raises(RequestCancelled):
        summariser.summarise("Rain.", context=CallContext(is_cancelled=cancelled.is_set))
    assert len(searches) == 1, "nothing is begun while another search runs, nor for a caller that has gone"


def test_a_search_begins_when_that_of_a_gone_caller_has_ended(summariser, searches, monkeypatch):
    with pytest.raises(RequestTimeout):
        summariser.summarise("Rain.", context=CallContext.within(0.05))
    errors = []

    def ask():
        try:
            summariser.summarise("Rain.", context=CallContext.within(5))
        except RequestTimeout as error:
            errors.append(error)
        except AttributeError:  # the stand-in has no result
            errors.append(None)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.1)
    assert len(searches) == 1
    searches[0].ended.set()
    while len(searches) < 2:
        time.sleep(0.01)
    searches[1].ended.set()
    asking.join()
    assert errors == [None]


def test_nothing_begins_after_the_deadline(summariser, searches):
    with pytest.raises(RequestTimeout):
        summariser.summarise("Rain.", context=CallContext.within(0))
    assert searches == []


# The writer


@pytest.fixture
def material():
    emotion = EMOTIONS[0]
    return Material(emotion, None, music_spec(emotion, None), Summary("Stored.", "bart"))


def options(folder: Path) -> WriterOptions:
    return WriterOptions({"compute_type": "float32", "threads": "1"}, folder, "cpu")


def test_the_writer_takes_the_stored_summary_for_an_emotion(converted, material):
    writer = create_writer("bart", options(converted.parent))
    prompt = writer.write(material, context=CallContext.within(0))  # no time is needed
    assert (prompt.text, prompt.writer) == (structured_prompt(material, "Stored."), "bart")
    writer.close()


def test_the_writer_summarises_free_text_live_with_the_description(converted, material):
    writer = create_writer("bart", options(converted.parent))
    asked = Material(material.emotion, None, material.spec, material.summary, "rain on the window")
    prompt = writer.write(asked, context=UNLIMITED)
    live = summariser_of(converted).summarise(f"rain on the window. {material.emotion.description}", context=UNLIMITED)
    assert (prompt.text, prompt.writer) == (structured_prompt(asked, live), "bart")
    with pytest.raises(RequestTimeout):
        writer.write(asked, context=CallContext.within(0))
    writer.close()


def test_without_weights_the_template_writes_and_says_so(tmp_path, material):
    writer = create_writer("bart", options(tmp_path))
    assert isinstance(writer, BartPromptWriter)
    stored = summarise(material.emotion.description)
    for words in (None, "rain"):
        asked = Material(material.emotion, None, material.spec, stored, words)
        prompt = writer.write(asked, context=UNLIMITED)
        assert (prompt.text, prompt.writer) == (structured_prompt(asked, stored.text), "template")


# The export


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Configurations, and a stand-in for the sentence encoder, which is not looked for."""
    write_repository(tmp_path / "repository")

    class Embedder:
        def __init__(self, graph, tokenizer):
            pass

        def __call__(self, texts):
            return np.random.default_rng(0).normal(size=(len(texts), EMBEDDING_DIM)).astype(np.float32)

    monkeypatch.setattr("attune_export.embedding.SentenceEmbedder", Embedder)
    return tmp_path / "repository"


def prompt_part(repository, profile=EMBEDDED, **more) -> Part:
    parts = plan(repository, profile=profile, artifacts=None, **more)
    return next(part for part in parts if part.model == "music_prompt")


def knowledge(repository: Path, name: str = "knowledge") -> Path:
    return repository / "music_prompt" / "1" / name


def summaries(folder: Path) -> list[Summary]:
    index = KnowledgeIndex(folder / "index", EMOTIONS)
    try:
        return [index._summaries[emotion.label] for emotion in EMOTIONS]
    finally:
        index.close()


def test_the_index_has_barts_summaries_and_the_folder_its_model(repository, one_checkpoint, monkeypatch):
    monkeypatch.setattr("attune_ensemble.prompting.knowledge.load_emotions", lambda: EMOTIONS)
    placed = place(repository, prompt_part(repository, GPU, bart=str(one_checkpoint)), profile=GPU)
    folder = knowledge(repository, "knowledge.gpu")
    assert placed.max_deviation is not None
    assert placed.max_deviation < 0.05
    found = summaries(folder)
    assert {summary.writer for summary in found} == {"bart"}
    assert found[3].text == summariser_of(folder / "bart").summarise(DESCRIPTIONS[3], context=UNLIMITED)
    assert (folder / "bart" / "tokenizer.json").is_file()
    again = prompt_part(repository, GPU, bart=str(one_checkpoint))
    assert place(repository, again, profile=GPU).seconds is None, "up to date"
    place(repository, prompt_part(repository), profile=EMBEDDED)
    assert {summary.writer for summary in summaries(knowledge(repository))} == {"template"}
    assert {summary.writer for summary in summaries(folder)} == {"bart"}, "each profile has its own"


def test_a_damaged_model_is_built_again_but_a_database_may_change(repository, one_checkpoint):
    part = prompt_part(repository, bart=str(one_checkpoint))
    place(repository, part)
    with (knowledge(repository) / "index" / "chroma.sqlite3").open("ab") as file:
        file.write(b"\0")
    assert place(repository, part).seconds is None
    with (knowledge(repository) / "bart" / "model.bin").open("ab") as file:
        file.write(b"\0")
    assert place(repository, part).seconds is not None


def test_weights_that_cannot_be_had_leave_it_to_the_template(repository, monkeypatch):
    """It is said, what is placed is complete, and the next export tries again."""
    asked = []

    def fetch(name):
        asked.append(name)
        raise WeightsError(f"cannot fetch '{name}'")

    monkeypatch.setattr(assembling, "fetch", fetch)
    monkeypatch.setattr(assembling, "plan", lambda *_, **__: (prompt_part(repository, GPU),))
    for _ in range(2):
        screen = StringIO()
        assembling.assemble(repository, profile=GPU, console=Console(file=screen, width=200))
        assert "cannot fetch 'bart-large-cnn'" in screen.getvalue()
        assert "the template summarises instead" in screen.getvalue()
        assert "--bart DIR" in screen.getvalue()
    assert "up to date" in screen.getvalue()
    assert asked == ["bart-large-cnn"] * 2
    folder = knowledge(repository, "knowledge.gpu")
    assert summaries(folder) == [summarise(text) for text in DESCRIPTIONS]
    assert not (folder / "bart").exists()
    assert json.loads((repository / "attune-export.gpu.json").read_text())["unfinished"] == ""


def test_bart_is_placed_where_it_is_asked_for(repository, one_checkpoint, tmp_path):
    assert prompt_part(repository).weights == ()
    assert prompt_part(repository, GPU).weights == ("bart-large-cnn",)
    assert prompt_part(repository, GPU, bart="none").weights == ()
    assert prompt_part(repository, bart="bart-large-cnn").weights == ("bart-large-cnn",)
    with pytest.raises(ExportError, match="nowhere is neither a folder with a BART checkpoint nor one of"):
        prompt_part(repository, bart=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_a_profile_that_asks_for_bart_is_exported_with_it(repository, profile):
    writer = SERVED_MODELS["music_prompt"].settings_in(profile).parameters["prompt_writer"]
    assert bool(prompt_part(repository, profile).weights) == (writer == "bart")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "config.json cannot be read"),
        ({"model_type": "t5"}, "of another model"),
        ({"model_type": "bart"}, "json;"),
    ],
)
def test_a_folder_that_is_no_bart_says_why(tmp_path, config, words):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=words):
        convert_bart(tmp_path, tmp_path / "bart")


def test_a_checkpoint_without_weights_is_refused_in_one_line(one_checkpoint, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((one_checkpoint / name).read_bytes())
    with pytest.raises(ExportError, match="CTranslate2 does not convert it") as caught:
        convert_bart(tmp_path, tmp_path / "bart")
    assert "\n" not in str(caught.value)
