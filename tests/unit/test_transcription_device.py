"""Whisper on the GPU that the server names: `pytest tests/unit/test_transcription_device.py`."""

from __future__ import annotations

import faster_whisper
import pytest

from attune_ensemble.transcription import Transcriber


@pytest.mark.parametrize(
    ("device", "kind", "index"), [("cpu", "cpu", 0), ("cuda", "cuda", 0), ("cuda:0", "cuda", 0), ("cuda:3", "cuda", 3)]
)
def test_whisper_is_loaded_on_the_device_of_its_instance(monkeypatch, tmp_path, device, kind, index):
    asked = {}

    class Model:
        def __init__(self, folder, **options):
            asked.update(options)

    monkeypatch.setattr(faster_whisper, "WhisperModel", Model)
    Transcriber(tmp_path, device=device)
    assert (asked["device"], asked["device_index"]) == (kind, index)
