"""Cutting narrations at pauses, and giving words to segments: `pytest tests/unit/test_segmentation.py`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune_ensemble.speech.segmentation import Span, bucket_length, pack, stack
from attune_ensemble.speech.transcription import _GAP, assign_words
from attune_ensemble.speech.whisper import Word, pad_for_whisper, place_words

RATE = 16_000


def span(start_s: float, end_s: float) -> Span:
    return Span(round(start_s * RATE), round(end_s * RATE))


def test_neighbours_join_until_eight_seconds():
    assert pack([span(0, 3), span(3.3, 7.5), span(7.9, 9)]) == [span(0, 7.5), span(7.9, 9)]


def test_a_long_pause_separates():
    assert pack([span(0, 1), span(2, 3)]) == [span(0, 1), span(2, 3)]


def test_speech_without_a_pause_is_cut_into_equal_parts():
    parts = pack([span(0, 20)])
    assert [round(part.end_s - part.start_s, 2) for part in parts] == [6.67, 6.67, 6.67]
    assert (parts[0].start, parts[-1].end) == (0, 20 * RATE)


def test_nothing_in_nothing_out():
    assert pack([]) == []


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 400_000)), max_size=20))
def test_nothing_is_left_out_and_no_segment_is_too_long(gaps_and_lengths):
    speech, position = [], 0
    for gap, length in gaps_and_lengths:
        speech.append(Span(position + gap, position + gap + length))
        position = speech[-1].end
    segments = pack(speech)
    assert all(0 < s.end - s.start <= 8 * RATE for s in segments)
    assert all(a.end <= b.start for a, b in pairwise(segments))
    covered = np.zeros(position, bool)
    for segment in segments:
        covered[segment.start : segment.end] = True
    assert all(covered[stretch.start : stretch.end].all() for stretch in speech)


def test_rows_are_zero_padded_to_one_bucket():
    waveform = np.arange(1, 5 * RATE + 1, dtype=np.float32)
    rows = stack(waveform, [span(0, 1.5), span(2, 5)])
    assert rows.shape == (2, 3 * RATE)
    np.testing.assert_array_equal(rows[0, :24_000], waveform[:24_000])
    assert not rows[0, 24_000:].any()
    np.testing.assert_array_equal(rows[1], waveform[2 * RATE :])


@pytest.mark.parametrize(("samples", "bucket"), [(1, 16_000), (16_000, 16_000), (16_001, 32_000), (128_000, 128_000)])
def test_buckets_are_whole_seconds(samples, bucket):
    assert bucket_length(samples) == bucket


def texts(segments: list[Span], words: list[tuple[str, float]]) -> list[str]:
    assigned = assign_words(segments, tuple(Word(text, at_s, 0.9) for text, at_s in words))
    return ["".join(word.text for word in group).strip() for group in assigned]


def test_words_go_to_the_segment_in_which_they_are_said():
    segments = [span(0, 2), span(5, 6), span(9, 10)]
    gap_s = _GAP / RATE
    words = [(" one", 0.5), (" two", 1.9), (" three", 2 + gap_s + 0.5)]
    assert texts(segments, words) == ["one two", "three", ""]


def test_a_word_past_the_end_goes_to_the_last_segment():
    assert texts([span(0, 1)], [(" late", 7.0)]) == ["late"]


def test_a_word_that_reaches_into_a_pause_goes_to_the_nearer_segment():
    gap_s = _GAP / RATE
    words = [(" before", 2 + 0.4 * gap_s), (" after", 2 + 0.6 * gap_s)]
    assert texts([span(0, 2), span(5, 6)], words) == ["before", "after"]


def test_a_word_beside_a_pause_lies_on_its_own_side():
    aligned = [
        {"word": word, "start": start, "end": end, "probability": 0.9}
        for word, start, end in ((" one.", 0.0, 0.5), (" Two", 0.5, 4.0), (" three", 4.0, 4.4), (" four", 4.4, 9.0))
    ]
    assert [round(word.at_s, 2) for word in place_words(aligned)] == [0.25, 4.0, 4.2, 4.4]


@pytest.mark.parametrize(("speech_s", "window_s"), [(0.5, 10), (8, 10), (8.1, 10.5), (27.6, 30), (29, 30), (30, 30)])
def test_whispers_window_follows_the_speech(speech_s, window_s):
    waveform = np.ones(round(speech_s * RATE), np.float32)
    window = pad_for_whisper(waveform)
    assert len(window) == window_s * RATE
    np.testing.assert_array_equal(window[: len(waveform)], waveform)
    assert not window[len(waveform) :].any()
