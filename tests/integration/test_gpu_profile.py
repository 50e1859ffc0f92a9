"""The files of the gpu profile, served by the packaged server: its configurations as they are, but on the CPU.

pytest tests/integration/test_gpu_profile.py
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tritonclient.grpc import model_config_pb2 as pb

from attune_client import AttuneClient
from attune_client.protocol.models import MUSIC_GENERATOR, SENTENCE_ENCODER, TEXT_TOKENIZER
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.profiles import GPU, config_path
from attune_ensemble.serving.launcher.server import Server
from attune_ensemble.serving.repository import check_repository
from attune_export.assemble import assemble
from attune_export.repository_config import parse, render
from tests.conftest import ROOT

pytestmark = pytest.mark.server

SERVED = (TEXT_TOKENIZER.name, SENTENCE_ENCODER.name, MUSIC_GENERATOR.name)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the export for gpu without MusicGen and BART makes of the repository that the tests use, as links."""
    target = tmp_path_factory.mktemp("gpu") / "repository"
    shutil.copytree(ROOT / "model_repository", target, copy_function=_link)
    assemble(target, profile=GPU, musicgen="none", bart="none", console=Console(file=StringIO()))
    return target


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[AttuneClient]:
    check_repository(repository, profile=GPU)
    for name in SERVED:
        config = parse((repository / config_path(name, GPU)).read_text())
        config.instance_group[0].kind = pb.ModelInstanceGroup.KIND_CPU
        (repository / name / "config.pbtxt").unlink()  # it is a link to the project's own
        (repository / name / "config.pbtxt").write_text(render(config))
    with (
        Server(repository, log_file=repository.parent / "server.log", models=SERVED) as server,
        AttuneClient(server.grpc_url, timeout_s=60) as client,
    ):
        yield client


def test_an_export_for_another_profile_leaves_the_embedded_one_as_it_was(repository):
    check_repository(repository)
    ours, its = (repository / "valence" / "1" / name for name in ("model.onnx", "model.gpu.onnx"))
    assert ours.samefile(its), "the shipped regressors are the same, so they lie there once"


def test_its_graphs_are_served_under_their_names(client):
    words = np.array([[b"a slow and tender melody"]], dtype=np.object_)
    tokens = client.infer(TEXT_TOKENIZER, {"transcript": words})
    answer = client.infer(SENTENCE_ENCODER, {name: tokens[name] for name in ("sentence_ids", "sentence_mask")})
    assert np.linalg.norm(answer["embedding"]) == pytest.approx(1.0, abs=1e-5)


def test_the_composer_plays_where_musicgen_was_left_out(client):
    """The configuration says musicgen, the export said none."""
    spec = MusicSpec(72.0, "dorian", "D", ("piano",), "mp")
    texts = {"prompt": "calm", "music_spec": spec.to_json()}
    inputs = {name: np.array([text.encode()], dtype=np.object_) for name, text in texts.items()}
    announcement, *chunks = client.stream(MUSIC_GENERATOR, inputs | {"duration_s": np.array([1.0], np.float32)})
    assert announcement["engine"][0] == b"composer"
    assert sum(len(chunk["music"]) for chunk in chunks) == announcement["sample_rate"][0]
