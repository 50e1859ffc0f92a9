"""Speech to text: voice activity detection, segmentation, language identification and transcription.

Whisper hallucinates text for audio without English speech: laughter becomes "Thank you.", Russian becomes unrelated
English. So the language is identified first, and text of low probability is discarded, while the segment's audio is
kept. `ensemble/benchmarks/hearing.md` has the measurements behind the thresholds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from attune_client.protocol.bounds import MAX_SEGMENT_S
from attune_client.protocol.checks import check_other_languages
from attune_client.protocol.errors import NoSpeech, UnsupportedLanguage
from attune_client.protocol.models import ENGLISH, SPEECH_SAMPLE_RATE, OtherLanguages
from attune_client.protocol.tensors import Tensors, bytes_tensor, text_of
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.speech.audio import Decoder, Waveform, decode_speech
from attune_ensemble.speech.languages import name_of
from attune_ensemble.speech.segmentation import Span, pack, stack
from attune_ensemble.speech.whisper import (
    FULL_WINDOW_S,
    TAIL_S,
    DecodedText,
    Decoding,
    Encoded,
    Whisper,
    Word,
    import_without_pyav,
)

__all__ = [
    "Decoding",
    "TranscribedSegment",
    "Transcriber",
    "Transcription",
    "find_speech",
    "is_foreign",
    "is_reliable",
]

MIN_SPEECH_MS = 200
MIN_SILENCE_MS = 300
SPEECH_PAD_MS = 150

MIN_LOGPROB = -0.9
"""Text with a lower mean log-probability of its tokens is discarded."""

MIN_LOGPROB_IN_DOUBT = -0.5
MAX_NO_SPEECH = 0.6
"""Above this probability of no speech, the stricter `MIN_LOGPROB_IN_DOUBT` applies."""

MIN_WORD_PROBABILITY = 0.5
MIN_WORDS_PER_S = 1.0
"""A segment with a lower geometric mean of its word probabilities, or fewer words, is decoded again on its own."""

MAX_ENGLISH, MIN_FOREIGN = 0.15, 0.5
"""Speech counts as foreign if English is less probable, and another language more probable, than these."""

_SERVED = Decoding()
_GAP = SPEECH_SAMPLE_RATE // 5  # silence between joined segments, so that no word spans two of them
_WORK = "the transcript"
_OVER_AND_OVER = 6
_WORD = re.compile(r"\w+")
_MAX_WINDOW = round((FULL_WINDOW_S - TAIL_S) * SPEECH_SAMPLE_RATE)


@dataclass(frozen=True, slots=True)
class TranscribedSegment:
    """A segment of speech and its transcript, empty if it contains no intelligible English."""

    span: Span
    transcript: str


@dataclass(frozen=True, slots=True)
class Transcription:
    """The segments of a recording, and its identified language (a code) with the probability."""

    segments: list[TranscribedSegment]
    language: str
    language_probability: float


@dataclass(frozen=True, slots=True)
class _Window:
    """Consecutive segments, joined into one input window of Whisper."""

    spans: list[Span]
    encoded: Encoded


class Transcriber:
    """Transcribes recordings into segments with their words, with the weights in `model_dir`.

    The context is checked before every piece of work, of a second or two; what it raises ends the whole.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        device: str = "cpu",
        compute_type: str = "int8",
        threads: int = 2,
        decoding: Decoding = _SERVED,
        decoder: str = Decoder.WITH_PYAV,
    ) -> None:
        self._whisper = Whisper(model_dir, device, compute_type, threads, decoding)
        self._decoder = Decoder(decoder)

    def close(self) -> None:
        """Release the memory of the weights; the transcriber cannot be used afterwards."""
        self._whisper.close()

    def transcribe(self, waveform: Waveform) -> list[TranscribedSegment]:
        """Return segments of at most 8 s of [T] at 16 kHz, with English words; raises `NoSpeech` if there are none."""
        return self.recognise(waveform, OtherLanguages.VOICE).segments

    def recognise(
        self,
        waveform: Waveform,
        other_languages: OtherLanguages = OtherLanguages.REFUSE,
        *,
        context: CallContext = UNLIMITED,
    ) -> Transcription:
        """Transcribe [T] at 16 kHz.

        Raises:
            NoSpeech: the recording contains no speech.
            UnsupportedLanguage: it is not in English, and `other_languages` refuses that.
        """
        context.check(_WORK)
        spans = find_speech(waveform)
        if not spans:
            raise NoSpeech("no speech was found in the recording")
        windows = [_Window(group, self._encode(_join(waveform, group), context)) for group in _windows(spans)]
        language, probability = self._language(windows, context)
        if language == ENGLISH:
            transcripts = self._transcripts(waveform, windows, context)
        elif other_languages is OtherLanguages.VOICE:
            transcripts = [""] * len(spans)
        else:
            raise UnsupportedLanguage(
                f"the recording is in {name_of(language)} (probability {probability:.2f}), "
                "and only English is understood; "
                f"other_languages={OtherLanguages.VOICE} (--other-languages) uses the voice without the words"
            )
        segments = [TranscribedSegment(span, text) for span, text in zip(spans, transcripts, strict=True)]
        return Transcription(segments, language, probability)

    def answer(self, inputs: Tensors, *, context: CallContext = UNLIMITED) -> Tensors:
        """Compute the outputs of `speech_to_text` from one encoded recording, `audio` BYTES [1].

        Raises:
            InvalidAudio: the recording cannot be used; the subclass says why.
            InvalidOption: `other_languages` is unknown.
            AttuneError: what `CallContext.check` raises.
        """
        other_languages = read_other_languages(inputs)
        waveform = decode_speech(inputs["audio"].flat[0], self._decoder, partial(context.check, _WORK))
        transcription = self.recognise(waveform, other_languages, context=context)
        spans = [segment.span for segment in transcription.segments]
        return {
            "waveform": stack(waveform, spans),
            "num_samples": np.array([[span.end - span.start] for span in spans], np.int64),
            "start_s": np.array([span.start_s for span in spans], np.float32),
            "end_s": np.array([span.end_s for span in spans], np.float32),
            "transcript": bytes_tensor(*(segment.transcript for segment in transcription.segments))[:, None],
            "language": bytes_tensor(transcription.language),
            "language_probability": np.array([transcription.language_probability], np.float32),
        }

    def _language(self, windows: list[_Window], context: CallContext) -> tuple[str, float]:
        """Return the language of all windows, averaged with their speech durations as weights, and its probability."""
        found = [self._languages(window.encoded, context) for window in windows]
        weights = np.array([window.encoded.speech_s for window in windows])
        mean = {code: float(np.average([by_code[code] for by_code in found], weights=weights)) for code in found[0]}
        language = max(mean, key=lambda code: mean[code])
        language = language if is_foreign(language, mean) else ENGLISH
        return language, mean[language]

    def _transcripts(self, waveform: Waveform, windows: list[_Window], context: CallContext) -> list[str]:
        """Return the text of every segment; raises `NoSpeech` if all are empty and Whisper detects no speech either."""
        transcripts: list[str] = []
        no_speech: list[float] = []
        for window in windows:
            decoded = self._decode(window.encoded, context, words=len(window.spans) > 1, previous=_said(transcripts))
            no_speech.append(decoded.no_speech)
            texts = _texts(window.spans, decoded)
            for span, text in zip(window.spans, texts, strict=True):
                said = _said(transcripts)
                transcripts.append(self._alone(waveform, span, context, said) if text is None else text)
        if not any(transcripts) and min(no_speech) > MAX_NO_SPEECH:
            raise NoSpeech("something like a voice was found, but no speech")
        return transcripts

    def _alone(self, waveform: Waveform, span: Span, context: CallContext, previous: str) -> str:
        """Return the text of one segment, decoded on its own; "" if it is unreliable."""
        encoded = self._encode(waveform[span.start : span.end], context)
        decoded = self._decode(encoded, context, words=False, previous=previous)
        return decoded.text if is_reliable(decoded) else ""

    def _encode(self, waveform: Waveform, context: CallContext) -> Encoded:
        context.check(_WORK)
        return self._whisper.encode(waveform)

    def _languages(self, window: Encoded, context: CallContext) -> dict[str, float]:
        context.check(_WORK)
        return self._whisper.languages(window)

    def _decode(self, window: Encoded, context: CallContext, *, words: bool, previous: str) -> DecodedText:
        context.check(_WORK)
        return self._whisper.decode(window, words=words, previous=previous)


def read_other_languages(inputs: Tensors) -> OtherLanguages:
    """Return the option of a request; raises `InvalidOption` for an unknown choice."""
    if "other_languages" not in inputs:
        return OtherLanguages.REFUSE
    return check_other_languages(text_of(inputs["other_languages"]))


def find_speech(waveform: Waveform) -> list[Span]:
    """Return speech segments of [T] at 16 kHz, at most 8 s each, cut at pauses (Silero voice activity detection)."""
    faster_whisper_vad = import_without_pyav("faster_whisper.vad")
    options = faster_whisper_vad.VadOptions(
        min_speech_duration_ms=MIN_SPEECH_MS,
        min_silence_duration_ms=MIN_SILENCE_MS,
        speech_pad_ms=SPEECH_PAD_MS,
        max_speech_duration_s=MAX_SEGMENT_S,
    )
    found = faster_whisper_vad.get_speech_timestamps(waveform, options)
    return pack([Span(int(s["start"]), min(int(s["end"]), len(waveform))) for s in found])


def is_reliable(decoded: DecodedText) -> bool:
    """Return whether the text of a window is reliable enough to be kept."""
    if decoded.reached_limit or not has_content(decoded.text):
        return False
    in_doubt = decoded.no_speech > MAX_NO_SPEECH
    return decoded.mean_logprob >= (MIN_LOGPROB_IN_DOUBT if in_doubt else MIN_LOGPROB)


def has_content(text: str) -> bool:
    """Return whether a text is more than punctuation or one repeated syllable ("Ha ha ha ha ha ha")."""
    words = _WORD.findall(text.lower())
    return len(set(words)) > 1 or 0 < len(words) < _OVER_AND_OVER


def is_foreign(language: str, probabilities: dict[str, float]) -> bool:
    """Return whether speech is certainly not English; short or accented English is often identified wrongly."""
    return probabilities[ENGLISH] < MAX_ENGLISH and probabilities[language] > MIN_FOREIGN


def assign_words(segments: list[Span], words: tuple[Word, ...]) -> list[list[Word]]:
    """Assign each word of the joined segments (see `_join`) to its segment.

    The boundary is the middle of the gap, since Whisper's word times extend into a pause from both sides.
    """
    lengths = np.array([segment.end - segment.start + _GAP for segment in segments])
    edges_s = (np.cumsum(lengths)[:-1] - _GAP / 2) / SPEECH_SAMPLE_RATE
    assigned: list[list[Word]] = [[] for _ in segments]
    for word in words:
        assigned[int(np.searchsorted(edges_s, word.at_s))].append(word)
    return assigned


def _said(transcripts: list[str]) -> str:
    return " ".join(filter(None, transcripts))


def _texts(spans: list[Span], decoded: DecodedText) -> list[str | None]:
    """Return the text of each segment of a window; None where it has to be decoded on its own.

    That is where its words are improbable or too few, and before a segment without words, where Whisper stopped early.
    """
    if len(spans) == 1:
        return [decoded.text if is_reliable(decoded) else ""]
    if not is_reliable(decoded):
        return [None] * len(spans)
    assigned = assign_words(spans, decoded.words)
    stopped = [*(not words for words in assigned[1:]), False]
    return [
        None if before_nothing or not _is_sure(span, words) else "".join(word.text for word in words).strip()
        for span, words, before_nothing in zip(spans, assigned, stopped, strict=True)
    ]


def _is_sure(span: Span, words: list[Word]) -> bool:
    """Return whether the words cover a segment reliably; Whisper sometimes omits a sentence."""
    if len(words) < MIN_WORDS_PER_S * (span.end_s - span.start_s):
        return False
    if not has_content("".join(word.text for word in words)):
        return False
    probabilities = np.array([word.probability for word in words])
    return bool(np.exp(np.log(np.maximum(probabilities, 1e-6)).mean()) >= MIN_WORD_PROBABILITY)


def _windows(spans: list[Span]) -> Iterator[list[Span]]:
    """Yield consecutive segments in groups that fit into one window of Whisper, including the gaps."""
    group: list[Span] = []
    length = 0
    for span in spans:
        added = span.end - span.start + _GAP
        if group and length + added > _MAX_WINDOW:
            yield group
            group, length = [], 0
        group.append(span)
        length += added
    yield group


def _join(waveform: Waveform, segments: list[Span]) -> Waveform:
    """Concatenate the segments with short gaps: Whisper's cost grows with the audio's length, pauses included."""
    gap = np.zeros(_GAP, np.float32)
    parts = [part for segment in segments for part in (waveform[segment.start : segment.end], gap)]
    return np.concatenate(parts)
