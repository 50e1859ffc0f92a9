"""What the BLS models do, as plain functions over a `call` (`attune_ensemble.call`): testable without a server.

A narration is cut into segments, all segments are recognised together, and the whole follows from them by one rule
(`attune_ensemble.speech.overall`); its emotion leads to a music description, a prompt, and the music. Where words speak
of a crisis, the music is a gentle one, whatever the emotion. Every call looks at the request's context before and
after, so nothing is begun after its deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attune_client.protocol.checks import check_complete, check_emotion, check_sources, check_text, check_vad
from attune_client.protocol.errors import ServerError
from attune_client.protocol.models import (
    CRISIS_KIND,
    EMBEDDING_DIM,
    EMOTION_CLASSIFIER,
    EMOTION_PROBABILITIES,
    EXPECTED_PROBABILITIES,
    GENTLE,
    MUSIC_OPTIONS,
    PROMPT_TIME,
    RECOGNISE_TIME,
    REGRESSOR_MAX_BATCH,
    TRANSCRIBE_TIME,
    UNSURE,
)
from attune_client.protocol.tensors import Tensors, bytes_tensor, decode, text_of
from attune_client.protocol.version import version
from attune_ensemble.call import Call, CallContext, CallStream
from attune_ensemble.prompting.embedding import embed
from attune_ensemble.speech.choice import EmotionChoice
from attune_ensemble.speech.overall import overall_vad, shares

__all__ = ["Rules", "play_therapy", "recognise_speech", "write_prompt"]

_ROUNDING = 1e-2


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides beside the models.

    `labels` are the 40 emotions in the classifier's order; `find_crisis` makes, of the transcripts of a narration's
    segments, the tensors `crisis_kind` and `crisis_place`. `choice` chooses an emotion by VAD and words; None is the
    paper's way, the most probable one by VAD. Segments are recognised `segments_per_call` at a time: what is under way
    when a request is given up is worked through, and the next ones are not begun.
    """

    labels: Sequence[str]
    find_crisis: Callable[[Sequence[str]], Tensors]
    choice: EmotionChoice | None = None
    segments_per_call: int = REGRESSOR_MAX_BATCH


def recognise_speech(
    audio: npt.NDArray[np.object_],
    rules: Rules,
    call: Call,
    other_languages: npt.NDArray[np.object_] | None = None,
    *,
    context: CallContext,
) -> Tensors:
    """From one encoded recording, BYTES [1], to the outputs of `speech_emotion`.

    `other_languages`, BYTES [1], says what becomes of speech that is not English.

    Raises the `InvalidAudio` that fits when the recording cannot be used; `RequestTimeout` after the deadline.
    """
    started_s = time.perf_counter()
    option = {} if other_languages is None else {"other_languages": other_languages}
    speech = call("speech_to_text", {"audio": audio} | option, context=context)
    transcribed_s = time.perf_counter()
    segment_vad = _recognise_segments(speech, rules.segments_per_call, call, context)
    lengths = speech["num_samples"][:, 0]
    vad = overall_vad(segment_vad, lengths)
    transcripts = [decode(text) for text in speech["transcript"][:, 0]]
    words = " ".join(filter(None, transcripts))
    points = np.vstack([vad, segment_vad])
    probabilities = _choose_emotions(points, transcripts, shares(segment_vad, lengths), rules.choice, call, context)
    crisis = rules.find_crisis(transcripts)
    recognised_s = time.perf_counter()
    return {
        "transcript": bytes_tensor(words),
        "language": speech["language"],
        "language_probability": speech["language_probability"],
        "vad": vad,
        **_emotion_outputs(probabilities[0], rules.labels),
        UNSURE.name: np.array([_is_unsure(probabilities[0], rules.choice)], np.int32),
        "segment_start_s": speech["start_s"],
        "segment_end_s": speech["end_s"],
        "segment_transcript": bytes_tensor(*transcripts),
        "segment_vad": segment_vad,
        "segment_emotion": bytes_tensor(*(rules.labels[index] for index in probabilities[1:].argmax(axis=1))),
        **crisis,
        TRANSCRIBE_TIME.name: _seconds(transcribed_s - started_s),
        RECOGNISE_TIME.name: _seconds(recognised_s - transcribed_s),
    }


def _recognise_segments(speech: Tensors, most: int, call: Call, context: CallContext) -> npt.NDArray[np.float32]:
    """VAD [S, 3] of all segments, at most so many of them in one batch."""
    rows = ("waveform", "num_samples", "transcript")
    batches = [
        {name: speech[name][start : start + most] for name in rows} for start in range(0, len(speech["waveform"]), most)
    ]
    parts = [call("emotion_recognition", batch, context=context) for batch in batches]
    return np.concatenate([part["vad"] for part in parts])


def _choose_emotions(
    vad: npt.NDArray[np.float32],
    transcripts: Sequence[str],
    segment_shares: npt.NDArray[np.float64],
    choice: EmotionChoice | None,
    call: Call,
    context: CallContext,
) -> npt.NDArray[np.float32]:
    """Emotion probabilities [1 + S, 40] of VAD [1 + S, 3], of the whole first, with the segments' words and shares."""
    if choice is None:
        return _classify(vad, EMOTION_PROBABILITIES.name, call, context)
    from_vad = _classify(vad, EXPECTED_PROBABILITIES.name, call, context)
    embeddings = np.zeros((len(transcripts), EMBEDDING_DIM), np.float32)
    said = [row for row, text in enumerate(transcripts) if text.strip()]
    if said:
        embeddings[said] = embed([transcripts[row] for row in said], call, context=context)
    whole = choice.whole_probabilities(from_vad[0], embeddings, segment_shares)
    return np.vstack([whole, choice.probabilities(from_vad[1:], embeddings)])


def _is_unsure(probabilities: npt.NDArray[np.float32], choice: EmotionChoice | None) -> bool:
    """Whether no emotion stands out; VAD alone, the paper's way, does not say."""
    return choice is not None and bool(probabilities.max() < choice.unsure_below)


def _classify(vad: npt.NDArray[np.float32], output: str, call: Call, context: CallContext) -> npt.NDArray[np.float32]:
    """Emotion probabilities [N, 40] of VAD [N, 3]: one batch, or several where there are more than a batch holds."""
    most = EMOTION_CLASSIFIER.max_batch_size
    batches = [
        {"valence": part[:, :1], "arousal_dominance": part[:, 1:]}
        for part in np.split(vad, range(most, len(vad), most))
    ]
    parts = [call("emotion_classifier", batch, context=context) for batch in batches]
    probabilities: npt.NDArray[np.float32] = np.concatenate([part[output] for part in parts])
    sums = probabilities.sum(axis=1)
    if not (abs(sums - 1) < _ROUNDING).all():  # a NaN fails too
        raise ServerError(f"the probabilities of the emotions add up to {sums.min():.3g}..{sums.max():.3g}")
    return probabilities


def _emotion_outputs(probabilities: npt.NDArray[np.float32], labels: Sequence[str]) -> Tensors:
    """The most probable emotion, and all of them, from probabilities [40]."""
    return {
        "emotion": bytes_tensor(labels[int(probabilities.argmax())]),
        "emotion_probabilities": probabilities,
        "emotion_labels": bytes_tensor(*labels),
    }


def write_prompt(wish: Tensors, call: Call, *, context: CallContext) -> Tensors:
    """From the inputs of `music_prompt` to its outputs, and `prompt_s`."""
    started_s = time.perf_counter()
    prompt = call("music_prompt", wish, context=context)
    return prompt | {PROMPT_TIME.name: _seconds(time.perf_counter() - started_s)}


def play_therapy(
    inputs: Tensors, rules: Rules, call: Call, call_stream: CallStream, *, context: CallContext
) -> Generator[Tensors, None, None]:
    """The responses of `music_therapy`: first everything but the music, then the music as it is made.

    Where words of a recording, or of a text to make music for, speak of a crisis, the first response tells the emotion
    as it was heard, and description, prompt and music are gentle. A recording is taken out of `inputs`.

    Raises the `InvalidAudio` or `InvalidOption` that fits before anything is yielded; for an option that the music
    engine does not take, before anything is transcribed. Raises `StreamEndedEarly` when the engine ends too soon, and
    `RequestTimeout` as soon as the deadline has passed.
    """
    check_sources(inputs)
    options = _choose_options(inputs, call_stream, context)
    felt = _recognise_input(inputs, rules, call, context)
    wish = _selected(felt, "emotion", "vad") or _selected(inputs, "text", "music_spec")
    if felt.get(CRISIS_KIND.name, np.empty(0)).size:
        wish[GENTLE.name] = np.array([1], np.int32)
    prompt = write_prompt(wish, call, context=context)
    told = felt | prompt | {"server_version": bytes_tensor(version())}
    wanted = _selected(prompt, "prompt", "music_spec") | options
    with closing(call_stream("music_generator", wanted, context=context)) as music:
        for response in _to_the_end(music):
            # The announcement comes when the engine has taken the request.
            yield told | response if "engine" in response else response


def _to_the_end(music: Iterable[Tensors]) -> Iterator[Tensors]:
    """The responses of `music_generator`; raises `StreamEndedEarly` when they are less than it announced."""
    announced: Tensors = {}
    frames = 0
    for response in music:
        announced = response if "engine" in response else announced
        frames += len(response.get("music", ()))
        yield response
    if not announced:
        raise ServerError("the music ended before it began")
    check_complete(frames, int(announced["sample_rate"][0]), float(announced["duration_s"][0]))


def _choose_options(inputs: Tensors, call_stream: CallStream, context: CallContext) -> Tensors:
    """The engine, length and seed that `music_generator` will take: those asked for, or else those it chooses."""
    asked = _selected(inputs, *(option.name for option in MUSIC_OPTIONS))
    check = {"prompt": bytes_tensor(""), "music_spec": bytes_tensor(""), "check_only": np.array([1], np.int32)}
    announced = list(call_stream("music_generator", check | asked, context=context))
    if not announced:
        raise ServerError("music_generator announced nothing")
    return _selected(announced[0], *(option.name for option in MUSIC_OPTIONS))


def _recognise_input(inputs: Tensors, rules: Rules, call: Call, context: CallContext) -> Tensors:
    """The outputs of `speech_emotion` for a recording; for a wish, as many as there are."""
    if "audio" in inputs:
        # Out of the inputs, so that nobody keeps a recording, of up to a gigabyte, while its music is listened to.
        return recognise_speech(inputs.pop("audio"), rules, call, inputs.get("other_languages"), context=context)
    # Beside a specification a text is the prompt of an engine, often one that was written here.
    if "text" in inputs and "music_spec" not in inputs:
        return rules.find_crisis([check_text("text", text_of(inputs["text"]))])
    if "vad" in inputs and "emotion" not in inputs:
        vad = np.array(check_vad(inputs["vad"]), np.float32)
        probabilities = _classify(vad[None], EMOTION_PROBABILITIES.name, call, context)  # a wish is what it is
        return {"vad": vad} | _emotion_outputs(probabilities[0], rules.labels)
    if "emotion" in inputs:
        label = check_emotion(text_of(inputs["emotion"]), rules.labels)
        return {"emotion": bytes_tensor(label)} | _selected(inputs, "vad")
    return {}


def _selected(tensors: Tensors, *names: str) -> Tensors:
    """The tensors of these names, as many as there are."""
    return {name: tensors[name] for name in names if name in tensors}


def _seconds(value: float) -> npt.NDArray[np.float32]:
    return np.array([value], np.float32)
