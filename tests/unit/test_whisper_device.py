"""Whisper on the GPU that the server names: `pytest tests/unit/test_whisper_device.py`."""

from __future__ import annotations

import pytest

from attune_ensemble.speech.whisper import Decoding, Whisper, import_without_pyav


@pytest.mark.parametrize(
    ("device", "kind", "index"), [("cpu", "cpu", 0), ("cuda", "cuda", 0), ("cuda:0", "cuda", 0), ("cuda:3", "cuda", 3)]
)
def test_whisper_is_loaded_on_the_device_of_its_instance(monkeypatch, tmp_path, device, kind, index):
    class AskedError(Exception):
        pass

    def model(folder, **options):
        raise AskedError((options["device"], options["device_index"]))

    monkeypatch.setattr(import_without_pyav("faster_whisper"), "WhisperModel", model)
    with pytest.raises(AskedError) as asked:
        Whisper(tmp_path, device, "int8", threads=1, decoding=Decoding())
    assert asked.value.args[0] == (kind, index)
