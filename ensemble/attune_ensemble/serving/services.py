"""What every Python model of the repository serves, made from its settings and its files.

    self.service = create_service("speech_to_text", self.triton)

It is the same in a model's process inside the server (`model_repository/<model>/1/model.py`) and in `LocalModels`. What
a service needs is imported when it is made: a process loads what its own model needs, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attune_client.protocol.profiles import INDEX_DIR
from attune_client.protocol.tensors import Tensors
from attune_ensemble.call import Call, CallContext, CallStream

if TYPE_CHECKING:
    from attune_ensemble.pipeline import Rules

__all__ = ["SERVICES", "Host", "Service", "create_service"]


class Host(Protocol):
    """Where a service runs: the adapter of a model inside the server, or `LocalModels`."""

    @property
    def settings(self) -> Mapping[str, str]:
        """The parameters of the model's configuration."""
        ...

    @property
    def folder(self) -> Path:
        """The model's version folder."""
        ...

    @property
    def device(self) -> str:
        """Where to compute: cpu, or a GPU such as cuda:1."""
        ...

    @property
    def call(self) -> Call:
        """Calls another model of the repository."""
        ...

    @property
    def call_stream(self) -> CallStream:
        """Calls another model of the repository that streams; `ServerUnavailable` on a host that cannot."""
        ...

    def publish(self, meanings: Mapping[str, str], read: Callable[[], Mapping[str, float]]) -> None:
        """Publish gauges: what they mean by name, and what reads their values."""
        ...


@dataclass(frozen=True, slots=True)
class Service:
    """What one model serves.

    `answer(inputs, context=...)` returns the outputs of a request by name; of a decoupled model it is a generator of
    them, of which an empty one says that there is nothing yet. `close` gives back what the service holds.
    """

    answer: Callable[..., Any]
    close: Callable[[], None] = lambda: None


def create_service(name: str, host: Host) -> Service:
    """The service of the Python model `name`; KeyError if there is none of that name."""
    return SERVICES[name](host)


def _speech_to_text(host: Host) -> Service:
    from attune_ensemble.speech.transcription import Decoding, Transcriber

    settings = host.settings
    transcriber = Transcriber(
        host.folder / settings["weights"],
        device=host.device,
        compute_type=settings["compute_type"],
        threads=int(settings["threads"]),
        decoding=Decoding(beam_size=int(settings["beam_size"])),
        decoder=settings["decoder"],
    )
    return Service(transcriber.answer, transcriber.close)


def _text_tokenizer(host: Host) -> Service:
    from attune_ensemble.speech.tokens import TextTokenizers

    tokenizers = TextTokenizers(host.folder / host.settings["weights"])

    def answer(inputs: Tensors, *, context: CallContext) -> Tensors:
        return tokenizers.answer(inputs)  # within milliseconds, whatever the context says

    return Service(answer)


def _speech_emotion(host: Host) -> Service:
    from attune_ensemble.pipeline import recognise_speech

    rules = _rules(host)

    def answer(inputs: Tensors, *, context: CallContext) -> Tensors:
        return recognise_speech(inputs["audio"], rules, host.call, inputs.get("other_languages"), context=context)

    return Service(answer)


def _music_prompt(host: Host) -> Service:
    from attune_ensemble.prompting.describe import MusicDescriber
    from attune_ensemble.prompting.knowledge import load_emotions
    from attune_ensemble.prompting.retrieval import KnowledgeIndex
    from attune_ensemble.prompting.writers.registry import create_writer
    from attune_ensemble.prompting.writers.writer import WriterOptions

    emotions = load_emotions()
    folder = host.folder / host.settings["weights"]
    writer = create_writer(host.settings["prompt_writer"], WriterOptions(host.settings, folder, host.device))
    describer = MusicDescriber(emotions, KnowledgeIndex(folder / INDEX_DIR, emotions), writer)

    def answer(inputs: Tensors, *, context: CallContext) -> dict[str, Any]:
        return describer.describe(inputs, host.call, context=context)

    return Service(answer, describer.close)


def _music_generator(host: Host) -> Service:
    from attune_ensemble.music.registry import EngineOptions, default_engine, engine_metrics
    from attune_ensemble.music.service import MusicService

    settings = host.settings
    options = EngineOptions(settings, host.device, host.folder)
    service = MusicService(default_engine(settings["engine"], options), float(settings["chunk_s"]), options)
    host.publish(engine_metrics(options), service.metrics)
    return Service(service.play, service.close)


def _music_therapy(host: Host) -> Service:
    from attune_ensemble.pipeline import play_therapy

    rules = _rules(host)
    call_stream = host.call_stream  # a host that cannot call streams says so now, and not when the first listener comes

    def play(inputs: Tensors, *, context: CallContext) -> Generator[Tensors, None, None]:
        return play_therapy(inputs, rules, host.call, call_stream, context=context)

    return Service(play)


def _rules(host: Host) -> Rules:
    from attune_ensemble.pipeline import Rules
    from attune_ensemble.prompting.knowledge import load_emotions
    from attune_ensemble.speech.choice import choice_named
    from attune_ensemble.speech.crisis import crisis_tensors, warm_up

    warm_up()  # reads the patterns, which no request should wait for
    labels = [emotion.label for emotion in load_emotions()]
    choice = choice_named(host.settings["emotion_choice"], host.folder / host.settings["weights"], labels)
    return Rules(labels, crisis_tensors, choice, int(host.settings["segments_per_call"]))


SERVICES: dict[str, Callable[[Host], Service]] = {
    "speech_to_text": _speech_to_text,
    "text_tokenizer": _text_tokenizer,
    "speech_emotion": _speech_emotion,
    "music_prompt": _music_prompt,
    "music_generator": _music_generator,
    "music_therapy": _music_therapy,
}
"""What makes the service of each Python model."""
