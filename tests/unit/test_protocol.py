"""The protocol's declarations and errors: `pytest tests/unit/test_protocol.py`."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from attune_client.protocol import bounds, errors, models, stages
from attune_client.protocol.models import EMOTION_RECOGNITION, MODELS, MUSIC_GENERATOR, MUSIC_THERAPY
from attune_client.protocol.sampling import SamplingSettings
from attune_client.protocol.tensors import bytes_tensor, decode, text_of
from attune_training import config as training
from attune_training.evaluation import segments as training_segments

ROOT = Path(__file__).parents[2]


def all_errors(root: type[errors.AttuneError] = errors.AttuneError) -> list[type[errors.AttuneError]]:
    return [root, *(found for child in root.__subclasses__() for found in all_errors(child))]


ON_THE_WIRE = [k for k in all_errors() if k.__module__ == errors.__name__ and k is not errors.AttuneError]


@pytest.mark.parametrize("kind", ON_THE_WIRE)
def test_every_error_survives_the_wire_even_with_prefixes(kind):
    received = errors.from_wire("in ensemble 'x', Failed to process: " + kind("what: was wrong").to_wire())
    assert type(received) is kind
    assert str(received) == "what: was wrong"


def test_error_codes_are_distinct():
    kinds = [kind for kind in all_errors() if kind.__module__ == errors.__name__]
    assert len({kind.code for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("text", ["Stub process 'x' is not healthy.", "an error: no_speech", "error: my_no_speech: x"])
def test_foreign_text_is_a_server_error(text):
    error = errors.from_wire(text)
    assert type(error) is errors.ServerError
    assert str(error) == text


def test_when_to_try_again_crosses_the_wire():
    received = errors.from_wire(errors.ServerBusy("16 wait", retry_after_s=8).to_wire())
    assert isinstance(received, errors.ServerBusy)
    assert isinstance(received, errors.ServerUnavailable)
    assert (str(received), received.retry_after_s) == ("16 wait; try again in 8 s", 8)
    assert errors.ServerBusy("16 wait").retry_after_s is None


def test_what_a_client_sent_is_not_sent_back_whole():
    wire = errors.InvalidOption("x" * 1_000_000).to_wire()
    assert len(wire) < errors.MAX_MESSAGE + 20
    assert wire.endswith("…")
    whole = errors.InvalidOption("x" * errors.MAX_MESSAGE)
    assert str(errors.from_wire(whole.to_wire())) == str(whole)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "Non-zero status code returned while running Add node. /onnxruntime_src/core/math/ops.h:560 void f",
            "Non-zero status code returned while running Add node. … void f",
        ),
        (
            "Failed to process the request(s), message: KeyError: 'y'\n\nAt:\n  /me/model.py(30): execute",
            "Failed to process the request(s), message: KeyError: 'y'",
        ),
        ("Failed to open '/dev/shm/attune-serve-0123-ab12'", "Failed to open '…'"),
        ("Stub process 'attune-serve-0123456789abcdef-5a' is not healthy.", "Stub process '…' is not healthy."),
        ("region triton_python_backend_shm_region_1-2 is full", "region … is full"),
        (
            "expected [1,-1] and/or [2/3], see http://example.org/a/b",
            "expected [1,-1] and/or [2/3], see http://example.org/a/b",
        ),
    ],
)
def test_foreign_text_loses_paths_traces_and_memory_regions(text, told):
    assert str(errors.from_wire(text)) == told


def test_our_own_messages_stay_as_they_are():
    assert str(errors.from_wire("invalid_option: no engine '/a/b/c'")) == "no engine '/a/b/c'"


def test_public_names_are_all_exported():
    public = {kind.__name__ for kind in all_errors() if kind.__module__ == errors.__name__}
    assert set(errors.__all__) == public | {"MAX_MESSAGE", "from_wire"}


def test_tensor_names_are_distinct_and_found_by_name():
    for model in MODELS.values():
        for side in (model.inputs, model.outputs):
            assert len({tensor.name for tensor in side}) == len(side), model.name
    assert EMOTION_RECOGNITION.input("waveform").shape == (-1,)
    with pytest.raises(KeyError):
        EMOTION_RECOGNITION.output("waveform")


def test_the_ground_floor_imports_no_client():
    code = (
        "import attune_client.protocol.models, attune_client.protocol.errors, sys; print('tritonclient' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- what a request passes through ---


def test_every_step_of_an_ensemble_finds_its_inputs_and_all_outputs_are_made():
    [ensemble] = [model for model in MODELS.values() if model.steps]
    made = {tensor.name: tensor for tensor in ensemble.inputs}
    for step in ensemble.steps:
        assert MODELS[step.name] is step
        for tensor in step.inputs:
            assert (made[tensor.name].dtype, made[tensor.name].shape) == (tensor.dtype, tensor.shape), step.name
        made |= {tensor.name: tensor for tensor in step.outputs}
    assert all(made[tensor.name] == tensor for tensor in ensemble.outputs)


def test_the_server_tells_its_time_for_every_stage_but_the_music():
    *timed, play = stages.STAGES
    assert play is stages.PLAY
    assert play.time is None
    told = [tensor for tensor in MUSIC_THERAPY.outputs if tensor in {stage.time for stage in timed}]
    assert [tensor.name for tensor in told] == [f"{stage.name}_s" for stage in timed]


# --- BYTES tensors ---


def test_texts_and_files_travel_as_bytes():
    tensor = bytes_tensor("héllo", b"RIFF\xff")
    assert (tensor.dtype, tensor.tolist()) == (np.object_, ["héllo".encode(), b"RIFF\xff"])
    assert text_of(tensor) == decode("héllo") == "héllo"
    assert text_of(np.array([["a", "b"]], np.object_)) == "a"


def test_bytes_that_are_no_text_are_the_request_s_fault():
    with pytest.raises(errors.InvalidRequest, match="not UTF-8"):
        text_of(bytes_tensor(b"\xff"))


# --- bounds ---


def assigned_names(file: Path) -> set[str]:
    """The names that a module declares."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def test_every_bound_is_declared_once():
    declared = assigned_names(Path(bounds.__file__))
    assert {"MAX_MUSIC_S", "MAX_SEED", "MAX_TIMEOUT_S", "MAX_TEMPERATURE", "MIN_TEMPO_BPM"} <= declared
    for room in ("client", "ensemble", "export", "model_repository"):
        for file in (ROOT / room).rglob("*.py"):
            if file != Path(bounds.__file__):
                again = {name for name in assigned_names(file) if name.lstrip("_") in declared}
                assert not again, f"{file} declares {again} again"


def test_training_which_does_not_import_the_protocol_means_the_same():
    assert (training.MIN_VAD, training.MAX_VAD) == bounds.VAD_LIMITS
    assert training_segments.MAX_SEGMENT_S == bounds.MAX_SEGMENT_S
    assert training.SAMPLE_RATE == models.SPEECH_SAMPLE_RATE


def test_the_sampling_inputs_are_the_settings():
    settings = [field.name for field in fields(SamplingSettings)]
    assert [tensor.name for tensor in MUSIC_GENERATOR.inputs if tensor.name in settings] == settings


@pytest.mark.parametrize(
    "setting",
    [
        *({"temperature": value} for value in (float("nan"), -0.1, 10.1, "1", None, True)),
        *({"top_k": value} for value in (-1, 2.5, "3", None, True)),
        *({"top_p": value} for value in (0.0, 1.1, float("nan"), "1")),
        *({"guidance": value} for value in (0.9, 20.1, float("inf"), [3.0])),
    ],
)
def test_a_setting_that_no_engine_can_sample_by_is_refused_by_its_name(setting):
    [name] = setting
    with pytest.raises(errors.InvalidOption, match=f"^{name} must"):
        SamplingSettings(**setting)


def test_the_ends_of_the_ranges_are_settings():
    SamplingSettings(0.0, 0, 1.0, bounds.MIN_GUIDANCE)
    SamplingSettings(bounds.MAX_TEMPERATURE, 2**31 - 1, 1e-6, bounds.MAX_GUIDANCE)
