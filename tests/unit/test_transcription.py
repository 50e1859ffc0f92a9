"""Transcription, and which text is discarded: `pytest tests/unit/test_transcription.py`.

The first part uses a fake Whisper, the second the real one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
from tools.hearing import humming, laughter

from attune_client.protocol.errors import InvalidOption, NoSpeech, RequestCancelled, UnsupportedLanguage
from attune_client.protocol.models import SPEECH_TO_TEXT
from attune_ensemble.call import CallContext
from attune_ensemble.speech import transcription
from attune_ensemble.speech.audio import Decoder, decode_speech
from attune_ensemble.speech.languages import name_of
from attune_ensemble.speech.segmentation import Span
from attune_ensemble.speech.transcription import OtherLanguages, Transcriber, is_foreign, is_reliable
from attune_ensemble.speech.whisper import TIMESTAMP_S, TOKENS_PER_S, DecodedText, Decoding, Encoded, Whisper, Word

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "model_repository" / "speech_to_text" / "1" / "whisper"
RATE = 16_000
LIKELY = DecodedText("hello there", (), -0.3, 0.02, False)
UNLIKELY = DecodedText("Thank you.", (), -1.2, 0.3, False)


@dataclass
class FakeWhisper:
    """Returns the given texts in turn, and records the lengths of the windows."""

    results: list[DecodedText]
    languages_of: list[dict[str, float]] = field(default_factory=lambda: [{"en": 0.98, "de": 0.01}])
    windows_s: list[float] = field(default_factory=list)
    identified: int = 0
    decoded: int = 0
    previous: list[str] = field(default_factory=list)

    def encode(self, waveform):
        self.windows_s.append(round(len(waveform) / RATE, 1))
        return Encoded(None, 0, len(waveform) / RATE)

    def languages(self, window):
        self.identified += 1
        return self.languages_of[len(self.windows_s) % len(self.languages_of)]

    def decode(self, window, *, words, previous):
        self.decoded += 1
        self.previous.append(previous)
        return self.results[self.decoded - 1]


def transcriber_with(monkeypatch, whisper: FakeWhisper, *spans_s: tuple[float, float]) -> Transcriber:
    made = Transcriber.__new__(Transcriber)
    made._whisper, made._decoder = whisper, Decoder.SOUNDFILE
    spans = [Span(round(start * RATE), round(end * RATE)) for start, end in spans_s]
    monkeypatch.setattr(transcription, "find_speech", lambda waveform: spans)
    return made


WAVEFORM = np.zeros(120 * RATE, np.float32)


@pytest.mark.parametrize(
    ("decoded", "kept"),
    [
        (LIKELY, True),
        (DecodedText("Hm", (), -0.89, 0.59, False), True),
        (DecodedText("Thank you.", (), -0.91, 0.1, False), False),  # unlikely
        (DecodedText("you", (), -0.6, 0.8, False), False),  # in doubt, and not likely enough for that
        (DecodedText("Sure thing.", (), -0.4, 0.8, False), True),
        (DecodedText("ha ha ha ha ha ha ha", (), -0.1, 0.1, True), False),  # without end
        (DecodedText("...", (), -0.2, 0.1, False), False),
        (DecodedText("P-P-P-P-P-P-P", (), -0.1, 0.1, False), False),
        (DecodedText("No, no, no!", (), -0.3, 0.1, False), True),
    ],
)
def test_text_is_kept_where_its_probability_is_high(decoded, kept):
    assert is_reliable(decoded) is kept


def test_a_segment_without_reliable_text_keeps_its_audio(monkeypatch):
    made = transcriber_with(monkeypatch, FakeWhisper([UNLIKELY]), (1, 3))
    (segment,) = made.recognise(WAVEFORM).segments
    assert (segment.transcript, segment.span) == ("", Span(RATE, 3 * RATE))


@pytest.mark.parametrize("pieces", range(10))
def test_a_transcription_that_nobody_waits_for_ends_at_its_next_piece(monkeypatch, pieces):
    """Speech is found; three windows are encoded, identified and decoded: before each it is seen who has gone."""
    whisper = FakeWhisper([LIKELY] * 3)
    made = transcriber_with(monkeypatch, whisper, (0, 25), (30, 55), (60, 85))
    spans, found, asked = transcription.find_speech(WAVEFORM), [], []
    monkeypatch.setattr(transcription, "find_speech", lambda waveform: found.append(None) or spans)

    def is_cancelled() -> bool:
        asked.append(None)
        return len(asked) > pieces

    with pytest.raises(RequestCancelled):
        made.recognise(WAVEFORM, context=CallContext(is_cancelled=is_cancelled))
    assert len(found) + len(whisper.windows_s) + whisper.identified + whisper.decoded == pieces


def test_a_voice_without_words_is_no_speech(monkeypatch):
    hum = DecodedText("you", (), -1.2, 0.87, False)
    with pytest.raises(NoSpeech):
        transcriber_with(monkeypatch, FakeWhisper([hum]), (1, 3)).recognise(WAVEFORM)


def words(text: str, start_s: float, probability: float = 0.9) -> tuple[Word, ...]:
    return tuple(Word(f" {word}", start_s + 0.3 * i, probability) for i, word in enumerate(text.split()))


def test_an_unreliable_segment_is_decoded_again_and_only_its_text_is_dropped(monkeypatch):
    gap_s = transcription._GAP / RATE
    joined = words("one two three", 0.5) + words("thank you", 2 + gap_s + 0.5, 0.3) + words("four five", 5.0)
    whisper = FakeWhisper([DecodedText("one two", joined, -0.4, 0.02, False), UNLIKELY])
    made = transcriber_with(monkeypatch, whisper, (1, 3), (5, 7), (9, 11))
    assert [segment.transcript for segment in made.recognise(WAVEFORM).segments] == ["one two three", "", "four five"]
    assert whisper.windows_s == [6.6, 2.0]


def test_segments_that_whisper_left_out_are_decoded_again(monkeypatch):
    joined = DecodedText("one two", words("one two three", 0.5), -0.4, 0.02, False)
    whisper = FakeWhisper([joined, LIKELY, LIKELY, LIKELY])
    made = transcriber_with(monkeypatch, whisper, (1, 3), (5, 7), (9, 11))
    # The first as well: Whisper may have stopped in the middle of it.
    assert [segment.transcript for segment in made.recognise(WAVEFORM).segments] == ["hello there"] * 3


def test_a_repetition_loop_is_decoded_segment_by_segment_once(monkeypatch):
    whisper = FakeWhisper(
        [DecodedText("ha ha", (), -0.1, 0.1, True), LIKELY, DecodedText("ha ha", (), -0.1, 0.1, True)]
    )
    made = transcriber_with(monkeypatch, whisper, (1, 3), (5, 7))
    assert [segment.transcript for segment in made.recognise(WAVEFORM).segments] == ["hello there", ""]
    assert whisper.decoded == 3


def test_windows_hold_whole_segments_and_fit_into_whispers(monkeypatch):
    whisper = FakeWhisper([UNLIKELY] * 40)
    spans = [(8.5 * i, 8.5 * i + 8) for i in range(14)]
    made = transcriber_with(monkeypatch, whisper, *spans)
    assert len(made.transcribe(WAVEFORM)) == 14
    assert whisper.windows_s[:5] == [24.6, 24.6, 24.6, 24.6, 16.4]
    assert whisper.decoded == 5 + 14  # every window once, every segment once more at most


def test_what_was_said_before_goes_with_every_window(monkeypatch):
    second = DecodedText("five", words("five", 0.5), -0.4, 0.02, False)
    whisper = FakeWhisper([LIKELY, second, LIKELY, UNLIKELY])
    transcriber_with(monkeypatch, whisper, (0, 25), (30, 38), (39, 47)).recognise(WAVEFORM)
    # The second window's two segments were decoded again, each on its own.
    assert whisper.previous == ["", "hello there", "hello there", "hello there hello there"]


RUSSIAN = {"en": 0.01, "ru": 0.97}


def test_another_language_is_refused_by_name(monkeypatch):
    whisper = FakeWhisper([LIKELY], [RUSSIAN])
    with pytest.raises(UnsupportedLanguage, match=r"in Russian \(probability 0\.97\).*other_languages=voice"):
        transcriber_with(monkeypatch, whisper, (1, 3)).recognise(WAVEFORM)
    assert whisper.decoded == 0


def test_or_its_audio_is_used_without_text(monkeypatch):
    whisper = FakeWhisper([], [RUSSIAN])
    result = transcriber_with(monkeypatch, whisper, (1, 3)).recognise(WAVEFORM, OtherLanguages.VOICE)
    assert ([s.transcript for s in result.segments], result.language) == ([""], "ru")
    assert result.language_probability == pytest.approx(0.97)


def test_the_language_is_that_of_most_of_the_speech(monkeypatch):
    spans = [(0, 8), (9, 17), (18, 26), (40, 41)]  # a long window and a short one
    whisper = FakeWhisper([], [RUSSIAN, {"en": 0.98, "ru": 0.01}])
    made = transcriber_with(monkeypatch, whisper, *spans)
    whisper.languages = lambda window: RUSSIAN if window.speech_s > 10 else {"en": 0.98, "ru": 0.01}
    assert made.recognise(WAVEFORM, OtherLanguages.VOICE).language == "ru"


@pytest.mark.parametrize(
    ("english", "other", "foreign"),
    [(0.01, 0.97, True), (0.32, 0.62, False), (0.05, 0.35, False), (0.14, 0.51, True), (0.45, 0.5, False)],
)
def test_only_what_is_surely_foreign_counts_as_such(english, other, foreign):
    assert is_foreign("cy", {"en": english, "cy": other}) is foreign


def test_languages_have_names():
    assert [name_of(code) for code in ("zh", "de", "ht", "xx")] == ["Chinese", "German", "Haitian Creole", "xx"]


def recording(waveform: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    sf.write(buffer, waveform, RATE, format="WAV")
    return np.array([buffer.getvalue()], dtype=np.object_)


def test_an_unknown_choice_is_refused_before_anything_is_decoded(monkeypatch):
    made = transcriber_with(monkeypatch, FakeWhisper([]), (1, 3))
    with pytest.raises(InvalidOption, match="one of refuse, voice, not 'sing'"):
        made.answer({"audio": recording(WAVEFORM), "other_languages": np.array([b"sing"], dtype=np.object_)})


# The real one.


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return Transcriber(WEIGHTS)


@pytest.fixture(scope="module")
def sentence(samples: list[Path]) -> np.ndarray:
    return decode_speech(samples[1].read_bytes())


def test_every_output_is_declared(transcriber, samples):
    outputs = transcriber.answer({"audio": np.array([samples[1].read_bytes()], dtype=np.object_)})
    assert set(outputs) == {tensor.name for tensor in SPEECH_TO_TEXT.outputs}
    assert outputs["language"].tolist() == [b"en"]
    assert outputs["language_probability"][0] > 0.9


def test_laughter_keeps_its_audio_and_gets_no_text(transcriber):
    for laugh in (laughter(220, 4, "e"), laughter(130, 5.2, "i"), laughter(320, 5.2, "e")):
        result = transcriber.recognise(laugh)
        assert [segment.transcript for segment in result.segments] == [""] * len(result.segments)


def test_humming_is_no_speech(transcriber):
    with pytest.raises(NoSpeech):
        transcriber.recognise(humming(160))


def test_laughter_between_sentences_takes_no_words_from_them(transcriber, sentence):
    pause = np.zeros(RATE, np.float32)
    laugh = laughter(220, 4, "e")
    result = transcriber.recognise(np.concatenate([sentence, pause, laugh, pause, sentence])).segments
    laughing = [s for s in result if len(sentence) <= s.span.start < len(sentence) + 2 * RATE + len(laugh)]
    assert laughing
    assert not any(s.transcript for s in laughing)
    assert sum(s.transcript.startswith("Unless to be") and "selfish" in s.transcript for s in result) == 2


def test_a_recording_that_repeats_itself_keeps_its_words_and_is_decoded_once(transcriber, samples, monkeypatch):
    spoken = [decode_speech(path.read_bytes()) for path in sorted((ROOT / "tests/data/spoken").glob("happy-*.flac"))]
    repeated = np.concatenate([spoken[3], np.zeros(RATE, np.float32)] * 16)  # a minute of one sentence
    decoded: list[int] = []
    model = transcriber._whisper._model.model
    generate = type(model).generate

    class Counted:
        def __getattr__(self, name):
            return getattr(model, name)

        def generate(self, output, prompts, **options):
            assert options.get("sampling_temperature", 0) == 0
            assert options["max_length"] <= len(prompts[0]) + 16 + TOKENS_PER_S * 30
            decoded.append(1)
            return generate(model, output, prompts, **options)

    monkeypatch.setattr(transcriber._whisper._model, "model", Counted())
    result = transcriber.transcribe(repeated)
    assert sum(segment.transcript.lower().count("garden") for segment in result) == 16
    assert len(decoded) <= 3 + len(result)


@dataclass
class Generating:
    """Whisper's model, whose `generate` keeps the prompts and temperatures and may say that all text is improbable."""

    model: object
    score: float | None = None
    prompts: list[list[int]] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.model, name)

    def generate(self, output, prompts, **options):
        self.prompts.append(prompts[0])
        self.temperatures.append(options.get("sampling_temperature", 0))
        (found,) = self.model.generate(output, prompts, **options)
        if self.score is None:
            return [found]
        scores = [self.score + len(self.prompts)]  # every try is more probable than the one before
        return [SimpleNamespace(sequences_ids=found.sequences_ids, scores=scores, no_speech_prob=0.0)]


def generating(monkeypatch, decoding, score=None):
    whisper = Whisper(WEIGHTS, "cpu", "int8", threads=1, decoding=decoding)
    seen = Generating(whisper._model.model, score)
    monkeypatch.setattr(whisper._model, "model", seen)
    return whisper, seen


def test_the_served_decoding_is_one_search_without_a_prompt(monkeypatch, sentence):
    whisper, seen = generating(monkeypatch, Decoding(), score=-9.0)
    found = whisper.decode(whisper.encode(sentence), words=False, previous="He said so.")
    assert found.text.startswith("Unless to be rather")
    assert (seen.prompts, seen.temperatures) == ([list(whisper._tokenizer.sot_sequence)], [0])


def test_a_prompt_and_what_was_said_stand_before_the_text(monkeypatch, sentence):
    whisper, seen = generating(monkeypatch, Decoding(prompt="A story.", condition_on_previous=True))
    window = whisper.encode(sentence)
    assert whisper.decode(window, words=False, previous="He said so.").text.endswith("disposed.")
    before = seen.prompts[0][: -len(whisper._tokenizer.sot_sequence)]
    assert before[0] == whisper._tokenizer.sot_prev
    assert whisper._tokenizer.decode(before[1:]) == " A story. He said so."
    whisper.decode(window, words=False, previous="word " * 400)
    assert len(seen.prompts[1]) == 1 + 223 + len(whisper._tokenizer.sot_sequence)


def test_doubtful_text_is_sampled_again_until_it_is_not(monkeypatch, sentence):
    decoding = Decoding(fallback=(0.2, 0.4, 0.6))
    whisper, seen = generating(monkeypatch, decoding, score=-3.5)
    found = whisper.decode(whisper.encode(sentence), words=False)  # scores of -2.5, -1.5 and -0.5
    assert seen.temperatures == [0, 0.2, 0.4]
    assert found.mean_logprob == pytest.approx(-0.5, abs=0.1)
    whisper, seen = generating(monkeypatch, decoding)
    whisper.decode(whisper.encode(sentence), words=False)
    assert seen.temperatures == [0]


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ((5.4,), True),  # the end of the speech, a little late
        ((5.2, 5.2), True),
        ((5.3, 5.3), False),
        ((6.1, 6.1), False),
    ],
)
def test_what_is_said_again_in_the_silence_after_the_speech_is_left_out(monkeypatch, sentence, after, kept):
    """The sentence lasts 5.3 s; behind it stands another one, after these timestamps."""
    whisper, _ = generating(monkeypatch, Decoding())
    tokens, first = whisper._tokenizer.encode(" So be it."), whisper._tokenizer.timestamp_begin
    said = [first, *tokens, *(first + round(second / TIMESTAMP_S) for second in after)]
    again = [*said, *(tokens if len(after) > 1 else [])]
    answer = SimpleNamespace(sequences_ids=[again], scores=[-0.3], no_speech_prob=0.0)
    monkeypatch.setattr(Generating, "generate", lambda *arguments, **options: [answer])
    found = whisper.decode(whisper.encode(sentence), words=False)
    assert found.text == ("So be it. So be it." if kept and len(after) > 1 else "So be it.")
