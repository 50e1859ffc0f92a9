"""A model, a profile and a prompt writer are added here, each by the few files and lines of the README, and used.

pytest tests/unit/test_extending.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from rich.console import Console
from torch import Tensor, nn

from attune_client.protocol.errors import InvalidOption
from attune_client.protocol.models import MODELS, VAD
from attune_client.protocol.profiles import EMBEDDED, GPU, PROFILES, TENSORRT, Profile, exported_name
from attune_client.protocol.tensors import DType, ModelSpec, Tensors, TensorSpec
from attune_ensemble.call import CallContext
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.prompting.specification import music_spec
from attune_ensemble.prompting.writers.registry import WRITERS, create_writer
from attune_ensemble.prompting.writers.writer import Material, Prompt, Summary, WriterOptions
from attune_ensemble.serving.local import LocalModels
from attune_ensemble.serving.onnx_backend.session import Job, OnnxModel
from attune_ensemble.serving.repository import check_repository
from attune_ensemble.serving.services import SERVICES, Host, Service
from attune_export.assemble import assemble
from attune_export.models.registry import SERVED_MODELS
from attune_export.parts import ExportOptions, Part, export_graph
from attune_export.repository_config import model_config, write_repository
from attune_export.served_model import ONE_THREAD, Kind, ServedModel, Settings

ROOT = Path(__file__).parents[2]

# A model: a file like those of attune_export/models, with its tensors, its settings and what is exported.

CALMNESS = ModelSpec(
    "calmness",
    inputs=(VAD,),
    outputs=(TensorSpec("calmness", DType.FP32, (1,), "how far from excited, 0..1", limits=(0.0, 1.0)),),
    max_batch_size=8,
)


class Calmness(nn.Module):
    def forward(self, vad: Tensor) -> Tensor:
        return (5.0 - vad[:, 1:2]) / 4.0  # [B, 1]


def calmness_part(options: ExportOptions) -> Part:
    return Part("calmness", {"version": "1"}, (), lambda folder: export_graph(Calmness(), CALMNESS, folder))


MODEL = ServedModel(
    CALMNESS,
    Kind.ONNX,
    settings={
        EMBEDDED: Settings(parameters=ONE_THREAD),
        GPU: Settings(on_gpu=True),
        TENSORRT: Settings(on_gpu=True, tensorrt=True),
    },
    max_queue_delay_us=0,
    part=calmness_part,
)


@pytest.fixture
def calmness_alone(monkeypatch):
    """The registry with the toy's line, and no other, so that nothing else has to be exported."""
    monkeypatch.setattr("attune_export.assemble.SERVED_MODELS", {"calmness": MODEL})
    monkeypatch.setattr("attune_export.repository_config.SERVED_MODELS", {"calmness": MODEL})


def export(repository: Path, profile: Profile) -> None:
    write_repository(repository)
    assemble(repository, profile=profile, console=Console(file=StringIO()))


def served(repository: Path, profile: Profile, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What the backend answers that serves the exported graph, by the configuration of a profile."""
    config = json_format.MessageToDict(model_config("calmness", profile), preserving_proto_field_name=True)
    model = OnnxModel(repository / "calmness" / "1", config, log=lambda line: None)
    [outputs] = model.run([Job(inputs, ["calmness"])])
    assert isinstance(outputs, dict), outputs
    return outputs


def test_a_model_is_configured_exported_and_served(calmness_alone, tmp_path):
    export(tmp_path, EMBEDDED)
    check_repository(tmp_path)
    assert {path.name for path in (tmp_path / "calmness" / "configs").iterdir()} == {"gpu.pbtxt", "tensorrt.pbtxt"}
    vad = np.array([[3.0, 1.0, 3.0], [3.0, 4.0, 3.0]], np.float32)
    np.testing.assert_allclose(served(tmp_path, EMBEDDED, vad=vad)["calmness"], [[1.0], [0.25]], atol=1e-6)


def test_a_model_that_asks_for_an_engine_gets_the_script_that_builds_it(calmness_alone, tmp_path):
    export(tmp_path, TENSORRT)
    assert (tmp_path / "calmness/1/build_engine.sh").is_file()
    assert model_config("calmness", TENSORRT).default_model_filename == "model.plan"


# A Python model: a service that asks the model above, and an adapter, which only a server loads.

STILLNESS = ModelSpec(
    "stillness",
    inputs=(VAD,),
    outputs=(TensorSpec("stillness", DType.FP32, (1,), "calmness, and more of it by half", limits=(0.0, 1.5)),),
)
PYTHON_MODEL = ServedModel(STILLNESS, Kind.PYTHON, settings={EMBEDDED: Settings(parameters={"factor": "1.5"})})


def stillness_service(host: Host) -> Service:
    factor = float(host.settings["factor"])

    def answer(inputs: Tensors, *, context: CallContext) -> Tensors:
        calmness = host.call("calmness", {"vad": inputs["vad"][None]}, context=context)["calmness"]
        return {"stillness": factor * calmness[0]}

    return Service(answer)


@pytest.fixture
def two_models(monkeypatch, tmp_path) -> Path:
    """A repository of the two toys alone, with what has to be written for each; see the README's "Extend it"."""
    for module in ("attune_export.assemble", "attune_export.repository_config"):
        monkeypatch.setattr(f"{module}.SERVED_MODELS", {"calmness": MODEL, "stillness": PYTHON_MODEL})
    monkeypatch.setitem(MODELS, "calmness", CALMNESS)
    monkeypatch.setitem(MODELS, "stillness", STILLNESS)
    monkeypatch.setitem(SERVICES, "stillness", stillness_service)
    (tmp_path / "stillness" / "1").mkdir(parents=True)
    (tmp_path / "stillness" / "1" / "model.py").touch()
    export(tmp_path, EMBEDDED)
    return tmp_path


def test_a_model_that_is_added_is_called_and_calls_another(two_models):
    with LocalModels(two_models) as models:
        calm = models.call("calmness", {"vad": np.array([[3.0, 1.0, 3.0], [3.0, 4.0, 3.0]], np.float32)})
        still = models.call("stillness", {"vad": np.array([3.0, 3.0, 3.0], np.float32)})
    np.testing.assert_allclose(calm["calmness"], [[1.0], [0.25]], atol=1e-6)
    np.testing.assert_allclose(still["stillness"], [0.75], atol=1e-6)


def forgotten(
    models: Collection[str], served: Mapping[str, ServedModel], services: Collection[str], repository: Path
) -> dict[str, set[str]]:
    """The models that are in some of the lists and folders and missing in another, by where they are missing or extra.

    `models` are declared, `served` are exported, `services` make what Python models serve.
    """
    folders = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    adapters = {path.parents[1].name for path in repository.glob("*/1/model.py")}
    python = {name for name, model in served.items() if model.kind is Kind.PYTHON}
    wrong = {
        "MODELS": set(models) ^ set(served),
        "folders": folders ^ set(served),
        "adapters": adapters ^ python,
        "SERVICES": set(services) ^ python,
    }
    return {place: names for place, names in wrong.items() if names}


def test_the_lists_of_models_and_the_folders_agree():
    assert forgotten(MODELS, SERVED_MODELS, SERVICES, ROOT / "model_repository") == {}


def test_a_list_that_was_forgotten_is_found(two_models):
    both = {"calmness": MODEL, "stillness": PYTHON_MODEL}
    assert forgotten(both, both, ["stillness"], two_models) == {}
    assert forgotten(["calmness"], both, [], two_models) == {"MODELS": {"stillness"}, "SERVICES": {"stillness"}}
    assert forgotten(["stillness"], {"stillness": PYTHON_MODEL}, ["stillness"], two_models) == {"folders": {"calmness"}}
    (two_models / "stillness" / "1" / "model.py").unlink()
    assert forgotten(both, both, ["stillness"], two_models) == {"adapters": {"stillness"}}


# A profile: one entry of attune_client/protocol/profiles.py.

SMALL_GPU = Profile("small_gpu", "a GPU of little memory", inherits=GPU)


@pytest.fixture
def small_gpu(monkeypatch):
    monkeypatch.setitem(PROFILES, SMALL_GPU.name, SMALL_GPU)


def test_every_model_has_a_configuration_in_a_profile_that_is_added(small_gpu, tmp_path):
    """It takes the settings of the profile that it inherits from, and has files of its own."""
    written = {path for path in write_repository(tmp_path) if path.name == "small_gpu.pbtxt"}
    assert {path.parents[1].name for path in written} == set(SERVED_MODELS)
    for name in SERVED_MODELS:
        own, inherited = model_config(name, SMALL_GPU), model_config(name, GPU)
        for config, profile in ((own, SMALL_GPU), (inherited, GPU)):
            for file in ("model.onnx", "musicgen", "knowledge", "choice", "tokenizers"):
                if config.default_model_filename == exported_name(file, profile):
                    config.default_model_filename = file
                if config.parameters["weights"].string_value == exported_name(file, profile):
                    config.parameters["weights"].string_value = file
        assert own == inherited, name


def test_a_model_may_be_set_otherwise_in_a_profile_that_is_added(small_gpu, monkeypatch):
    generator = SERVED_MODELS["music_generator"]
    slots = replace(generator.settings[GPU], parameters={**generator.settings[GPU].parameters, "slots": "2"})
    settings = {**generator.settings, SMALL_GPU: slots}
    monkeypatch.setitem(SERVED_MODELS, "music_generator", replace(generator, settings=settings))
    found = {
        profile.name: model_config("music_generator", profile).parameters["slots"].string_value
        for profile in PROFILES.values()
    }
    assert found == {"embedded": "4", "gpu": "16", "tensorrt": "16", "small_gpu": "2"}


def test_a_profile_that_is_added_is_exported_beside_the_others(calmness_alone, small_gpu, tmp_path):
    export(tmp_path, EMBEDDED)
    export(tmp_path, SMALL_GPU)
    files = tmp_path / "calmness" / "1"
    assert (files / "model.small_gpu.onnx").samefile(files / "model.onnx"), "the same graph is linked"
    check_repository(tmp_path, profile=SMALL_GPU)
    vad = np.array([[3.0, 5.0, 3.0]], np.float32)
    np.testing.assert_allclose(served(tmp_path, SMALL_GPU, vad=vad)["calmness"], [[0.0]], atol=1e-6)


COMMANDS = """
import sys
from attune_client.protocol.profiles import GPU, PROFILES, Profile
PROFILES["small_gpu"] = Profile("small_gpu", "a GPU of little memory", inherits=GPU)
from {module} import {command}
{command}(sys.argv[1:])
"""


def run_command(module: str, command: str, *arguments: str) -> str:
    program = COMMANDS.format(module=module, command=command)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_commands_take_a_profile_that_is_added(small_gpu, tmp_path):
    write_repository(tmp_path)
    options = ("--profile", "small_gpu", "--repository", str(tmp_path))
    printed = run_command("attune_ensemble.serving.supervisor.commands", "serve", *options)
    assert "attune:gpu --profile small_gpu" in printed
    assert "small_gpu" in run_command("attune_export.commands", "export", "--help")


# A prompt writer: a file like those of attune_ensemble/prompting/writers.


class HaikuWriter:
    name = "haiku"

    def __init__(self, options: WriterOptions) -> None:
        self.breaths = options.settings["breaths"]

    def write(self, material: Material, *, context: CallContext) -> Prompt:
        spec = material.spec
        text = f"{material.emotion.label}; {spec.tempo_bpm:.0f} {self.breaths} breaths; {spec.instruments[0]}"
        return Prompt(text, self.name)

    def close(self) -> None:
        pass


def test_a_prompt_writer_is_chosen_by_name(monkeypatch):
    monkeypatch.setitem(WRITERS, "haiku", HaikuWriter)
    calm = next(emotion for emotion in load_emotions() if emotion.label == "calm")
    options = WriterOptions({"breaths": "slow"}, Path(), "cpu")
    material = Material(calm, None, music_spec(calm, None), Summary("", "template"))
    prompt = create_writer("haiku", options).write(material, context=CallContext())
    assert prompt == Prompt("calm; 57 slow breaths; piano", "haiku")
    with pytest.raises(InvalidOption, match="one of template, bart, haiku; got 'sonnet'"):
        create_writer("sonnet", options)


def test_a_prompt_writer_is_a_setting_of_a_profile(monkeypatch):
    prompter = SERVED_MODELS["music_prompt"]
    haiku = replace(prompter.settings[EMBEDDED], parameters={"prompt_writer": "haiku"})
    monkeypatch.setitem(SERVED_MODELS, "music_prompt", replace(prompter, settings={**prompter.settings, GPU: haiku}))
    writers = [
        model_config("music_prompt", profile).parameters["prompt_writer"].string_value for profile in PROFILES.values()
    ]
    assert writers == ["template", "haiku", "haiku"]
