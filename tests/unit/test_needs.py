"""What a request is said to need of other models is what it asks of them: `pytest tests/unit/test_needs.py`."""

from __future__ import annotations

import numpy as np
import pytest

from attune_client.messages import infer_request
from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.models import EMOTION_RECOGNITION, MODELS, MUSIC_PROMPT, MUSIC_THERAPY, SPEECH_EMOTION
from attune_client.protocol.profiles import EMBEDDED
from attune_client.protocol.tensors import Callee, bytes_tensor
from attune_ensemble.call import UNLIMITED
from attune_ensemble.pipeline import Rules, play_therapy, recognise_speech
from attune_ensemble.prompting.describe import MusicDescriber
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.prompting.writers.template import TemplatePromptWriter
from attune_ensemble.serving.guard.requests import Request
from attune_ensemble.serving.guard.service import Service
from attune_ensemble.serving.guard.settings import GuardSettings
from attune_ensemble.serving.guard.signatures import needed_by, signature_of
from attune_ensemble.speech.choice import EmotionChoice
from attune_ensemble.speech.crisis import crisis_tensors
from attune_export.repository_config import model_config
from tests.unit import test_describe as describing
from tests.unit import test_pipeline as pipelines

SIGNATURES = {name: signature_of(model_config(name, EMBEDDED)) for name in MODELS}
STEPS = {step.name for step in EMOTION_RECOGNITION.steps}

EMOTIONS = load_emotions()
LABELS = tuple(emotion.label for emotion in EMOTIONS)
CHOICE = EmotionChoice(LABELS, np.zeros((40, 384), np.float32), np.zeros(40, np.float32), 1.0, 1.0, 0.3)
RULES = Rules(LABELS, crisis_tensors, CHOICE)

AUDIO, WORDS, CALM = bytes_tensor(b"a recording"), bytes_tensor("rain"), bytes_tensor("calm")
VAD, YES = np.array([3, 2, 3], np.float32), np.array([1], np.int32)
SPEC = bytes_tensor('{"tempo_bpm": 72, "mode": "dorian", "tonic": "D", "instruments": ["piano"], "dynamics": "mp"}')


class Models(pipelines.FakeServer):
    def emotion_recognition(self, inputs):
        return {"vad": np.full((len(inputs["waveform"]), 3), 3, np.float32)}


class Recorder:
    """The served models, of which `music_prompt` is real; remembers who was called."""

    def __init__(self) -> None:
        self._models = Models(2)
        self._music = pipelines.FakeGenerator(2.0)
        self._describer = MusicDescriber(EMOTIONS, describing.FakeIndex(), TemplatePromptWriter())
        self.called: set[str] = set()

    def call(self, model, inputs, *, context):
        self.called.add(model)
        if model != MUSIC_PROMPT.name:
            return self._models(model, inputs, context=context)
        described = self._describer.describe(inputs, self.call, context=context)
        return {name: bytes_tensor(described[name]) for name in ("prompt", "music_spec")}

    def call_stream(self, model, inputs, *, context):
        self.called.add(model)
        return self._music(model, inputs, context=context)


def asked_by(model, inputs) -> set[str]:
    """The models that a request has asked, by itself and through others, an ensemble's steps among them."""
    recorder, inputs = Recorder(), dict(inputs)
    match model:
        case MUSIC_THERAPY.name:
            list(play_therapy(inputs, RULES, recorder.call, recorder.call_stream, context=UNLIMITED))
        case MUSIC_PROMPT.name:
            recorder.call(model, inputs, context=UNLIMITED)
        case SPEECH_EMOTION.name:
            recognise_speech(inputs["audio"], RULES, recorder.call, context=UNLIMITED)
    return recorder.called | (STEPS if EMOTION_RECOGNITION.name in recorder.called else set())


REQUESTS = {
    "music for a recording": (MUSIC_THERAPY.name, {"audio": AUDIO}),
    "music for a text": (MUSIC_THERAPY.name, {"text": WORDS}),
    "music for an emotion": (MUSIC_THERAPY.name, {"emotion": CALM}),
    "music for an emotion that VAD shades": (MUSIC_THERAPY.name, {"emotion": CALM, "vad": VAD}),
    "music for VAD": (MUSIC_THERAPY.name, {"vad": VAD}),
    "music as specified": (MUSIC_THERAPY.name, {"music_spec": SPEC}),
    "music as specified, with its prompt": (MUSIC_THERAPY.name, {"music_spec": SPEC, "text": WORDS}),
    "a prompt for a text": (MUSIC_PROMPT.name, {"text": WORDS}),
    "a prompt for an emotion": (MUSIC_PROMPT.name, {"emotion": CALM}),
    "a gentle prompt for an emotion": (MUSIC_PROMPT.name, {"emotion": CALM, "vad": VAD, "gentle": YES}),
    "a prompt as specified": (MUSIC_PROMPT.name, {"music_spec": SPEC}),
    "speech": (SPEECH_EMOTION.name, {"audio": AUDIO}),
}


@pytest.mark.parametrize(("model", "inputs"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_needs_what_it_asks(model, inputs):
    assert needed_by(model, SIGNATURES, inputs) == asked_by(model, inputs) | {model}


@pytest.mark.parametrize("model", MODELS)
def test_whatever_a_request_needs_is_among_what_its_model_may_need(model):
    everything = needed_by(model, SIGNATURES)
    for asked, inputs in REQUESTS.values():
        assert asked != model or needed_by(model, SIGNATURES, inputs) <= everything
    spec = MODELS[model]
    assert everything >= {callee.name for callee in spec.calls} | {step.name for step in spec.steps}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_callees_are_models_and_conditions_are_inputs(model):
    for callee in (*model.calls, *model.calls_streaming):
        assert callee.name in MODELS
        assert set(callee.unless) <= {tensor.name for tensor in model.inputs if tensor.optional}
        assert Callee.parse(str(callee)) == callee
    assert {callee.name for callee in model.calls_streaming} <= {callee.name for callee in model.calls}
    assert SIGNATURES[model.name].uses == (*map(Callee, (step.name for step in model.steps)), *model.calls)


@pytest.mark.parametrize("lost", MODELS)
@pytest.mark.parametrize(("model", "inputs"), REQUESTS.values(), ids=REQUESTS)
def test_who_asks_for_it_is_refused_and_nobody_else(model, inputs, lost):
    """By the guard, of the requests as they come."""
    guard = Service(GuardSettings(), lambda event, **fields: None)
    guard.open(None, SIGNATURES)
    guard.lose({lost}, ServerUnavailable("away"))
    request = Request.of(infer_request(MODELS[model], inputs).SerializeToString())
    if lost in asked_by(model, inputs) | {model}:
        with pytest.raises(ServerUnavailable):
            guard._signature_of(request)
    else:
        assert guard._signature_of(request) is SIGNATURES[model]
