"""Cutting narrations at pauses, and giving words to segments: `pytest tests/unit/test_segmentation.py`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune_ensemble.segmentation import Span, bucket_length, pack, stack
from attune_ensemble.transcription import _GAP, assign_words, pad_for_whisper

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


def test_words_go_to_the_segment_in_which_their_middle_lies():
    segments = [span(0, 2), span(5, 6), span(9, 10)]
    gap_s = _GAP / RATE
    words = [(0.5, " one"), (1.9, " two"), (2 + gap_s + 0.5, " three")]
    assert assign_words(segments, words) == ["one two", "three", ""]


def test_a_word_past_the_end_goes_to_the_last_segment():
    assert assign_words([span(0, 1)], [(7.0, " late")]) == ["late"]


@pytest.mark.parametrize(("speech_s", "window_s"), [(0.5, 10), (8, 10), (8.1, 10.5), (29, 30), (59.5, 60), (61, 63)])
def test_whispers_window_follows_the_speech(speech_s, window_s):
    waveform = np.ones(round(speech_s * RATE), np.float32)
    window = pad_for_whisper(waveform)
    assert len(window) == window_s * RATE
    np.testing.assert_array_equal(window[: len(waveform)], waveform)
    assert not window[len(waveform) :].any()
