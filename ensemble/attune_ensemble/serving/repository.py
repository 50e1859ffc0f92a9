"""Whether a model repository is complete, asked before the server is started on it."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from attune_client.protocol.errors import ServerUnavailable

__all__ = ["check_repository"]

_DEFAULT_FILES = {"python": "model.py", "onnxruntime": "model.onnx"}


def check_repository(repository: Path, models: tuple[str, ...] = ()) -> None:
    """Check that every model, or each of `models`, has the file that its config.pbtxt asks for.

    Raises:
        ServerUnavailable: no such folder, no models in it, a config that cannot be read, or files that are missing.
    """
    configs = sorted(repository.glob("*/config.pbtxt"))
    if not configs:
        raise ServerUnavailable(f"there is no model repository at {repository.resolve()}: no */config.pbtxt in it")
    wanted = [config for config in configs if not models or config.parent.name in models]
    missing = [path for path in map(_model_file, wanted) if not path.exists()]
    if missing:
        names = "\n".join(f"  {path}" for path in missing)
        raise ServerUnavailable(f"the model repository is not complete: run `attune export`, which makes\n{names}")


def _model_file(config_file: Path) -> Path:
    """What the version folder must hold; for an ensemble, which has no file, the folder itself."""
    try:
        config = text_format.Parse(config_file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ServerUnavailable(f"{config_file} is not a model configuration: {error}") from error
    name = config.default_model_filename or _DEFAULT_FILES.get(config.backend, "")
    return config_file.parent / "1" / name
