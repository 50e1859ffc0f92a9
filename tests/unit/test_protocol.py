"""The protocol's declarations and errors: `pytest tests/unit/test_protocol.py`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from attune_client.protocol import errors
from attune_client.protocol.models import DEADLINE, EMOTION_RECOGNITION, MODELS


def all_errors(root: type[errors.AttuneError] = errors.AttuneError) -> list[type[errors.AttuneError]]:
    return [root, *(found for child in root.__subclasses__() for found in all_errors(child))]


ON_THE_WIRE = [k for k in all_errors() if k.__module__ == errors.__name__ and k is not errors.AttuneError]


@pytest.mark.parametrize("kind", ON_THE_WIRE)
def test_every_error_survives_the_wire_even_with_prefixes(kind):
    received = errors.from_wire("in ensemble 'x', Failed to process: " + kind("what: was wrong").to_wire())
    assert type(received) is kind
    assert str(received) == "what: was wrong"


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_takes_a_deadline_unless_it_puts_requests_together(model):
    assert DEADLINE.optional
    assert (DEADLINE in model.inputs) == (model.max_batch_size == 0)


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
