"""`attune evaluate` says what the server says of the same recording.

pytest tests/integration/test_evaluation_as_served.py
"""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from attune_training.data.utterance import Utterance
from attune_training.evaluation.command import predict_all, shipped_model
from attune_training.evaluation.segments import recognised_segments
from attune_training.providers import transcriber

pytestmark = pytest.mark.server


def test_a_narration_is_evaluated_as_it_is_served(client, samples, tmp_path):
    """Three sentences with pauses, 20 s: segments, words of each, and their mean by length."""
    parts = [soundfile.read(path, dtype="float32") for path in samples[:3]]
    rate = parts[0][1]
    pause = np.zeros(round(1.5 * rate), np.float32)
    narration = np.concatenate([part for waveform, _ in parts for part in (waveform, pause)])
    soundfile.write(tmp_path / "narration.wav", narration, rate)
    served = client.analyse(tmp_path / "narration.wav")

    item = Utterance(tmp_path / "narration.wav", "", 3.0, 3.0, 3.0, "x")
    segments = recognised_segments([item], transcriber())
    assert len(segments[0]) == len(served.segments) >= 3
    assert [segment.transcript for segment in segments[0]] == [segment.transcript for segment in served.segments]
    predicted = predict_all(shipped_model(), [item], "both", segments)
    [vad] = predicted.predicted
    assert predicted.names == ("valence", "arousal", "dominance")
    assert vad == pytest.approx(np.array([served.vad.valence, served.vad.arousal, served.vad.dominance]), abs=5e-3)
