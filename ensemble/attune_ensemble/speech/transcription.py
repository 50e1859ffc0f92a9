"""Speech to text: finding the speech, cutting it into segments, and writing down the words of each.

Whisper writes something down for whatever it hears: laughter becomes "Thank you.", Russian becomes English that
nobody said. So the language is asked first, and words that Whisper itself finds unlikely are left out; the voice
stays. `ensemble/benchmarks/hearing.md` has what the thresholds were measured on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attune_client.protocol.bounds import MAX_SEGMENT_S
from attune_client.protocol.checks import check_other_languages
from attune_client.protocol.errors import NoSpeech, UnsupportedLanguage
from attune_client.protocol.models import ENGLISH, SPEECH_SAMPLE_RATE, OtherLanguages
from attune_client.protocol.tensors import Tensors, bytes_tensor, text_of
from attune_ensemble.speech.audio import Decoder, Waveform, decode_speech
from attune_ensemble.speech.languages import name_of
from attune_ensemble.speech.segmentation import Span, pack, stack
from attune_ensemble.speech.whisper import FULL_WINDOW_S, TAIL_S, Encoded, Heard, Whisper, Word, import_without_pyav

__all__ = [
    "TranscribedSegment",
    "Transcriber",
    "Transcription",
    "find_speech",
    "is_foreign",
    "was_said",
]

MIN_SPEECH_MS = 200
MIN_SILENCE_MS = 300
SPEECH_PAD_MS = 150

MIN_LOGPROB = -0.9
"""Text whose tokens are less likely than this in the mean was not said."""

MIN_LOGPROB_IN_DOUBT = -0.5
MAX_NO_SPEECH = 0.6
"""Above this probability of no speech, text has to be likelier: `MIN_LOGPROB_IN_DOUBT`."""

MIN_WORD_PROBABILITY = 0.5
MIN_WORDS_PER_S = 1.0
"""A segment whose words are less likely (geometric mean) or fewer than this is listened to again on its own."""

MAX_ENGLISH, MIN_FOREIGN = 0.15, 0.5
"""Speech counts as foreign where English is less likely, and another language more likely, than these."""

_GAP = SPEECH_SAMPLE_RATE // 5  # silence put between segments, so that no word runs over two of them
_OVER_AND_OVER = 6
_WORD = re.compile(r"\w+")
_MAX_WINDOW = round((FULL_WINDOW_S - TAIL_S) * SPEECH_SAMPLE_RATE)


@dataclass(frozen=True, slots=True)
class TranscribedSegment:
    """A segment of speech and its words; none where nothing was said, or not in English."""

    span: Span
    transcript: str


@dataclass(frozen=True, slots=True)
class Transcription:
    """The segments of a recording, and the language (by its code) that it was taken for."""

    segments: list[TranscribedSegment]
    language: str
    language_probability: float


@dataclass(frozen=True, slots=True)
class _Window:
    """Neighbouring segments, joined into one piece that Whisper takes at once."""

    spans: list[Span]
    encoded: Encoded


class Transcriber:
    """Recordings to segments and their words, with the weights in `model_dir`.

    `check` is called before every piece of work, of a second or two, and may raise what ends the whole.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        device: str = "cpu",
        compute_type: str = "int8",
        threads: int = 2,
        beam_size: int = 1,
        decoder: str = Decoder.WITH_PYAV,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._whisper = Whisper(model_dir, device, compute_type, threads, beam_size)
        self._decoder = Decoder(decoder)
        self._check = check

    def transcribe(self, waveform: Waveform) -> list[TranscribedSegment]:
        """Segments of at most 8 s with their English words, of [T] at 16 kHz; raises `NoSpeech` if there are none."""
        return self.hear(waveform, OtherLanguages.VOICE).segments

    def hear(self, waveform: Waveform, other_languages: OtherLanguages = OtherLanguages.REFUSE) -> Transcription:
        """What [T] at 16 kHz says; raises `NoSpeech`, or `UnsupportedLanguage` where that is to be refused."""
        spans = find_speech(waveform)
        if not spans:
            raise NoSpeech("no speech was found in the recording")
        windows = [_Window(group, self._encode(_join(waveform, group))) for group in _windows(spans)]
        language, probability = self._language(windows)
        if language == ENGLISH:
            transcripts = self._transcripts(waveform, windows)
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

    def answer(self, inputs: Tensors) -> Tensors:
        """From one encoded recording, `audio` BYTES [1], to the outputs of `speech_to_text`.

        Raises the `InvalidAudio` that fits when the recording cannot be used, `InvalidOption` for an
        `other_languages` that does not exist.
        """
        other_languages = read_other_languages(inputs)
        waveform = decode_speech(inputs["audio"].flat[0], self._decoder, self._check)
        heard = self.hear(waveform, other_languages)
        spans = [segment.span for segment in heard.segments]
        return {
            "waveform": stack(waveform, spans),
            "num_samples": np.array([[span.end - span.start] for span in spans], np.int64),
            "start_s": np.array([span.start_s for span in spans], np.float32),
            "end_s": np.array([span.end_s for span in spans], np.float32),
            "transcript": bytes_tensor(*(segment.transcript for segment in heard.segments))[:, None],
            "language": bytes_tensor(heard.language),
            "language_probability": np.array([heard.language_probability], np.float32),
        }

    def _language(self, windows: list[_Window]) -> tuple[str, float]:
        """The language of all windows together, each counting as long as its speech lasts, and its probability."""
        found = [self._whisper.languages(window.encoded) for window in windows]
        weights = np.array([window.encoded.speech_s for window in windows])
        mean = {code: float(np.average([by_code[code] for by_code in found], weights=weights)) for code in found[0]}
        language = max(mean, key=lambda code: mean[code])
        language = language if is_foreign(language, mean) else ENGLISH
        return language, mean[language]

    def _transcripts(self, waveform: Waveform, windows: list[_Window]) -> list[str]:
        """The words of every segment; raises `NoSpeech` where there are none and Whisper finds no speech either."""
        transcripts: list[str] = []
        no_speech: list[float] = []
        for window in windows:
            heard = self._decode(window.encoded, words=len(window.spans) > 1)
            no_speech.append(heard.no_speech)
            texts = _texts(window.spans, heard)
            for span, text in zip(window.spans, texts, strict=True):
                transcripts.append(self._alone(waveform, span) if text is None else text)
        if not any(transcripts) and min(no_speech) > MAX_NO_SPEECH:
            raise NoSpeech("something like a voice was found, but no speech")
        return transcripts

    def _alone(self, waveform: Waveform, span: Span) -> str:
        """The words of one segment, heard on its own; "" if nothing was said."""
        heard = self._decode(self._encode(waveform[span.start : span.end]), words=False)
        return heard.text if was_said(heard) else ""

    def _encode(self, waveform: Waveform) -> Encoded:
        self._check()
        return self._whisper.encode(waveform)

    def _decode(self, window: Encoded, *, words: bool) -> Heard:
        self._check()
        return self._whisper.decode(window, words=words)


def read_other_languages(inputs: Tensors) -> OtherLanguages:
    """The option of a request; `InvalidOption` if there is no such choice."""
    if "other_languages" not in inputs:
        return OtherLanguages.REFUSE
    return check_other_languages(text_of(inputs["other_languages"]))


def find_speech(waveform: Waveform) -> list[Span]:
    """Segments of speech in [T] at 16 kHz, cut at pauses to at most 8 s each (Silero voice activity detection)."""
    faster_whisper_vad = import_without_pyav("faster_whisper.vad")
    options = faster_whisper_vad.VadOptions(
        min_speech_duration_ms=MIN_SPEECH_MS,
        min_silence_duration_ms=MIN_SILENCE_MS,
        speech_pad_ms=SPEECH_PAD_MS,
        max_speech_duration_s=MAX_SEGMENT_S,
    )
    found = faster_whisper_vad.get_speech_timestamps(waveform, options)
    return pack([Span(int(s["start"]), min(int(s["end"]), len(waveform))) for s in found])


def was_said(heard: Heard) -> bool:
    """Whether the words of a window are likely enough to have been said."""
    if heard.runs_on or not says_something(heard.text):
        return False
    in_doubt = heard.no_speech > MAX_NO_SPEECH
    return heard.mean_logprob >= (MIN_LOGPROB_IN_DOUBT if in_doubt else MIN_LOGPROB)


def says_something(text: str) -> bool:
    """Whether a text is more than punctuation, or one syllable over and over ("Ha ha ha ha ha ha")."""
    words = _WORD.findall(text.lower())
    return len(set(words)) > 1 or 0 < len(words) < _OVER_AND_OVER


def is_foreign(language: str, probabilities: dict[str, float]) -> bool:
    """Whether speech is surely not English; short or strange English is often taken for a language at random."""
    return probabilities[ENGLISH] < MAX_ENGLISH and probabilities[language] > MIN_FOREIGN


def assign_words(segments: list[Span], words: tuple[Word, ...]) -> list[list[Word]]:
    """Give each word of the joined segments (see `_join`) to the segment in which it is said.

    A gap belongs half to the segment before it: Whisper lets words on both sides reach into a pause.
    """
    lengths = np.array([segment.end - segment.start + _GAP for segment in segments])
    edges_s = (np.cumsum(lengths)[:-1] - _GAP / 2) / SPEECH_SAMPLE_RATE
    assigned: list[list[Word]] = [[] for _ in segments]
    for word in words:
        assigned[int(np.searchsorted(edges_s, word.at_s))].append(word)
    return assigned


def _texts(spans: list[Span], heard: Heard) -> list[str | None]:
    """The text of each segment of a window; None where it has to be heard on its own.

    That is where its words are unlikely or too few, and before a segment without words: Whisper stopped early.
    """
    if len(spans) == 1:
        return [heard.text if was_said(heard) else ""]
    if not was_said(heard):
        return [None] * len(spans)
    assigned = assign_words(spans, heard.words)
    stopped = [*(not words for words in assigned[1:]), False]
    return [
        None if before_nothing or not _is_sure(span, words) else "".join(word.text for word in words).strip()
        for span, words, before_nothing in zip(spans, assigned, stopped, strict=True)
    ]


def _is_sure(span: Span, words: list[Word]) -> bool:
    """Whether Whisper, which sometimes leaves a sentence out, wrote down what a segment says."""
    if len(words) < MIN_WORDS_PER_S * (span.end_s - span.start_s):
        return False
    if not says_something("".join(word.text for word in words)):
        return False
    probabilities = np.array([word.probability for word in words])
    return bool(np.exp(np.log(np.maximum(probabilities, 1e-6)).mean()) >= MIN_WORD_PROBABILITY)


def _windows(spans: list[Span]) -> Iterator[list[Span]]:
    """Neighbouring segments in groups that fit into one window of Whisper, the silence after them included."""
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
    """The segments one after the other with short gaps: Whisper pays for windows, not for pauses."""
    gap = np.zeros(_GAP, np.float32)
    parts = [part for segment in segments for part in (waveform[segment.start : segment.end], gap)]
    return np.concatenate(parts)
