"""The configurations of a model repository, as the server reads them: `<model>/config.pbtxt` and its profiles."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.profiles import EMBEDDED, Profile, config_path

__all__ = ["BrokenRepository", "read_config"]


class BrokenRepository(ServerUnavailable):
    """The model repository cannot be served as it is; starting again will not help."""


def read_config(model: Path, profile: Profile = EMBEDDED) -> model_config_pb2.ModelConfig:
    """The configuration in the folder of a model; `BrokenRepository` where there is none for that profile."""
    file = model.parent / config_path(model.name, profile)
    if not file.is_file():  # the server would silently use config.pbtxt instead
        raise BrokenRepository(f"there is no profile '{profile}': {file} is missing")
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BrokenRepository(f"{file} is not a model configuration: {error}") from error
