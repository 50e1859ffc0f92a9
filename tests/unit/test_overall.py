"""What a narration is on the whole, from its segments: `pytest tests/unit/test_overall.py`."""

from __future__ import annotations

import numpy as np
import pytest

from attune_ensemble.speech.overall import HALF_LIFE_S, SERVED, OverallRule, overall_vad, shares

SECOND = 16_000
PATH = [[1.5, 4.0, 2.0], [2.5, 3.0, 3.0], [4.0, 3.5, 3.5]]


def seconds(*lengths):
    return [length * SECOND for length in lengths]


def test_the_served_rule_is_the_mixture():
    assert SERVED is OverallRule.MIXTURE
    served = shares(PATH, seconds(3, 1, 2))
    np.testing.assert_array_equal(served, shares(PATH, seconds(3, 1, 2), OverallRule.MIXTURE))
    np.testing.assert_allclose(overall_vad(PATH, seconds(3, 1, 2)), served @ PATH, rtol=1e-6)


def test_by_length_it_is_the_mean_by_length():
    mean = overall_vad([[1, 2, 3], [5, 4, 3]], seconds(3, 1), OverallRule.DURATION)
    np.testing.assert_allclose(mean, [2.0, 2.5, 3.0])


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((5, 6, 8), (0, 0, 1)),
        ((5, 6, 12), (0, 0, 1)),
        ((5, 6, 1), (1 / 8, 6 / 8, 1 / 8)),  # a last scrap of a second does not decide
        ((1, 1, 2), (1 / 4, 1 / 4, 2 / 4)),  # less than 8 s: all of it
    ],
)
def test_the_end_is_the_last_eight_seconds_of_speech(lengths, expected):
    assert shares(PATH, seconds(*lengths), OverallRule.END) == pytest.approx(expected)


def test_the_strongest_is_furthest_from_neutral_whatever_its_length():
    assert overall_vad(PATH, seconds(1, 8, 8), OverallRule.STRONGEST) == pytest.approx(PATH[0])
    # Two as far from neutral: the later one.
    assert overall_vad([[1, 3, 3], [5, 3, 3]], seconds(8, 1), OverallRule.STRONGEST) == pytest.approx([5, 3, 3])


def test_a_mixture_counts_what_is_late_and_what_is_strong():
    half = seconds(HALF_LIFE_S, HALF_LIFE_S)
    assert shares([[4, 3, 3], [2, 3, 3]], half, OverallRule.MIXTURE) == pytest.approx([1 / 3, 2 / 3])
    assert shares([[5, 3, 3], [2, 3, 3]], half, OverallRule.MIXTURE) == pytest.approx([1 / 2, 1 / 2])
    assert overall_vad([[3, 3, 3], [3, 3, 3]], half, OverallRule.MIXTURE) == pytest.approx([3, 3, 3])


@pytest.mark.parametrize("rule", OverallRule)
def test_every_rule_is_a_mean_whatever_the_cuts(rule):
    found = shares(PATH, seconds(3, 0.5, 7), rule)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    assert overall_vad(PATH[:1], seconds(2), rule) == pytest.approx(PATH[0])
    # A segment that is cut in two with the same feeling in both counts as much as before.
    cut = overall_vad([PATH[0], PATH[0], *PATH[1:]], seconds(1, 2, 0.5, 7), rule)
    assert cut == pytest.approx(overall_vad(PATH, seconds(3, 0.5, 7), rule), abs=1e-6)


@pytest.mark.parametrize(("vad", "lengths"), [([], []), (PATH, [1, 2]), (PATH, [1, 0, 2]), ([1, 2], [1, 2])])
def test_what_does_not_fit_is_refused(vad, lengths):
    with pytest.raises(ValueError, match="expected values"):
        overall_vad(vad, lengths)
